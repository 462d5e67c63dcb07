"""What a user sees who starts the program as the README says, with several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import arguments, pair, settings, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["a bad pair", "a mistyped key", "the number of processes"])
def test_torchrun_tells_a_mistake_once(tiny_files, tiny_judge, tmp_path, mistake):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [pair(0), pair(1) | {"rejected": None}])
    changes, line = {
        "a bad pair": ({"data.pairs": pairs}, f"{pairs}:2: rejected: is null; expected a text"),
        "a mistyped key": ({"grpo.step": 1}, "command line: unknown key 'grpo.step'; the nearest is 'grpo.steps'"),
        "the number of processes": ({"num_processes": 3}, "num_processes: the recipe asks for 3 processes and 2 are"),
    }[mistake]
    job = settings(tiny_files) | {"model.path": tiny_judge, "out": tmp_path / "out"} | changes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "trainer/main.py", *arguments(job)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    told = [said for said in done.stderr.splitlines() if said.startswith("error: ")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()
