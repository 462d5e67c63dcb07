"""Shards, and copies of shards: however the processes hold the weights, a step is that of one process."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from rollout.decoder import Decoder, DecoderConfig, init_weights_
from rollout.weights import load_decoder, save_decoder
from tests.tiny_runs import SMALL
from trainer.distributed import shard_, world

ROOT = Path(__file__).resolve().parents[2]
TIED = DecoderConfig(**SMALL, tie_word_embeddings=True)
UNTIED = DecoderConfig(**SMALL, tie_word_embeddings=False)

WORKER = """
import json, os, sys
import torch
from rollout.weights import save_decoder
from tests.forked_ranks import run_ranks
from tests.tiny_runs import groups
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.distributed import world
from trainer.policy_loss import VALUES
from trainer.learner import Learner
from trainer.policy_loss import PolicyLoss

def train(rank, size, port, model, out, shard_size, reduce_each, cpu_offload):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings = ModelConfig(reduce_each_micro_batch=reduce_each, shard_size=shard_size)
    optim = OptimConfig(lr=1e-3, schedule="constant", cpu_offload=cpu_offload)
    with world(size, shard_size) as here:
        learner = Learner(model, settings, optim, 3, here)
        loss = PolicyLoss(GrpoConfig(kl_coef=0.0), None)
        told = [learner.update(here.share(groups(7, seed=i)), loss, 48, i, VALUES) for i in range(3)]
        save_decoder(learner.decoder, out, torch.float32, is_writer=here.is_main)
        if here.is_main:
            with open(f"{out}.json", "w") as file:
                json.dump([(step["loss"], step["grad_norm"]) for step in told], file)
        here.gather(None)

torch.set_num_threads(1)
for job in json.loads(sys.argv[1]):
    run_ranks(job[0], lambda rank: train(rank, *job))
"""


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{name: folder} of one model trained for three steps by 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("mesh")
    save_decoder(init_weights_(Decoder(UNTIED), seed=0, std=0.2), folder / "model", torch.float32)
    jobs = {  # processes, shard_size, reduce_each_micro_batch, cpu_offload
        "one": (1, 0, False, False),
        "two shards": (2, 2, True, True),
        "two copies of two shards, reduced once": (4, 2, False, False),
        "two copies of two shards, reduced often": (4, 2, True, False),
    }
    listed = [
        (size, free_port(), str(folder / "model"), str(folder / name), *rest) for name, (size, *rest) in jobs.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(listed)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: folder / name for name in jobs}


@pytest.mark.slow
@pytest.mark.parametrize("often", ["once", "often"])
def test_copies_of_shards_step_as_one_process_does(trained, often):
    assert_same(trained["one"], trained[f"two copies of two shards, reduced {often}"])


@pytest.mark.slow
def test_shards_with_moments_on_the_host_step_as_one_process_does(trained):
    assert_same(trained["one"], trained["two shards"])


def assert_same(one: Path, other: Path) -> None:
    of_one, of_other = (json.loads(Path(f"{folder}.json").read_text()) for folder in (one, other))
    for expected, found in zip(of_one, of_other, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    first, second = (dict(load_decoder(folder).named_parameters()) for folder in (one, other))
    for name, tensor in first.items():
        assert (second[name] - tensor).abs().max() < 1e-5, name


@pytest.mark.parametrize(("config", "expected"), [(UNTIED, ["embed_tokens"]), (TIED, ["embed_tokens", "norm"])])
def test_norm_and_head_are_a_unit_of_their_own_unless_the_head_is_the_embedding(one_process, config, expected):
    decoder = shard_(Decoder(config), one_process.mesh, torch.float32)
    units = [name for name, module in decoder.named_modules() if isinstance(module, FSDPModule)]
    assert sorted(units) == sorted(["", "layers.0", "layers.1", *([] if config is TIED else ["norm", "lm_head"])])
    in_units = tuple(f"{unit}." for unit in units if unit)
    rest = [name.split(".")[0] for name, _ in decoder.named_parameters() if not name.startswith(in_units)]
    assert rest == expected


def test_shards_that_do_not_divide_the_processes_are_refused():
    with pytest.raises(ValueError, match=re.escape("model.shard_size=2 does not divide the 1 processes")), world(1, 2):
        pass
