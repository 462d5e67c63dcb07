"""report.html: valid, safe, the same bytes for the same folder, whatever the run has come to."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.trainer.test_report import GRPO, RESULTS, SFT
from trainer.held_out import policy_summary
from trainer.html_report import RunRecord, page, read_run, write_report
from trainer.html_samples import spread
from trainer.policy import Answer

VOID = {"meta", "br", "hr", "line", "rect", "polyline"}  # the last three close themselves
HOSTILE = "</script></pre></style><img src=x onerror=alert(1)>\"'&lt;<answer>9</answer>"
WARNINGS = [
    {"stage": "grpo", "step": step, "sign": sign, "event": event, "metric": "margin", "value": 0.1, "bound": 0.5,
     "text": f"margin 0.1 {HOSTILE}"}
    for step, sign, event in [(1, "margin decay", "begins"), (2, "margin decay", "ends"), (2, "format decay", "begins")]
]  # fmt: skip


def sample(step: int, side: str, **changes) -> dict:
    return {
        "stage": "grpo", "step": step, "source": "tiny", "id": "7", "side": side, "judgment": f"{side} is fine",
        "score": 8.25, "error": None, "reward": 1.2, "prompt": "Why?", "response": f"The {side} one.",
    } | changes  # fmt: skip


FULL = RunRecord(
    name="run", recipe='out = "runs/x"\n', is_finished=True, metrics=SFT + [r | {"reward": 1.0} for r in GRPO],
    samples=[sample(step, side) for step in (1, 2) for side in ("chosen", "rejected")], warnings=WARNINGS,
    results=RESULTS, machine={"device": "CPU", "torch": "2.13", "commit": "abc"}, wall_s=7260.0,
)  # fmt: skip


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps texts, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.mark.parametrize(
    "run",
    [
        FULL,
        RunRecord("run", "", False),
        RunRecord("run", "", False, metrics=SFT[:1]),
        RunRecord("run", "", False, metrics=[{"stage": "grpo", "step": 1, "reward": None, "margin": None}]),
        RunRecord("run", "", False, results=RESULTS),
        RunRecord("run", "", False, samples=[sample(1, "chosen")], warnings=WARNINGS),
    ],
    ids=["full", "empty", "one step", "nulls", "held-out alone", "no metrics"],
)
def test_a_page_is_valid_and_needs_nothing_else(run):
    text = page(run)
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>") and found.tags[:2] == ["html", "head"]
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [value for name, value in found.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "nan" not in text.lower().replace("sans", "") and "Infinity" not in text


def test_one_prompt_shows_no_spread_and_gets_no_interval():
    told = policy_summary([[Answer("Tea.", 2, False, checked, None) for checked in (1.0, 0.5)]], ["chat"])
    assert told["accuracy"] == 0.75 and "low" not in told
    words = " ".join(Page(page(RunRecord("run", "", False, answered={"rlhf": told}))).texts)
    assert "75.0% no interval" in " ".join(words.split()) and "75.0% - 75.0%" not in words
    told = policy_summary([[Answer("Tea.", 2, False, checked, None)] for checked in (1.0, 0.0)], ["chat"] * 2)
    assert told["low"] < 0.5 < told["high"]


def test_what_a_model_or_a_file_wrote_is_text_and_nothing_else():
    texts = {"judgment": HOSTILE, "prompt": HOSTILE, "response": HOSTILE, "id": HOSTILE, "source": HOSTILE,
             "stage": HOSTILE, "error": HOSTILE}  # fmt: skip
    hostile = RunRecord(
        name=HOSTILE, recipe=HOSTILE, is_finished=False, metrics=[record | {"stage": HOSTILE} for record in GRPO],
        samples=[sample(1, side, **texts) for side in ("chosen", "rejected")],
        warnings=[w | {"stage": HOSTILE, "sign": HOSTILE} for w in WARNINGS],
        results={HOSTILE: RESULTS["grpo"] | {"by_task": {HOSTILE: RESULTS["grpo"]["votes"][0]}}},
        machine={"device": HOSTILE, "torch": HOSTILE, "commit": HOSTILE},
    )  # fmt: skip
    text = page(hostile)
    found = Page(text)
    assert not {"script", "img", "answer"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert text.count("<style>") == text.count("</style>") == 1
    assert found.text.count(HOSTILE) >= 15


def test_both_sides_of_a_pair_stand_side_by_side_with_what_they_earned():
    sides = [
        sample(3, "chosen", judgment="<answer>8.25</answer>"),
        sample(3, "rejected", score=None, error="tags", reward=-1.5),
    ]
    found = Page(page(RunRecord("run", "", False, samples=sides)))
    words = " ".join(" ".join(found.texts).split())
    assert "grpo step 3 scores 8.25 : - tiny, 7 prompt Why?" in words
    assert "chosen score 8.25 reward +1.2 response The chosen one. judgment <answer> 8.25 </answer>" in words
    assert "rejected score - reward -1.5 tags error response The rejected one. judgment rejected is fine" in words
    assert [value for name, value in found.attributes if value == "tag"] == ["tag", "tag"]
    assert found.tags.count("details") == 2 and ("open", None) in found.attributes


def test_a_policys_answers_are_no_judgments():
    of_answer = {"stage": "rlhf", "step": 2, "source": "tiny", "side": "answer", "prompt": "Why?", "response": "So."}
    samples = [
        of_answer | {"id": "7", "judgment": "", "score": 0.5, "problem": None, "checked": 0.25},
        of_answer | {"id": "8", "judgment": "<answer>x</answer>", "score": None, "problem": HOSTILE, "checked": None},
    ]
    found = Page(
        page(RunRecord("run", "", False, metrics=[{"stage": "rlhf", "step": 2, "reward": 0.5}], samples=samples))
    )
    words = " ".join(" ".join(found.texts).split())
    assert "Answers The first answer to each of a few prompts, as sampled in training;" in words
    assert "tiny, 7 prompt Why? answer score 0.5, checker 0.25 response So. tiny, 8 prompt" in words
    assert f"answer score - {HOSTILE} response So. judgment <answer> x </answer>" in words
    assert "silent reward, over-optimisation." in words


def test_a_few_steps_are_shown_the_first_and_the_last_among_them():
    samples = [sample(step, side) for step in range(1, 101) for side in ("chosen", "rejected")]
    text = Page(page(RunRecord("run", "", False, samples=samples))).text
    assert "12 of 100 sampled steps" in text
    assert "grpo step 1 " in text and "grpo step 100 " in text
    assert [spread(range(n), 3) for n in (0, 1, 3, 5)] == [[], [0], [0, 1, 2], [0, 2, 4]]


def test_numbers_of_the_run_are_told():
    text = Page(page(FULL)).text
    assert "finished; sft at step 5, grpo at step 3 on CPU, torch 2.13, commit abc" in text
    assert "held-out accuracy, grpo, voting@885.0%95 %: 80.0% - 89.0%; initial: 50.0%" in text
    assert "best dev accuracy70.0%grpo step 3; 1 measurements" in text
    assert "2 h 01 min" in text
    for cell in ("after GRPO", "68.0%", "63.0% - 72.0%", "12,346", "margin decay", "still shows"):
        assert cell in text
    assert 'title="rollout: 1.00 s"' in page(FULL) and "width:46.5%" in page(FULL)  # of 2.15 s


def test_a_warning_is_told_with_its_end_and_shades_its_panel():
    figures = page(FULL).split("<figure>")[1:]
    shaded = [figure.partition("</h3>")[0] for figure in figures if "shade" in figure]
    assert shaded == ["<h3>margin: mean chosen - mean rejected score"]
    quiet = Page(page(RunRecord("run", "", False, metrics=[GRPO[0] | {"reward": 1.0}]))).text
    assert "None. What was watched for: entropy collapse, margin decay" in quiet
    assert "Warnings" not in Page(page(RunRecord("run", "", False, metrics=SFT))).text  # nothing was watched


def write_run(folder) -> None:
    folder.mkdir()
    (folder / "recipe.toml").write_text('stages = ["grpo"]\n')
    for name, rows in (("metrics", FULL.metrics), ("samples", FULL.samples), ("warnings", FULL.warnings)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report.json").write_text(json.dumps({"held_out": RESULTS, "wall_s": 60.0, "machine": FULL.machine}))


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    write_run(tmp_path / "run")
    first = write_report(tmp_path / "run").read_bytes()
    assert write_report(tmp_path / "run").read_bytes() == first
    assert not list((tmp_path / "run").glob("*.partial"))
    write_run(tmp_path / "other")
    assert write_report(tmp_path / "other").read_bytes() == first.replace(b"run</h1>", b"other</h1>").replace(
        b"<title>run ", b"<title>other "
    )


def test_a_run_is_finished_once_all_of_its_stages_have_left_their_model(tmp_path):
    write_run(tmp_path / "run")
    assert not read_run(tmp_path / "run").is_finished
    (tmp_path / "run" / "models" / "grpo").mkdir(parents=True)
    (tmp_path / "run" / "models" / "grpo" / "config.json").write_text("{}")
    assert read_run(tmp_path / "run").is_finished


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path):
    write_run(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as log:
        log.write(b'{"stage": "grpo", "st')
    assert read_run(tmp_path / "run").metrics == FULL.metrics


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("metrics.jsonl", '{"a": 1}\n{"a"\n', "metrics.jsonl:2: not a JSON object: "),
        ("samples.jsonl", "[1]\n", "samples.jsonl:1: not a JSON object: "),
        ("report.json", "{", "report.json: not JSON: "),
        ("recipe.toml", "stages = [", "recipe.toml: not TOML: "),
    ],
)
def test_a_file_that_no_run_leaves_is_named(tmp_path, file, text, problem):
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).write_text(text)
    with pytest.raises(ValueError) as error:
        read_run(tmp_path / "run")
    assert str(error.value).startswith(f"{tmp_path / 'run'}/{problem}")


def test_values_that_are_not_finite_leave_a_gap_and_no_error(tmp_path):
    rows = [
        {"stage": "grpo", "step": n, "margin": v, "loss": v} for n, v in enumerate([1.0, math.nan, math.inf, 2.0], 1)
    ]
    text = page(RunRecord("run", "", False, metrics=rows))
    Page(text)
    assert "from 1 to 2" in text


def test_the_page_is_made_without_torch():
    """Loading it takes half a minute on a cold machine."""
    program = "import sys, trainer.html_report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_choice_between_both_responses_is_shown_as_one():
    row = {
        "stage": "grpo", "step": 1, "source": "tiny", "id": "7", "is_swapped": True, "judgment": f"I choose {HOSTILE}",
        "choice": "rejected", "error": None, "reward": 0.0, "prompt": "Why?", "response": "A: bad\n\nB: good",
    }  # fmt: skip
    shown = Page(page(replace(FULL, samples=[row, row | {"step": 2, "choice": None, "error": "tags"}])))
    text = " ".join(shown.texts)
    for part in ("choices rejected", "both responses", "choice rejected", "choice -", "tags error", "B: good"):
        assert part in text
    assert "script" not in shown.tags and "img" not in shown.tags
