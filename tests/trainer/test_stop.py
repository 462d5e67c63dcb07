"""A run that is asked to end saves a checkpoint, says so, and goes on exactly; one that cannot leaves in time."""

import os
import signal
import time
from types import ModuleType

import pytest

from tests.tiny_runs import arguments, records, settings
from trainer import leaf_sums, stop
from trainer.checkpoint import checkpoints
from trainer.learner import Learner
from trainer.main import main
from trainer.pair_stage import PairObjective
from trainer.shared_rollout import SharedRollout
from trainer.stop import Stop


@pytest.fixture(scope="module")
def job(tiny_files, tiny_judge):
    return settings(tiny_files) | {
        "model.path": tiny_judge, "data.held_out": "", "stages": ["grpo"], "grpo.steps": 3, "grpo.inner_epochs": 2,
        "grpo.tokens_per_micro_batch": 256,
    }  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(arguments(job | {"out": out})) == 0
    return out


def signal_at(monkeypatch, where: type | ModuleType, name: str, call: int, number: int) -> None:
    """The process gets a signal while the given call of a method is going on."""
    method, calls = getattr(where, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # the watch hears of it
        return method(*args, **kwargs)

    monkeypatch.setattr(where, name, counted)


@pytest.mark.parametrize(
    ("where", "name", "call", "number", "saved"),
    [
        (SharedRollout, "draw", 2, signal.SIGTERM, 1),  # in the rollout of step 2: the boundary before it
        (Learner, "update", 3, signal.SIGINT, 1),  # before anything of step 2 is learned
        (Learner, "update", 4, signal.SIGTERM, 2),  # when weights have changed: the end of step 2
        (SharedRollout, "draw", 1, signal.SIGTERM, 0),  # nothing is done yet, and that is what is saved
    ],
)
def test_a_run_that_is_asked_to_end_saves_and_goes_on_exactly(
    job, unbroken, tmp_path, monkeypatch, capsys, where, name, call, number, saved
):
    out = tmp_path / "run"
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(patch, where, name, call, number)
        assert main(arguments(job | {"out": out})) == 128 + number
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("SIG")]
    name = signal.Signals(number).name
    assert told == [
        f"{name}: saving a checkpoint, then leaving (within 25 s)",
        f"{name}: left; with resume=true the run goes on: grpo goes on after step {saved}",
    ]
    assert signal.getsignal(number) == handler
    assert [step for step, _ in checkpoints(out / "checkpoints" / "grpo")] == [saved]
    assert main(arguments(job | {"out": out, "resume": True})) == 0
    weights = [folder / "models" / "grpo" / "model.safetensors" for folder in (out, unbroken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    rows = [[r["loss"] for r in records(folder)] for folder in (out, unbroken)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("stage", "where", "name", "call", "saved"),
    [
        ("grpo", SharedRollout, "draw", 3, 2),  # after the rollouts of steps 1 and 2
        ("grpo", SharedRollout, "draw", 5, 3),  # after that of step 3, the last
        ("bt", PairObjective, "measure", 1, 2),
        ("bt", leaf_sums, "token_values", 1, 2),  # in its midst, where weights are gathered
        ("sft", SharedRollout, "draw", 1, 2),
    ],
)
def test_a_dev_measurement_is_no_reason_to_lose_steps(
    job, tmp_path, monkeypatch, capsys, stage, where, name, call, saved, again
):
    job = job | {
        "stages": [stage], f"{stage}.steps": 3, f"{stage}.dev_every": 2, f"{stage}.keep": "best",
        "bt.pairs_per_step": 3, "bt.tokens_per_micro_batch": 128, "grpo.optim.lr": 1e-2,
    }  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(arguments(job | {"out": whole})) == 0
    for number in range(1 + again):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            signal_at(patch, where, name, 1 if number else call, signal.SIGTERM)
            assert main(arguments(job | {"out": out, "resume": bool(number)})) == 143
        assert f"{stage} goes on after step {saved}" in capsys.readouterr().err
    assert checkpoints(out / "checkpoints" / stage)[-1][0] == saved
    assert [r["step"] for r in records(out)] == list(range(1, saved))  # what the step tells comes with its measurement
    assert main(arguments(job | {"out": out, "resume": True})) == 0
    weights = [folder / "models" / stage / "model.safetensors" for folder in (out, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for mine, theirs in zip(records(out), records(whole), strict=True):
        assert mine.keys() | {"checkpoint_s"} == theirs.keys() | {"checkpoint_s"}
        times = {key for key in theirs if key.endswith("_s") or key == "rollout_idle_share"}
        assert all(mine[key] == theirs[key] for key in theirs.keys() - times)
    if stage == "grpo":
        assert records(out, "samples.jsonl") == records(whole, "samples.jsonl")


def test_what_was_measured_again_is_kept_by_a_run_that_leaves_in_the_next_step(job, tmp_path, monkeypatch):
    job = job | {"grpo.dev_every": 2, "out": tmp_path / "run"}
    for call, last in ((3, 1), (2, 2)):  # in the measurement, and after it
        with monkeypatch.context() as patch:
            signal_at(patch, SharedRollout, "draw", call, signal.SIGTERM)
            assert main(arguments(job | {"resume": last == 2})) == 143
        assert [r["step"] for r in records(tmp_path / "run")] == [*range(1, last + 1)]
    with monkeypatch.context() as patch:
        signal_at(patch, SharedRollout, "draw", 3, signal.SIGTERM)  # that of step 3, and its measurement: no other
        assert main(arguments(job | {"resume": True})) == 0
    assert [r["step"] for r in records(tmp_path / "run") if "dev_accuracy" in r] == [2, 3]


def test_a_process_that_does_not_come_to_an_end_leaves_all_the_same(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(stop.os, "_exit", left.append)
    asked = Stop()
    with asked.on_signals(within_s=0.2):
        os.kill(os.getpid(), signal.SIGTERM)
        start = time.perf_counter()
        while not left and time.perf_counter() - start < 10:
            time.sleep(0.01)
        assert 0.15 < time.perf_counter() - start < 5
    assert left == [143]
    assert asked.is_requested
    assert "no place to stop within 0.2 s; left" in capsys.readouterr().err


def test_a_second_interrupt_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), Stop().on_signals(60):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
