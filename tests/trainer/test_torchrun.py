"""What a user sees who starts the program as the README says, with several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import arguments, pair, records, settings, train, write_jsonl
from tests.trainer.test_mesh import free_port
from trainer.checkpoint import checkpoints

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


def workers_of(launcher: int) -> list[int]:
    """The processes that a torchrun has started."""
    file = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(child) for child in file.read_text().split()] if file.is_file() else []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads process numbers from /proc")
def test_two_launchers_go_on_by_themselves_when_a_rank_is_killed(tiny_files, tiny_judge, tmp_path):
    job = settings(tiny_files) | {
        "model.path": tiny_judge, "out": tmp_path / "out", "stages": ["grpo"], "grpo.steps": 12, "data.held_out": "",
        "grpo.checkpoint_every": 1,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "pair",
    ]  # fmt: skip
    launchers = [
        subprocess.Popen(
            [*command, "trainer/main.py", *arguments(job)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while len(checkpoints(tmp_path / "out" / "checkpoints" / "grpo")) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        (worker,) = workers_of(launchers[1].pid)
        os.kill(worker, signal.SIGKILL)
        outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert "(resumed)" in "".join(outputs)
    assert "Traceback" not in "".join(outputs)  # where the others were when they were left alone
    assert [row["step"] for row in records(tmp_path / "out")] == list(range(1, 13))
    assert not (tmp_path / "out-2").exists()
    # The numbers are those of one process that nobody killed.
    train(job | {"out": tmp_path / "one"})
    losses = [[row["loss"] for row in records(tmp_path / name)] for name in ("out", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
