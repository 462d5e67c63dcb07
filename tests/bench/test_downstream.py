"""The table of policies; the runs behind it are the trainer's, tested there."""

import json

from bench import downstream
from bench.downstream import METHODS, _table
from bench.main import main
from rollout.text_files import write_text


def result(accuracy: float, step_s: float) -> dict:
    return {
        "accuracy": accuracy, "all_right": accuracy / 2, "completion_tokens": 20.0, "step_s": step_s,
        "by_task": {"chat": accuracy, "math": accuracy}, "correlation": [0.5, 0.25], "kl": 0.125,
        "is_warned": accuracy < 0.6, "pair_accuracy": accuracy,
    }  # fmt: skip


def test_means_and_deviations_over_seeds_and_the_ratio_of_steps():
    seconds = {name: 1.0 for name in METHODS} | {"judge": 1.5}
    found = [{name: result(accuracy, seconds[name]) for name in METHODS} for accuracy in (0.5, 0.7)]
    lines = _table(found, [3, 4]).splitlines()
    rows = [line for line in lines if line.startswith("| RL, PaTaRM")]
    assert rows == ["| RL, PaTaRM | 60.0 ± 14.1 | 60.0 | 60.0 | 30.0 | 20.0 | 0.50 to 0.25 | 0.12 | 1.50 |"]
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(METHODS)
    assert "takes 1.50 times as long" in lines[-2] and "seeds 3, 4" in lines[0]
    assert "right on 60.0% of" in lines[-1] and "RL, PaTaRM 1 of 2" in lines[-1]


def test_a_run_without_a_reference_or_with_a_skipped_step_has_a_row(tmp_path):
    measured = {name: 0.5 for name in ("accuracy", "low", "high", "all_right", "completion_tokens")} | {"by_task": {}}
    (tmp_path / "report.json").write_text(json.dumps({"held_out_prompts": {"rlhf": measured}}))
    for of_step, expected in (({}, None), ({"kl": 0.25}, 0.25)):
        steps = [{"stage": "rlhf", "step": 1, "step_s": 1.0} | of_step]
        skipped = {"stage": "rlhf", "step": 2, "step_s": 1.0} | {name: None for name in of_step}
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*steps, skipped)))
        assert downstream._result(tmp_path, "rlhf")["kl"] == expected


def test_the_users_settings_have_the_last_word_over_the_benchmarks_own(tmp_path, monkeypatch):
    mine, runs = ["sft.steps=7", "sft.optim.lr=1e-5", "dpo.epochs=3", "bt.epochs=4", "seed=9"], {}

    def train(folder, settings):
        runs[folder.name] = dict(setting.split("=", 1) for setting in settings)  # of equal keys the last
        write_text(folder / "data" / "pairs.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b", "task": "math"}\n')
        write_text(folder / "report.json", '{"held_out": {"bt": {"votes": [{"accuracy": 0.5}]}}}')

    monkeypatch.setattr(downstream, "_train", train)
    monkeypatch.setattr(downstream, "_result", lambda *_: {})
    downstream._of_seed("judge", 0, mine, tmp_path)
    assert runs.keys() == METHODS.keys() | {"bt"}
    for settings in runs.values():
        assert [
            f"{key}={settings[key]}" for key in ("sft.steps", "sft.optim.lr", "dpo.epochs", "bt.epochs", "seed")
        ] == mine


def test_nothing_is_trained_for_a_judge_that_is_not_there(tmp_path, capsys):
    assert main(["downstream", "--judge", "nowhere", "--runs", str(tmp_path)]) == 1
    assert "--judge nowhere: no model there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_whole_numbers(capsys):
    assert main(["downstream", "--judge", "nowhere", "--seeds", "0,x"]) == 1
    assert "--seeds 0,x: must be whole numbers" in capsys.readouterr().err
