"""How processes join, and how they leave one that has failed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.trainer.test_mesh import free_port
from trainer.distributed import world

ROOT = Path(__file__).resolve().parents[2]

# As of NCCL, whose shutdown waits for peers.
WAITING = """
import sys, time
import torch.distributed as dist
from trainer.distributed import world
destroy = dist.destroy_process_group
dist.destroy_process_group = lambda: (print("waits", flush=True), time.sleep(60))
with world() as here:
    here.gather(None)
    if here.rank == 1:
        raise RuntimeError("out of memory")
    here.gather(None)
"""


@pytest.mark.slow
def test_a_rank_that_fails_tells_and_leaves_without_its_peers():
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
    }  # fmt: skip
    start = time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING], cwd=ROOT, env=environment | {"RANK": rank}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        (_, of_peer), (said, told) = (rank.communicate(timeout=50) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert "RuntimeError: out of memory" in told and "waits" not in said
    assert ranks[1].returncode == 1 and ranks[0].returncode != 0, of_peer
    assert time.monotonic() - start < 50


def test_a_failure_of_nccl_before_a_restart_does_not_end_what_is_started(monkeypatch):
    """torch's heartbeat monitor ends every process that finds this key in the store, under no prefix."""
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
