import json

import pytest

from eval.main import main
from tests.tiny_runs import records, settings, train


@pytest.fixture(scope="module")
def run(tiny_judge, tiny_files, tmp_path_factory):
    """A run that measured the tiny judge on the held-out pairs before its first and only step."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(settings(tiny_files) | {"out": out, "model.path": tiny_judge, "stages": ["sft"], "sft.steps": 1, "seed": 3})
    return out


def options(judge, files, **more):
    chosen = {
        "model": judge, "data": files["data.held_out"], "rubrics-file": files["prompt.rubrics_file"], "votes": "1,3",
        "rubrics": "primary", "template": "bare", "max-completion-tokens": 24, "seed": 3,
    } | more  # fmt: skip
    return ["pairs", *(part for key, value in chosen.items() for part in (f"--{key}", str(value)))]


def test_the_numbers_of_a_training_run_come_out_again(run, tiny_judge, tiny_files, tmp_path, capsys):
    assert main(options(tiny_judge, tiny_files, out=tmp_path / "judgments.jsonl")) == 0
    held_out = json.loads((run / "report.json").read_text())["held_out"]["initial"]
    shown = capsys.readouterr().out
    for votes in held_out["votes"]:
        assert f"| {votes['votes']} | {votes['accuracy']:.1%} | {votes['low']:.1%} - {votes['high']:.1%} |" in shown
    rows = records(tmp_path, "judgments.jsonl")
    assert len(rows) == 6 * 2 * 3
    assert sum(row["error"] is None for row in rows) / len(rows) == held_out["valid_rate"]
    assert all(row["score"] is not None for row in rows if row["error"] is None)


def test_a_judge_that_chooses_is_measured_by_majority_and_keeps_what_it_wrote(tiny_judge, tiny_files, tmp_path, capsys):
    """The tiny judge writes numbers, which are no choices: nothing is scored, and nothing is counted as right."""
    file = tmp_path / "judgments.jsonl"
    assert main(options(tiny_judge, tiny_files, mode="pairwise", out=file)) == 0
    rows = records(tmp_path, "judgments.jsonl")
    assert len(rows) == 6 * 3 and {row["is_swapped"] for row in rows} == {True, False}
    assert {row["choice"] for row in rows} == {None} and "score" in {row["error"] for row in rows}
    assert "| 0.0% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"votes": "1,x"}, "--votes 1,x"),
        ({"votes": "0"}, "--votes 0"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"model": "nowhere"}, "config.json: no such file"),
        ({"max-context-tokens": 5}, "max_context_tokens is 5"),
        ({"temperature": -1}, "temperature=-1.0 must be"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(change, message, tiny_judge, tiny_files, tmp_path, capsys):
    assert main(options(tiny_judge, tiny_files, **change, out=tmp_path / "judgments.jsonl")) == 1
    assert list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_file_that_exists_is_not_written_over(tiny_judge, tiny_files, tmp_path, capsys):
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine")
    assert main(options(tiny_judge, tiny_files, out=kept)) == 1
    assert kept.read_text() == "mine" and "exists already" in capsys.readouterr().err
