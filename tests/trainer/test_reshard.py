"""What one process saved two go on with, and one again: shards fit any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rollout.weights import load_decoder
from tests.trainer.test_mesh import ROOT, free_port

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from rollout.weights import full_tensors, save_decoder
from tests.forked_ranks import run_ranks
from tests.tiny_runs import groups, save_checkpoint
from trainer.checkpoint import restore_
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.distributed import world
from trainer.policy_loss import VALUES
from trainer.learner import Learner
from trainer.policy_loss import PolicyLoss

LOSS = PolicyLoss(GrpoConfig(kl_coef=0.0), None)

def run(rank, size, port, model, folder, restored, steps, keep):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with world(size) as here:
        learner = Learner(model, ModelConfig(), OptimConfig(lr=1e-3, schedule="constant"), 6, here)
        assert restore_(Path(folder), learner, {}, here) == restored
        state = [learner.optimizer.state[p] for p in learner.decoder.parameters()] if restored else []
        moments = [entry["exp_avg_sq"].full_tensor() for entry in state]
        tensors = dict(full_tensors(learner.decoder)) | {f"moment {i}": x for i, x in enumerate(moments)}
        if here.is_main:
            torch.save(tensors, f"{folder}-{size}-{restored}.pt")
        for step in range(restored, restored + steps):
            learner.update(here.share(groups(5, seed=step)), LOSS, 64, step, VALUES)
        if steps:
            save_checkpoint(Path(folder), learner, restored + steps, here, keep)
            state = [learner.optimizer.state[p] for p in learner.decoder.parameters()]
            moments = [entry["exp_avg_sq"].full_tensor() for entry in state]
            tensors = dict(full_tensors(learner.decoder)) | {f"moment {i}": x for i, x in enumerate(moments)}
            if here.is_main:
                torch.save(tensors, f"{folder}-saved-{restored + steps}.pt")

torch.set_num_threads(1)
for job in json.loads(sys.argv[1]):
    run_ranks(job[0], lambda rank: run(rank, *job))
    damaged = Path(job[3]) / "step-000004" / "__1_0.distcp"
    if damaged.is_file():
        damaged.write_bytes(damaged.read_bytes()[:-1])
"""


@pytest.mark.slow
def test_a_checkpoint_is_resharded_from_1_to_2_to_1_processes_and_a_damaged_shard_is_found(tiny_judge, tmp_path):
    folder = tmp_path / "checkpoints"
    # (processes, steps done, steps to do): the second save, of two processes, then loses a byte of rank 1's shard.
    plan = [(1, 0, 2), (2, 2, 1), (1, 3, 0), (2, 3, 1), (2, 3, 0)]
    jobs = [(size, free_port(), str(tiny_judge), str(folder), done, todo, 3) for size, done, todo in plan]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(jobs)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for size, step in ((2, 2), (1, 3), (2, 3)):
        assert_equal(Path(f"{folder}-{size}-{step}.pt"), Path(f"{folder}-saved-{step}.pt"))
    assert done.stderr.count("warning: ") == 1
    told = "step-000004: __1_0.distcp has"
    assert told in done.stderr
    assert "it is not used, the stage goes on from step-000003" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003", "step-000004.refused"]
    trained = torch.load(f"{folder}-saved-3.pt")
    before = dict(load_decoder(tiny_judge).named_parameters())
    assert any(not torch.equal(trained[name], tensor) for name, tensor in before.items())


def assert_equal(found: Path, expected: Path) -> None:
    ours, theirs = torch.load(found), torch.load(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
