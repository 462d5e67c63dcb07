"""Early stopping: the decisions, and a run that makes them, whole and resumed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_runs import arguments, records, settings
from trainer import stage
from trainer.config import GrpoConfig, SftConfig
from trainer.early_stop import Measured, best, dev_measurements, has_stalled
from trainer.main import main

accuracies = st.lists(st.integers(0, 20).map(lambda n: n / 20), max_size=12)


def measured(values: list[float]) -> list[Measured]:
    return [Measured(10 * n, value) for n, value in enumerate(values, 1)]


@given(accuracies)
def test_the_best_is_the_earliest_of_the_highest(values):
    found = best(measured(values))
    assert found == (measured(values)[values.index(max(values))] if values else None)


@given(accuracies, st.integers(0, 5), st.sampled_from([0.0, 0.04, 0.3]))
def test_a_stage_has_stalled_when_that_many_measurements_brought_no_gain(values, patience, min_delta):
    def last_gain(values: list[float]) -> int:
        """Index of the last gain: an accuracy more than min_delta above the one of the gain before it."""
        if not values:
            return 0
        before = last_gain(values[:-1])
        return len(values) - 1 if len(values) == 1 or values[-1] > values[before] + min_delta else before

    stalled = patience > 0 and bool(values) and len(values) - 1 - last_gain(values) >= patience
    assert has_stalled(measured(values), patience, min_delta) == stalled


def test_small_steps_up_count_once_they_add_up():
    climb = [0.50, 0.52, 0.54, 0.56, 0.58]
    assert not has_stalled(measured(climb), 3, 0.05)  # 0.56 is a gain over 0.50
    assert has_stalled(measured(climb), 2, 0.1)


def test_steps_without_a_measurement_are_passed_over():
    rows = [{"step": 1}, {"step": 2, "dev_accuracy": 0.5}, {"step": 3, "dev_accuracy": None}]
    assert dev_measurements(rows) == [Measured(2, 0.5)]


@pytest.mark.parametrize("config", [SftConfig, GrpoConfig])
def test_patience_and_the_best_need_measurements(config):
    with pytest.raises(ValueError, match="patience=2 counts dev measurements; dev_every=0 makes none"):
        config(patience=2)
    with pytest.raises(ValueError, match='keep="best" goes by dev measurements; dev_every=0 makes none'):
        config(keep="best")


@pytest.fixture
def judged_by_the_book(monkeypatch):
    """Dev accuracies as they are written here, by step, in place of those of the engine."""
    accuracy = {1: 0.5, 2: 0.75, 3: 0.75, 4: 0.7, 5: 0.9, 6: 0.9}
    asked = []

    def measure(_replica, learner, _dev):
        step = int(next(iter(learner.optimizer.state.values()))["step"])
        asked.append(step)
        return {"dev_accuracy": accuracy[step], "dev_accuracy_low": 0.0, "dev_accuracy_high": 1.0}

    monkeypatch.setattr("trainer.replica.JudgeReplica.measure", measure)
    return asked


def test_a_stage_ends_early_and_a_run_that_resumes_knows_it(
    tiny_files, tiny_judge, tmp_path, judged_by_the_book, capsys, monkeypatch
):
    job = settings(tiny_files) | {
        "out": tmp_path / "run", "model.path": tiny_judge, "stages": ["sft"], "sft.steps": 6, "sft.dev_every": 1,
        "sft.patience": 2, "data.held_out": "",
    }  # fmt: skip

    def pulled(*_args, **_kwargs):
        raise RuntimeError("the plug")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.save_decoder", pulled)  # after the stage, before its export
        with pytest.raises(RuntimeError, match="the plug"):
            main(arguments(job))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sft: stops")]
    assert told == [
        "sft: stops after step 4 of 6, 2 dev measurements without a gain; the best accuracy, 75.0%, was after step 2"
    ]
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in before.splitlines()] == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "sft").iterdir()] == ["step-000004"]
    assert main(arguments(job | {"resume": True})) == 0
    assert judged_by_the_book == [1, 2, 3, 4]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "run" / "models" / "sft" / "config.json").is_file()


def test_measurements_of_before_the_resumption_count(tiny_files, tiny_judge, tmp_path, judged_by_the_book, monkeypatch):
    job = settings(tiny_files) | {
        "out": tmp_path / "run", "model.path": tiny_judge, "stages": ["sft"], "sft.steps": 6, "sft.dev_every": 1,
        "sft.checkpoint_every": 1, "sft.patience": 2, "data.held_out": "",
    }  # fmt: skip
    from trainer.learner import Learner

    update, calls = Learner.update, []

    def fourth_fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the plug")
        return update(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", fourth_fails)
        with pytest.raises(RuntimeError, match="the plug"):
            main(arguments(job))
    assert main(arguments(job | {"resume": True})) == 0
    assert [row["step"] for row in records(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_stage_leaves_its_best_weights_if_it_is_to_also_when_it_was_cut_off(
    tiny_files, tiny_judge, tmp_path, judged_by_the_book, capsys, monkeypatch
):
    """Two steps with the same rate are where the six were at their best."""
    job = settings(tiny_files) | {
        "model.path": tiny_judge, "stages": ["sft"], "sft.optim.schedule": "constant", "sft.dev_every": 1,
        "data.held_out": "",
    }  # fmt: skip
    best_job = job | {
        "out": tmp_path / "best",
        "sft.steps": 6,
        "sft.patience": 2,
        "sft.keep": "best",
        "sft.checkpoint_keep": 1,
    }

    def pulled(*_args, **_kwargs):
        raise RuntimeError("the plug")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.save_decoder", pulled)
        with pytest.raises(RuntimeError, match="the plug"):
            main(arguments(best_job))
    kept = sorted(path.name for path in (tmp_path / "best" / "checkpoints" / "sft").iterdir())
    assert kept == ["step-000002", "step-000004"]
    capsys.readouterr()
    assert main(arguments(best_job | {"resume": True})) == 0
    assert "sft: leaves the weights after step 2, the best accuracy: 75.0%" in capsys.readouterr().out
    assert judged_by_the_book == [1, 2, 3, 4]
    assert main(arguments(job | {"out": tmp_path / "two", "sft.steps": 2})) == 0
    files = [tmp_path / run / "models" / "sft" / "model.safetensors" for run in ("best", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_best_weights_that_cannot_be_read_are_named(
    tiny_files, tiny_judge, tmp_path, judged_by_the_book, capsys, monkeypatch
):
    job = settings(tiny_files) | {
        "out": tmp_path / "run", "model.path": tiny_judge, "stages": ["sft"], "sft.steps": 4, "sft.dev_every": 1,
        "sft.keep": "best", "data.held_out": "",
    }  # fmt: skip

    def damage(folder, step, *_args):
        (folder / f"step-{step:06d}" / "state.json").unlink()
        restore(folder, step, *_args)

    restore = stage.restore_weights_
    monkeypatch.setattr(stage, "restore_weights_", damage)
    assert main(arguments(job)) != 0
    path = tmp_path / "run" / "checkpoints" / "sft" / "step-000002"
    told = f"{path}: state.json: No such file or directory; it holds the weights that the stage is to leave"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "models" / "sft" / "config.json").exists()
