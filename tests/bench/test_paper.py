"""The paper's experiments: its numbers, the rule of verdicts, rows, tables of made-up runs, one tiny run."""

from __future__ import annotations

import json
from html import escape
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.main import main
from bench.paper.facts import read_judged, voted
from bench.paper.findings import FINDINGS, judge
from bench.paper.page import write_page
from bench.paper.plan import ARMS, NEEDS, joined_needs, needs_of, with_starts
from bench.paper.report import TITLES, about, as_markdown, experiment_of, read_experiments
from bench.paper.rows import FILES, STYLES, as_choices, rm_bench_files, without_rubrics
from bench.paper.runs import Job, Scale, SeedRuns, run_jobs
from bench.paper.tables import TABLES, published
from bench.paper.times import time_facts
from bench.paper.verdict import estimate, verdict
from bench.result_files import write_result
from bench.training import resolved
from eval.data.rm_bench import read_rm_bench
from patarm_core.benchmarks.rm_bench import identity_gap
from patarm_core.embedded.splits import EmbeddedConfig, make_splits
from patarm_core.embedded.tasks import answers_of, check, polish_of
from patarm_core.judgment import parse
from patarm_core.pairs import Pair
from patarm_core.recipe import to_toml

VALUES = st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=12)
SPLITS = make_splits(EmbeddedConfig(num_sft_pairs=20, num_rl_pairs=0, num_dev_pairs=0, num_held_out_pairs=24))


# What the paper prints


def test_published_overalls_are_the_means_of_their_columns_but_for_the_row_that_the_notes_name():
    odd = []
    for name in ("table1", "table3", "table4"):
        for label, values in published()[name].items():
            if label != "columns" and abs(values[0] - sum(values[1:5]) / 4) > 0.101:
                odd.append((name, label, sum(values[1:5]) / 4))
            if label != "columns" and name == "table1":
                assert identity_gap(values[5:6], values[6:]) < 0.101
    assert odd == [("table4", "pairwise, task-adaptive", 87.75)]
    assert "87.75" in published()["notes"]["table4"][0]


def test_published_gains_and_hours_are_as_the_notes_say():
    table1, table8 = published()["table1"], published()["table8"]
    gains = [
        round(100 * (table1[f"PaTaRM Qwen3-{size}"][i] / table1[f"Qwen3-{size}"][i] - 1), 1)
        for size in ("8B", "14B") for i in (0, 5)
    ]  # fmt: skip
    assert gains == [7.8, 4.9, 5.4, 4.0]
    steps = {label: row[2] * 3600 / row[1] for label, row in table8.items() if label != "columns"}
    assert [label for label, num in steps.items() if abs(num - 128) > 0.3] == ["8B, 2k, n = 16"]
    of_table9 = published()["table9"]
    assert round(of_table9["8B, PaTaRM"][0] / of_table9["8B, BT"][0] - 1, 3) == 0.246


# Verdicts


@given(VALUES)
def test_the_opposite_finding_has_the_opposite_verdict(values):
    opposite = {"holds": "does not hold", "does not hold": "holds", "cannot be told": "cannot be told"}
    assert verdict([-value for value in values]) == opposite[verdict(values)]


@given(VALUES, st.floats(0, 100))
def test_a_larger_number_of_every_seed_never_speaks_against_a_finding(values, more):
    order = ["does not hold", "cannot be told", "holds"]
    lifted = [value + 200 + more for value in values]
    assert order.index(verdict(lifted)) >= order.index(verdict(values))


@given(VALUES)
def test_what_no_seed_shows_does_not_hold_and_is_never_said_to(values):
    assert verdict([-abs(value) for value in values]) != "holds"


def test_the_interval_of_three_seeds_is_students():
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(4.303 / 3**0.5, rel=1e-6)
    assert estimate([5.0]).half_width == inf and verdict([5.0]) == "cannot be told"
    assert verdict([1.0, 1.1, 0.9]) == "holds" and verdict([3.0, 0.1, 0.1]) == "cannot be told"


# Rows in other forms


def test_judgments_without_their_rubrics_are_those_of_the_setting_primary():
    for before, after in zip(SPLITS.sft, without_rubrics(SPLITS.sft), strict=True):
        whole, cut = parse(before.judgment), parse(after.judgment, rubrics="primary")
        assert cut.error is None and (cut.think, cut.evaluation, cut.score) == (
            whole.think,
            whole.evaluation,
            whole.score,
        )


def test_choices_prefer_the_higher_score_in_either_order():
    choices = as_choices(SPLITS.sft)
    scores = {(row.prompt, row.response): parse(row.judgment).score for row in SPLITS.sft}
    assert len(choices) == 20
    for row in choices:
        read = parse(row.judgment, "choice")
        a, b = scores[row.prompt, row.response_a], scores[row.prompt, row.response_b]
        assert read.error is None and read.choice == ("A" if a > b else "B")
    assert {parse(row.judgment, "choice").choice for row in choices} == {"A", "B"}
    assert as_choices(SPLITS.sft[:1]) == as_choices([SPLITS.sft[0], SPLITS.sft[2]]) == []


def test_rm_bench_styles_differ_in_politeness_alone(tmp_path):
    for name, text in rm_bench_files(SPLITS.held_out, 3).items():
        (tmp_path / name).write_text(text)
        for row in json.loads(text):
            for side in ("chosen", "rejected"):
                assert [polish_of(response) for response in row[side]] == list(STYLES)
                assert len({tuple(answers_of(row["prompt"], response)) for response in row[side]}) == 1
            assert sum(check(row["prompt"], row["chosen"][0])) > sum(check(row["prompt"], row["rejected"][2]))
    assert {item.task for item in read_rm_bench(tmp_path).items} == set(FILES)


# Facts and tables


def _records(pair: Pair, chosen: list[float | None], rejected: list[float | None]) -> list[dict]:
    return [
        {"source": pair.source, "id": pair.id, "side": side, "judgment": "", "score": score}
        for side, scores in (("chosen", chosen), ("rejected", rejected)) for score in scores
    ]  # fmt: skip


def test_votes_come_from_one_set_of_judgments():
    pairs = [Pair("p", "a", "b", task, "s", str(i)) for i, task in enumerate(("chat", "chat", "math"))]
    records = _records(pairs[0], [9, 0], [1, 9])  # right at first, by average wrong, by majority even
    records += _records(pairs[1], [None, 5], [1, 4]) + _records(pairs[2], [7, 7], [2, 2])
    found = voted(read_judged(records, pairs))
    assert list(found) == ["1", "2"]
    assert found["1"]["chat"] == 0.5 and found["1"]["overall"] == 0.75 and found["1"]["num_unscored"] == 1
    assert found["2"]["chat"] == 0.5 and found["2"]["majority"] == 0.75
    uneven = _records(pairs[0], [5], [5]) + _records(pairs[1], [5], [5]) + _records(pairs[2], [9], [1])
    assert voted(read_judged(uneven, pairs))["1"]["ties_half"] == 0.75  # of chat .5, of math 1: the mean of tasks
    scalar = voted(
        read_judged(
            [
                {**r, "score": 0.5}
                for r in ({"source": "s", "id": "0", "side": side} for side in ("chosen", "rejected"))
            ],
            pairs[:1],
        )
    )
    assert scalar["1"]["overall"] == 0 and scalar["1"]["ties_half"] == 0.5
    choices = [{"source": "s", "id": "0", "choice": choice} for choice in ("chosen", "rejected", "chosen", None)]
    assert [one["overall"] for one in voted(read_judged(choices, pairs[:1])).values()] == [1, 0, 1]
    with pytest.raises(ValueError, match="pair 2 of s was not judged"):
        read_judged(records[:8], pairs)


def _made_up(seed: int) -> dict:
    rng = Random(seed)

    def of(level: float) -> dict:
        tasks = {task: level + rng.uniform(-0.01, 0.01) for task in FILES}
        return {
            "overall": sum(tasks.values()) / 4,
            "ties_half": level,
            "majority": level - 0.05,
            "margin": 1 + level,
            **tasks,
        }

    level = {"sft": 0.6, "patarm": 0.9, "bt": 0.7, "patarm_noise50": 0.62, "bt_noise50": 0.5}
    held_out = {arm: {str(n): of(level.get(arm, 0.65)) for n in (1, 2, 4, 8, 16)} for arm in ARMS}
    rm = {name: 0.5 for name in ("Overall", "Easy", "Normal", "Hard")} | {"cells": [[0.5] * 3] * 3}
    curve = {"step": [0, 10, 20], "accuracy": [0.5, 0.7, 0.8], "margin": [0.1, 1.0, 2.0 + seed / 10]}
    return {
        "seed": seed,
        "held_out": held_out,
        "rm_bench": {arm: {"1": rm, "8": rm} for arm in ("sft", "patarm", "bt", "pair")},
        "curves": {arm: curve for arm in ARMS},
        "entropy": {"patarm": [0.1, 0.08], "primary": [0.1, 0.04 + seed / 1000]},
    }


def test_tables_and_verdicts_of_made_up_runs():
    facts = [_made_up(seed) for seed in range(3)]
    texts = {name: as_markdown(experiment_of(name, facts)) for name in TABLES}
    assert (
        "- holds: RL lifts the pointwise judge above SFT alone on RewardBench, voting@1 (78.3 → 84.2" in texts["table1"]
    )
    assert "- does not hold: BTRM is above pointwise PaTaRM on RewardBench, voting@8" in texts["table1"]
    assert "- cannot be told: and on RM-Bench" in texts["table1"]  # equal numbers
    assert "| PaTaRM Qwen3-8B | 84.2 | 91 |" in texts["table1"] and "| PaTaRM | plain | 50.0 ± 0.0" in texts["table1"]
    assert "- does not hold: the margin between chosen and rejected decreases" in texts["figure3"]
    assert "- does not hold: at 50 % flipped labels PaTaRM loses at most 4 points" in texts["figure4"]
    assert "- holds: control of ours: without noise PaTaRM is above its step 0" in texts["figure4"]
    assert "- holds: average voting gains more than majority voting" in texts["figure5"]
    assert "- holds: with only primary the entropy decays faster" in texts["table4"] and "87.75" in texts["table4"]


def test_what_was_left_out_is_not_measured_and_breaks_nothing(tmp_path):
    facts = [_made_up(seed) for seed in range(2)]
    for of_seed in facts:
        for arm in [arm for arm in of_seed["held_out"] if arm.startswith(("bt", "patarm_noise100"))]:
            del of_seed["held_out"][arm]
    experiment = experiment_of("figure4", facts)
    text, judged = as_markdown(experiment), experiment.judged
    assert "| 100 % | - | - | - | - | - |" in text and "- not measured: at 50 % BTRM is near chance" in text
    assert sum(one.word is None for one in judged) == 6
    write_result(tmp_path, "figure4", text, about(experiment))
    write_page(tmp_path)
    assert "not measured" in (tmp_path / "report.html").read_text()


def test_the_page_shows_all_results_of_its_folder_as_they_were_written(tmp_path):
    for number, name in enumerate(TABLES):  # each by another command, of other seeds
        experiment = experiment_of(name, [_made_up(seed) for seed in range(number, number + 3)])
        write_result(tmp_path, name, as_markdown(experiment), about(experiment))
    for name in ("table8", "table9"):
        write_result(tmp_path, name, "", about(experiment_of(name, time_facts(name))))
    again = read_experiments(tmp_path)
    assert [one.name for one in again] == list(NEEDS)
    for one in again[: len(TABLES)]:
        assert as_markdown(one) + "\n" == (tmp_path / f"{one.name}.md").read_text()
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert all(escape(TITLES[name]) in page for name in NEEDS) and page.count("<svg") == 4
    (tmp_path / "table3.json").write_text("{}")
    with pytest.raises(ValueError, match=r"table3\.json: no facts of table3 .*; remove it") as told:
        write_page(tmp_path)
    assert "\n" not in str(told.value)


def test_a_seed_that_lacks_a_measurement_moves_no_other_one():
    facts = [_made_up(0), _made_up(0)]
    facts[1]["curves"] = {arm: {"step": [0, 20], "accuracy": [0.5, 0.8], "margin": [0.1, 2.0]} for arm in ARMS}
    rows = experiment_of("figure3", facts).tables[0].rows
    assert [row[:2] for row in rows[1:]] == [["0", "50.0 ± 0.0"], ["10", "70.0"], ["20", "80.0 ± 0.0"]]
    facts[1]["curves"] = {arm: {"step": [10, 20], "accuracy": [0.7, 0.8], "margin": [1.0, 2.0]} for arm in ARMS}
    decreases = next(one for one in judge(FINDINGS["figure3"], facts) if "decreases" in one.finding.claim)
    assert decreases.values == [pytest.approx(-1.9)]  # of the seed that has a step 0


def test_an_arm_is_measured_with_the_same_votes_by_every_experiment():
    """What one experiment has measured serves the others."""
    together = joined_needs(list(NEEDS.values())).held_out
    assert set(together) == set(ARMS)
    for needs in NEEDS.values():
        assert needs.held_out.items() <= together.items()
    assert with_starts(["primary", "bt"]) == ["sft", "sft_primary", "primary", "bt"]


def test_times_are_read_where_they_were_measured(tmp_path):
    table8 = experiment_of("table8", time_facts("table8"))
    assert table8.said == "3 timed turns of `bench/main.py step`, which stand for the seeds."
    assert "6.6 M parameters, lengths divided by 12, " in table8.tables[0].caption
    assert table8.tables[0].rows[3][0] == "4" and table8.tables[0].rows[3][3:] == ["125", "1.00"]
    assert table8.judged[0].word is not None
    table9 = experiment_of("table9", time_facts("table9", tmp_path / "downstream.json"))
    assert table9.said == "Not measured." and table9.facts == [] and {one.word for one in table9.judged} == {None}
    runs = [{"scalar": {"step_s": 1.0}, "judge": {"step_s": 1.2 + seed / 100}} for seed in range(3)]
    (tmp_path / "downstream.json").write_text(json.dumps({"runs": runs}))
    table9 = experiment_of("table9", time_facts("table9", tmp_path / "downstream.json"))
    assert table9.said.startswith("3 seeds") and table9.tables[0].rows[1][:2] == ["ours", "1.00 ± 0.00"]
    assert [one.word for one in table9.judged] == ["holds"] * 2


# Runs


def test_jobs_run_after_what_they_need_and_only_where_nothing_is_there(tmp_path):
    done: list[str] = []

    def job(name: str, *needs: str) -> Job:
        def work() -> None:
            done.append(name)
            (tmp_path / name).touch()

        return Job(name, tmp_path / name, needs, work)

    (tmp_path / "there").touch()
    told: list[str] = []
    run_jobs([job("c", "b", "there"), job("b", "a"), job("a"), job("there")], 2, told.append)
    assert done == ["a", "b", "c"] and told[-1].startswith("[3/3] c:")
    with pytest.raises(ValueError, match="d: ended without"):
        run_jobs([Job("d", tmp_path / "d", (), lambda: None)], 1)


def test_recipes_of_real_weights_are_run_by_the_same_plan(tmp_path):
    names = ("sft_point", "grpo_point", "bt")
    files = [f"data.{name}={name}.jsonl" for name in ("judgments", "pairs", "dev", "held_out")]
    scale = Scale(recipes=tuple(f"trainer/recipes/qwen3_8b_{name}.toml" for name in names), settings=tuple(files))
    runs = SeedRuns(scale, 3, tmp_path)
    needs = joined_needs([needs_of("table1"), needs_of("figure4", ["bt_noise20"])])
    names = [job.name.removeprefix("seed 3, ") for job in runs.jobs(needs)]
    assert names[:3] == ["sft", "patarm", "bt"] and "patarm_noise50: held-out" in names
    assert "bt_noise50" in names and "bt_noise20" not in names
    assert not any("RM-Bench" in name for name in names) and runs.file("held_out") == "held_out.jsonl"
    assert runs.recipe.grpo.pairs_per_step == 128 and runs.recipe.sft.rows_per_step == 512


def test_every_judge_is_asked_as_it_was_trained(tmp_path):
    runs = SeedRuns(Scale(recipes=("bench/paper/embedded.toml",)), 0, tmp_path)
    asked = {name: dict(zip(it := iter(runs._reading(arm)), it)) for name, arm in ARMS.items()}
    assert asked["pair"] == asked["sft_pair"]
    assert asked["pair"]["--mode"] == "pairwise" and asked["pair"]["--max-completion-tokens"] == "160"
    assert asked["primary"] == asked["patarm"] | {"--rubrics": "primary"}
    assert asked["patarm"]["--template"] == "bare" and asked["patarm"]["--max-completion-tokens"] == "80"


def test_a_failed_run_is_one_line_with_its_cause(tmp_path):
    scale = Scale(recipes=("bench/paper/embedded.toml",), settings=("sft.steps=-1",))
    with pytest.raises(ValueError, match="steps=-1 must be at least 0"):
        SeedRuns(scale, 0, tmp_path)


def test_a_folder_of_other_settings_is_refused_before_anything_is_made(tmp_path):
    """Finished or not: nothing of a run with other settings gets into the tables."""
    scale = Scale(recipes=("bench/paper/embedded.toml",))
    runs = SeedRuns(scale, 0, tmp_path)
    for arm in ("sft", "patarm"):
        (tmp_path / arm).mkdir()
        recipe = resolved(scale.recipes, [*runs._settings(ARMS[arm]), f"out={tmp_path / arm}"])
        (tmp_path / arm / "recipe.toml").write_text(to_toml(recipe))
        (tmp_path / arm / "report.md").touch()
    needs = needs_of("figure5")
    assert not any(job.name == "seed 0, patarm" and not job.result.is_file() for job in runs.jobs(needs))
    other = SeedRuns(Scale(recipes=scale.recipes, settings=("grpo.steps=31",)), 0, tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.toml: grpo\.steps: the run began with 30, not with 31"):
        other.jobs(needs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["paper", "table7"], "paper table7: no such experiment; expected all or some of table1"),
        (["paper", "table1", "--without", "sft"], "--without sft: expected some of sft_primary, "),
        (["paper", "table1", "--jobs", "0"], "--jobs must be at least 1"),
        (["paper", "table1", "--seeds", "a"], "--seeds a: must be whole numbers"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--work", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


TINY = [
    "model.small.hidden_size=16", "model.small.intermediate_size=16", "model.small.num_hidden_layers=1",
    "model.small.num_attention_heads=1", "model.small.num_key_value_heads=1", "model.small.head_dim=16",
    "data.embedded.num_sft_pairs=20", "data.embedded.num_rl_pairs=8", "data.embedded.num_dev_pairs=4",
    "data.embedded.num_held_out_pairs=12", "sft.steps=1", "grpo.steps=1", "grpo.pairs_per_step=2", "bt.steps=1",
    "rollout.max_completion_tokens=8",
]  # fmt: skip


@pytest.mark.slow
def test_a_tiny_run_ends_in_tables_and_is_not_made_twice(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    command = ["paper", "figure5", *TINY, "--seeds", "0", "--work", str(runs), "--out", str(out)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "[4/4]" in first and "one seed" in first
    record = json.loads((out / "figure5.json").read_text())
    assert record["facts"][0]["held_out"]["sft"]["16"]["num_pairs"] == 12
    assert "<svg" in (out / "report.html").read_text()
    assert main(command) == 0
    assert capsys.readouterr().out == first[first.index("##") :]
    assert (runs / "seed-0" / "patarm" / "recipe.toml").is_file()
