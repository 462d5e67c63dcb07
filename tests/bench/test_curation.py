"""What the benchmark of the data pipeline reports, on a few rows; the pipeline is tested with the trainer."""

import gzip
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import curation
from patarm_core.curation.sources import GSM8K_MODELS
from rollout.text_files import read_records
from tests.eval.data.layouts import hep_row, lines
from trainer.main import main

WORDS = ("sorts a list of numbers", "reverses a string", "counts the vowels", "finds a prime", "merges two tables")


@pytest.fixture
def data(tmp_path) -> Path:
    """Twelve pairs of RMB, two questions of GSM8K (2 x 2 pairs each) and five prompts of HumanEvalPack."""
    folder = tmp_path / "data"
    for name in ("rmb", "gsm8k", "hep"):
        (folder / name).mkdir(parents=True)
    rows = [{"id": f"r{i}", "prompt": f"What is {i} in Roman numerals?", "chosen": f"good {i}", "rejected": f"bad {i}",
             "category": "Helpfulness/Chat"} for i in range(12)]  # fmt: skip
    with gzip.open(folder / "rmb" / "pairs_4000.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    solved = [{"question": f"Ann has {i} apples and buys three. How many?"}
              | {model: {"is_correct": k < 2, "solution": f"{i} and {k}"} for k, model in enumerate(GSM8K_MODELS)}
              for i in range(2)]  # fmt: skip
    lines(folder / "gsm8k" / "example_model_solutions.jsonl", solved)
    asked = [hep_row(i, instruction=f"Write a function that {what}, and give it back in order without any of the "
                     "standard library's help, however long the input may be.")
             for i, what in enumerate(WORDS)]  # fmt: skip
    lines(folder / "hep" / "python.jsonl", asked)
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    def run(out, settings):
        assert main(curation._command(out, settings)[2:]) == 0
        return out

    monkeypatch.setattr(curation, "_run", run)


def test_every_planted_prompt_is_caught_and_every_row_of_the_sources_counted(data, tmp_path, in_this_process):
    parts = []
    found = curation._whole(data, tmp_path / "whole", parts)
    assert (found["planted"], found["caught"], found["other"]) == (5, 5, 0)
    assert found["report"]["total"]["initial"] == 12 + 2 * 4 + 5
    initial = dict(line.split(" | ")[:2] for line in parts[2].splitlines()[2:])
    assert initial == {"| gsm8k": "8", "| planted": "5", "| rmb": "12", "| total": "25"}
    assert [stage["stage"] for stage in found["timings"]] == list(curation.STAGES)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in parts[1].splitlines()[2:]]
    assert [row[:3] for row in table] == [[s["stage"], str(s["kept"]), str(s["dropped"])] for s in found["timings"]]
    (of_decontamination,) = [row for row in table if row[0] == "decontaminate"]
    assert of_decontamination[1:3] == ["20", "5"]
    for row, stage in zip(table, found["timings"], strict=True):
        num = stage["kept"] + stage["dropped"]
        assert row[4] == f"{num / max(stage['seconds'], 1e-3):,.0f}"
    assert "caught 5. Of all other pairs 0." in parts[3]


def test_judgments_are_drawn_for_every_pair_that_comes_of_the_first_rows(data, tmp_path):
    curation._drawn_settings(data, tmp_path, 1)
    rows = read_records(tmp_path / "judgments.jsonl")
    assert [(row["source"], row["id"]) for row in rows] == [("rmb", "r0")] + [
        ("gsm8k", f"1-{good}-{bad}") for good in GSM8K_MODELS[:2] for bad in GSM8K_MODELS[2:]
    ]
    assert all(len(row["chosen"]) == len(row["rejected"]) == 8 for row in rows)


def test_rollouts_a_second_are_of_both_sides_and_eight_each(data, tmp_path, monkeypatch):
    def run(out, settings):
        lines_of = [{"stage": "rollouts", "kept": 3, "dropped": 1, "seconds": 4.0}]
        out.mkdir(parents=True)
        lines(out / "timings.jsonl", lines_of)
        (out / "report.json").write_text("{}")
        (out / "report.md").write_text("# title\n\ntable\n\nend")
        return out

    monkeypatch.setattr(curation, "_run", run)
    parts = []
    curation._judged(data, tmp_path / "judged", "a-judge", 1, parts)
    assert "on 1 questions" in parts[0] and "48 rollouts in 4.0 s, 12.0 a second" in parts[0]
    assert parts[1] == "table"
    assert len(read_records(tmp_path / "judged" / "gsm8k.jsonl")) == 1


@pytest.mark.parametrize(
    ("caught", "is_equal", "told"),
    [(5, True, None), (4, True, "4 of 5 planted"), (5, False, "1 resumed runs differ, the first killed in select")],
)
def test_a_missed_prompt_or_other_bytes_fail_after_the_results_are_written(
    caught, is_equal, told, tmp_path, monkeypatch
):
    kill = {"aim": "select", "stage": "select", "status": -9, "is_equal": is_equal}
    monkeypatch.setattr(curation, "_whole", lambda *_: {"planted": 5, "caught": caught})
    monkeypatch.setattr(curation, "_kills", lambda *_: [kill])
    with nullcontext() if told is None else pytest.raises(RuntimeError, match=told):
        curation.run_curation(tmp_path, "", 1, 1, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "curation.json").read_text())["kills"] == [kill]
