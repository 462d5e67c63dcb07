"""TensorBoard: every number once, also after a run has resumed; one line if it is not there."""

import sys

import pytest

from tests.tiny_runs import arguments, recipe_of, records, settings
from trainer.main import main
from trainer.run_folder import RunFolder
from trainer.stage_log import StageLog
from trainer.tensorboard_log import TensorboardLog


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory of events."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_numbers_are_written_and_nothing_else(tmp_path):
    record = {"stage": "grpo", "step": 3, "reward": 0.5, "pairs_by_rank": [4], "grad_norm": None, "num_tokens": 7}
    expected = {"reward": [(3, 0.5)], "num_tokens": [(3, 7.0)]}
    pytest.importorskip("tensorboard")
    log = TensorboardLog(tmp_path, first=2)
    log.write(record)
    assert scalars(tmp_path) == expected  # before it is closed
    log.close()


def test_steps_that_are_done_again_are_shown_once(tmp_path, one_process):
    """The process is gone after step 5, its last checkpoint is of step 3."""
    pytest.importorskip("tensorboard")
    recipe = recipe_of({"out": tmp_path, "log.tensorboard": True})
    folder = RunFolder(tmp_path, is_writer=True)
    for first, values in ((0, [1, 2, 3, 4, 5]), (3, [4.5, 5.5, 6.5])):
        with StageLog("grpo", first, recipe, folder, one_process) as log:
            assert [r["step"] for r in log.past] == list(range(1, first + 1))
            for step, value in enumerate(values, first + 1):
                log.write(step, {"reward": float(value)}, [])
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert scalars(tmp_path / "tensorboard" / "grpo") == {"reward": expected}
    assert [(r["step"], r["reward"]) for r in records(tmp_path)] == expected


def test_warnings_are_logged_once_and_after_a_resumption_again_from_there(tmp_path, one_process):
    recipe = recipe_of({"out": tmp_path, "watch.window": 1, "watch.steps": 2})
    folder = RunFolder(tmp_path, is_writer=True)
    margins = [2.0, 2.0, 0.5, 0.5, 0.5, 2.0, 2.0]
    told = {}
    for first, last in ((0, 6), (3, 7)):  # the first process goes at step 6, with its last checkpoint at 3
        with StageLog("grpo", first, recipe, folder, one_process) as log:
            for step in range(first + 1, last + 1):
                told[step] = log.write(step, {"reward": 1.0, "margin": margins[step - 1]}, [])
    warnings = records(tmp_path, "warnings.jsonl")
    assert [(w["step"], w["sign"], w["event"]) for w in warnings] == [
        (4, "margin decay", "begins"),
        (7, "margin decay", "ends"),
    ]
    assert [step for step, lines in told.items() if lines] == [4, 7]
    assert told[4][0].startswith("warning: grpo step 4: margin decay begins: margin 0.5 ")


def test_without_tensorboard_nothing_begins(tiny_files, tiny_judge, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.tensorboard_log.find_spec", lambda name: None)
    job = settings(tiny_files) | {"out": tmp_path / "run", "model.path": tiny_judge, "log.tensorboard": True}
    assert main(arguments(job)) == 1
    assert capsys.readouterr().err == (
        'error: log.tensorboard: tensorboard is not installed; pip install "patarm[tensorboard]", or set it to false\n'
    )
    assert not (tmp_path / "run").exists()


def test_without_being_asked_tensorboard_is_not_loaded(tmp_path, one_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with StageLog("sft", 0, recipe_of({"out": tmp_path}), RunFolder(tmp_path, is_writer=True), one_process) as log:
        assert log.write(1, {"loss": 1.0}, []) == []
    assert not (tmp_path / "tensorboard").exists()
