"""Every objective end to end: two steps of the tiny judge, pointwise and pairwise."""

import json

import pytest

from tests import tiny_runs
from trainer import grpo
from trainer.main import main

OBJECTIVES = {
    "dapo": {"clip_high": 0.28, "kl_coef": 0, "refill_rounds": 2, "overlong_buffer_tokens": 6},
    "dr_grpo": {"advantage": "dr_grpo", "normalization": "constant", "kl_coef": 0},
    "rloo": {"advantage": "rloo", "normalization": "sequence", "kl_estimator": "k2"},
    "reinforce++": {"advantage": "reinforce++", "group": "pair", "normalize_rewards": "separately"},
    "gspo": {"ratio": "sequence", "normalization": "sequence", "clip_low": 3e-4, "clip_high": 4e-4,
             "inner_epochs": 2, "importance_cap": 2.0},
}  # fmt: skip


def job(files, judge, out, **grpo) -> dict[str, object]:
    settings = tiny_runs.settings(files) | {"out": out, "stages": ["grpo"], "model.path": judge, "data.held_out": ""}
    settings |= {"grpo.steps": 2, "grpo.exact_logprobs": True}
    return settings | {f"grpo.{key}": value for key, value in grpo.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains(name, tiny_files, tiny_judge, tmp_path):
    config = OBJECTIVES[name]
    tiny_runs.train(job(tiny_files, tiny_judge, tmp_path / "run", **config))
    first, second = tiny_runs.records(tmp_path / "run")
    parts = ["par", "format"] + (["length"] if "overlong_buffer_tokens" in config else [])
    for step in (first, second):
        assert step["grad_norm"] > 0 and step["skipped"] == 0
        assert step["max_logprob_gap"] == 0  # the rollout's own arithmetic
        assert sum(step[f"variance_share_{part}"] for part in parts) == pytest.approx(1)
        assert step["reward"] == pytest.approx(sum(step[f"reward_{part}"] for part in parts))
    assert ("kl" in first) == (config.get("kl_coef") != 0)
    if "importance_cap" in config:
        assert (first["importance_weight"], first["importance_capped"]) == (1, 0)  # on a CPU in float32, exactly
        assert first["clip_share"] > 0  # in the second inner epoch
    if "refill_rounds" in config:
        for step in (first, second):
            assert step["pairs_drawn"] >= 3 and 1 <= step["rollout_rounds"] <= 3
            assert step["pairs_drawn"] - step["pairs_dropped"] <= 3


def test_reinforce_trains_on_one_judgment_of_each_response(tiny_files, tiny_judge, tmp_path):
    one = {"rollout.num_rollouts": 1, "eval.num_judgments": 1, "eval.votes": [1]}
    tiny_runs.train(job(tiny_files, tiny_judge, tmp_path / "run", advantage="reinforce++") | one)
    steps = tiny_runs.records(tmp_path / "run")
    assert all(step["skipped"] == 0 and step["grad_norm"] > 0 for step in steps)
    assert steps[0]["zero_advantage_share"] == 0  # the step's mean is the baseline, and no reward equals it


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "tokens_per_s" and not k.endswith("_s")} for row in rows]


def test_dynamic_sampling_draws_the_same_pairs_when_a_run_resumes(tiny_files, tiny_judge, tmp_path, monkeypatch):
    """Killed between the rounds of a step: to the bit what it would have been, pairs drawn and dropped among it."""
    settings = job(tiny_files, tiny_judge, tmp_path / "whole", kl_coef=0, refill_rounds=2, checkpoint_every=1, steps=4)
    # Only the format earns or costs anything, so that many pairs teach nothing.
    settings |= {"rollout.num_rollouts": 2, "grpo.margin.kind": "constant", "grpo.margin.value": 0.0}
    tiny_runs.train(settings)
    whole = without_times(tiny_runs.records(tmp_path / "whole"))
    late = max(step["step"] for step in whole if step["rollout_rounds"] > 1)
    assert late > 1 and sum(step["pairs_dropped"] for step in whole) > 0
    num_calls, real = 0, grpo.roll_out

    def roll_out(*arguments):
        nonlocal num_calls
        num_calls += 1
        if num_calls == sum(step["rollout_rounds"] for step in whole[: late - 1]) + 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(grpo, "roll_out", roll_out)
        assert main(tiny_runs.arguments(settings | {"out": tmp_path / "cut"})) != 0
    assert len(tiny_runs.records(tmp_path / "cut")) == late - 1
    tiny_runs.train(settings | {"out": tmp_path / "cut", "resume": True})
    assert without_times(tiny_runs.records(tmp_path / "cut")) == whole
    weights = [(tmp_path / run / "models" / "grpo" / "model.safetensors").read_bytes() for run in ("cut", "whole")]
    assert weights[0] == weights[1]


def test_a_pairwise_judge_is_taught_trained_and_measured(tiny_files, tmp_path):
    file = tiny_runs.write_jsonl(tmp_path / "choices.jsonl", [tiny_runs.choice(i) for i in range(100, 196)])
    settings = tiny_runs.settings(tiny_files) | {
        "out": tmp_path / "run", "mode": "pairwise", "data.judgments": file, "sft.steps": 60, "grpo.steps": 2,
        "grpo.kl_coef": 0, "grpo.dev_every": 2,
    }  # fmt: skip
    tiny_runs.train(settings)
    steps = [step for step in tiny_runs.records(tmp_path / "run") if step["stage"] == "grpo"]
    for step in steps:
        assert step["valid_rate"] > 0.3  # it has learned to choose
        assert step["reward"] == pytest.approx(step["reward_choice"] + step["reward_format"])
        assert "margin" not in step
    assert steps[-1]["dev_valid_rate"] > 0.3
    judgments = tiny_runs.records(tmp_path / "run" / "judgments", "grpo.jsonl")
    assert len(judgments) == 6 * 3  # 3 of each pair, both responses in one context
    assert {row["choice"] for row in judgments} <= {"chosen", "rejected", None}
    samples = [row for row in tiny_runs.records(tmp_path / "run", "samples.jsonl") if row["stage"] == "grpo"]
    assert len(samples) == 2 * 2 and all("is_swapped" in row for row in samples)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["held_out"]["grpo"]["votes"][1]["margin"] is None


def test_rows_that_do_not_choose_are_told_before_anything_is_written(tiny_files, tmp_path, capsys):
    settings = tiny_runs.settings(tiny_files) | {"out": tmp_path / "run", "mode": "pairwise"}
    assert main(tiny_runs.arguments(settings)) == 1
    assert "judgments.jsonl:1: response_a: missing; expected a text" in capsys.readouterr().err
    rows = [tiny_runs.choice(i) | {"judgment": tiny_runs.judgment_text(7)} for i in (100, 101)]
    file = tiny_runs.write_jsonl(tmp_path / "scores.jsonl", rows)
    assert main(tiny_runs.arguments(settings | {"data.judgments": file})) == 1
    assert "judgment 100 of tiny: choice error; right is A or B in <answer>" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
