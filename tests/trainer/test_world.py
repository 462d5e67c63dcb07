"""How processes join, on one node or on two that differ, and how they leave one that has failed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.tiny_runs import arguments, pair, records, settings, train, write_jsonl
from tests.trainer.test_mesh import free_port
from trainer.distributed import _address_of_gloo, _loopback_among_nodes, world
from trainer.identity import _INPUTS, refuse_other_inputs

ROOT = Path(__file__).resolve().parents[2]


def two_ranks(programs: list[str], arguments: list[list[str]], folders: list[Path]) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of each."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, *of_rank], cwd=folder, env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, (program, of_rank, folder) in enumerate(zip(programs, arguments, folders, strict=True))
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *of_rank) for rank, of_rank in zip(ranks, told, strict=True)]


# As with NCCL, whose shutdown waits for peers.
WAITING = """
import sys, time
import torch.distributed as dist
from trainer.distributed import world
dist.destroy_process_group = lambda: (print("waits", flush=True), time.sleep(60))
with world() as here:
    here.gather(None)
    if here.rank == 1:
        raise RuntimeError("out of memory")
    here.gather(None)
"""


@pytest.mark.slow
def test_a_rank_that_fails_tells_and_leaves_without_its_peers():
    (of_peer, _, _), (status, said, told) = two_ranks([WAITING] * 2, [[], []], [ROOT, ROOT])
    assert "RuntimeError: out of memory" in told and "waits" not in said
    assert status == 1 and of_peer != 0


# As with NCCL, too. The other one dies without a word.
LEFT = """
import os, sys
import torch.distributed as dist
from trainer.main import leave, main
from trainer.shared_rollout import SharedRollout
dist.destroy_process_group = lambda: print("waits", flush=True)
if os.environ["RANK"] == "1":
    SharedRollout.draw = lambda *_, **__: os._exit(7)
leave(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_rank_that_is_left_alone_says_so_and_leaves(tiny_files, tiny_judge, tmp_path):
    job = settings(tiny_files) | {"model.path": tiny_judge, "out": tmp_path / "out", "stages": ["grpo"]}
    (status, said, told), (of_peer, _, _) = two_ranks([LEFT] * 2, [arguments(job)] * 2, [ROOT, ROOT])
    assert (status, of_peer) == (1, 7), told
    assert "rank 0: leaves, as another process has: " in told and "Traceback" not in told
    assert "waits" not in said


@pytest.mark.parametrize(("size", "ended"), [("2", ""), ("1", "Python's end\n")])
def test_of_several_processes_none_is_at_pythons_end_with_threads_of_gloo(size, ended):
    program = """
        import atexit
        from trainer.main import leave
        atexit.register(print, "Python's end")
        print("said")
        leave(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": size},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, f"said\n{ended}")


def test_a_failure_of_nccl_before_a_restart_does_not_end_what_is_started(monkeypatch):
    """torch's heartbeat monitor ends every process that finds this key in the store, under no prefix."""
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    assert not header.is_file() or 'kStoreDumpKey = "exception_dump"' in header.read_text()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("exception_dump", "1")
    of_torchrun = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "RANK": 0, "WORLD_SIZE": 1,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }  # fmt: skip
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, str(value))
    with world():
        assert not store.check(["exception_dump"])


@pytest.mark.parametrize(
    ("addresses", "is_refused"),
    [
        ({"a": "10.0.0.1", "b": "10.0.0.2"}, False),
        ({"a": "10.0.0.1", "b": "127.0.1.1"}, True),  # as Debian and Ubuntu install a host
        ({"a": "fd00::1", "b": "fd00::2"}, False),
        ({"a": "fd00::1", "b": "::1"}, True),
        ({"a": "", "b": ""}, False),  # they are told an interface
        ({"a": "127.0.0.1"}, False),  # a machine alone
    ],
)
def test_a_node_that_others_would_not_find_is_told(addresses, is_refused):
    store, ranks = dist.HashStore(), [host for host in addresses for _ in range(2)]
    with ThreadPoolExecutor(len(ranks)) as pool:
        found = list(
            pool.map(
                lambda rank: _loopback_among_nodes(store, rank, len(ranks), ranks[rank], addresses[ranks[rank]]),
                range(len(ranks)),
            )
        )
    said = f"b: its own name is {addresses.get('b')} to it (/etc/hosts), where no other node finds it; set GLOO_SOCKET"
    assert all((error is not None) == is_refused for error in found)
    assert all(str(error).startswith(said) for error in found if error)


@pytest.mark.parametrize(
    ("found", "address"),
    [
        (["192.0.2.1", "127.0.0.7"], "127.0.0.7"),  # the first one is nobody's here: of a cloud's gateway, say
        (["192.0.2.1"], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
)
def test_gloo_listens_where_the_hosts_name_leads_and_it_can(found, address, monkeypatch):
    def of_name(*_, **__):
        if not found:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 0)) for host in found]

    monkeypatch.setattr(socket, "getaddrinfo", of_name)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert _address_of_gloo() == address
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert _address_of_gloo() == ""


# Of a node that has not heard yet what the first one has written.
STALE = """
import sys
from trainer import held_out
from trainer.main import leave, main
from trainer.run_folder import RunFolder
held_out.read_record = lambda file: {}
RunFolder.is_finished = lambda *_: False
leave(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_goes_on_by_what_its_first_rank_sees(tiny_files, tiny_judge, tmp_path):
    job = settings(tiny_files) | {
        "model.path": tiny_judge, "out": tmp_path / "out", "sft.steps": 1, "grpo.steps": 1, "sft.dev_every": 0,
    }  # fmt: skip
    train(job)
    for name in ("models/grpo", "checkpoints/grpo"):
        shutil.rmtree(tmp_path / "out" / name)
    (tmp_path / "out" / "report.md").unlink()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (tmp_path / "out" / "report.json").write_text(json.dumps(report | {"measured": ["initial", "sft"]}))
    ended = two_ranks([NODE, STALE], [arguments(job | {"resume": True})] * 2, [ROOT, ROOT])
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert [(row["stage"], row["step"]) for row in records(tmp_path / "out")] == [("sft", 1), ("grpo", 1)]


@pytest.mark.parametrize("name", ["shapes", "tokenizer", "data", "reward"])
def test_what_another_rank_has_read_otherwise_is_named(name):
    identity = {"shapes": "a", "tokenizer": "b", "data": "c", "reward": "d", "recipe": "e"}
    data = SimpleNamespace(held_out=[], held_out_prompts=[])
    refuse_other_inputs(identity, data, SimpleNamespace(gather=lambda mine: [mine, mine]))
    with pytest.raises(ValueError, match=f"^rank 1 has {_INPUTS[name].split()[0]} .*other than those of rank 0"):
        refuse_other_inputs(identity, data, SimpleNamespace(gather=lambda mine: [mine, mine | {name: "z"}]))


NODE = """
import sys
from trainer import run_folder
from trainer.main import leave, main
run_folder.SEEN_WITHIN_S = 1.0
leave(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differs", "line"),
    [
        ("a setting", "grpo.pairs_per_step: is 3 on rank 0 and 2 on rank 1; all nodes are started with the same"),
        ("what is held out", "rank 1 has held-out pairs or prompts other than those of rank 0; all nodes need"),
        ("the folder", "out: rank 1 does not see what rank 0 writes there; all nodes need one file system for `out`"),
    ],
)
def test_nodes_that_differ_are_told_once_and_before_anything_is_trained(
    tiny_files, tiny_judge, tmp_path, differs, line
):
    """Relative paths are looked up in each node's own folder."""
    folders = [tmp_path / "node-0", tmp_path / "node-1"]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        write_jsonl(folder / "pairs.jsonl", [pair(i) for i in range(7)])
        num_held_out = 6 - (rank if differs == "what is held out" else 0)
        write_jsonl(folder / "held_out.jsonl", [pair(40 + i) for i in range(num_held_out)])
    job = settings(tiny_files) | {
        "model.path": tiny_judge, "data.pairs": "pairs.jsonl", "data.held_out": "held_out.jsonl", "out": "out",
        "stages": ["grpo"], "grpo.steps": 1,
    }  # fmt: skip
    other = job | ({"grpo.pairs_per_step": 2} if differs == "a setting" else {})
    ended = two_ranks([NODE] * 2, [arguments(job), arguments(other)], folders)
    told = [said for _, _, errors in ended for said in errors.splitlines() if said.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith(f"error: {line}"), ended
    assert [status for status, _, _ in ended] == [1, 1]
    assert not (folders[1] / "out").exists() and not list(folders[0].glob("out/seen-*"))
