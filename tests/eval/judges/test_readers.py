"""Readers of judges' texts: what each of them takes, that none raises on any string, and that none makes up a score."""

import itertools
import json
import math
import random
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.judges.baselines import deepseek_grm, judgelrm, mt_bench, r3, rewardanything, rm_r1, rrm
from eval.judges.patarm import patarm_form
from eval.judges.reading import after_thinking, between, whole_number
from eval.judges.spec import BASELINES
from patarm_core.rubrics import default_rubrics

FORMS = {**BASELINES, **{t: patarm_form(default_rubrics(), template=t) for t in ("full", "general")}}
READERS = [(form, mode) for form in FORMS.values() for mode in form.reads]
each_reader = pytest.mark.parametrize(("form", "mode"), READERS, ids=lambda x: getattr(x, "name", x))

# Pieces of which judgments of all kinds are made, whole and broken.
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<eval>", "</eval>", "<generate_rubrics>", "</generate_rubrics>",
    "[[A]]", "[[B]]", "[[C]]", "[[", "]]", r"\boxed{", "}", "{", r"\text{", "Assistant 1", "Assistant 2", ",", ".", " ",
    "\n", '"score"', '\\"score\\"', "score", ":", '"', "Response 1", "Response 2", '{"scores": {"model-1": ', "model-2",
    ', "model-2": ', '"best-to-worst": ', '["model-2", "model-1"]', "```json", "A", "B", "0", "1", "5", "7.5", "8",
    "10", "11", "-3", "1e1", "nan", "Infinity", "９", "٣", "8/10", "true", "null", "I cannot judge this.", "\ud800",
    "\x00", "é",
]  # fmt: skip
WHOLE = [
    "<answer>8</answer><answer>7</answer>", "<answer>A</answer>", "<answer>0</answer>", "<answer>[[B]]</answer>",
    r"\boxed{Assistant 2}", r"Scores: \boxed{7, 4}", r"\boxed{0}", r"\boxed{6}", '{"explanation": "x", "score": "4"}',
    '"score": "Response 1"', '"score": 0', '{"scores": {"model-1": 2, "model-2": 4}, "best-to-worst": []}',
]  # fmt: skip


def check(form, mode, text):
    """A reading is an answer or an error; an answer of 0 is there only where a 0 was written and allowed."""
    found = form.reads[mode](text)
    answer = found.score if mode == "pointwise" else found.choice
    assert (answer is None) == (found.error is not None), (form.name, mode, text)
    assert found.error is None or found.error.startswith("unparsed: ")
    if mode == "pointwise" and answer is not None:
        assert math.isfinite(answer) and 0 <= answer <= 10
        assert answer != 0 or ("0" in text and form.name in ("patarm", "general")), (form.name, text)
    if found.scores is not None:
        assert all(1 <= score <= 10 for score in found.scores)
    return found


@each_reader
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES + WHOLE)).map("".join)))
@settings(max_examples=150)
@example(text="")
@example(text="9" * 5000)
@example(text=r"\boxed{" + "9" * 5000 + "}")
@example(text='{"scores": {"model-1": ' + "9" * 5000 + "}}")
@example(text="[" * 5000 + "{" * 5000 + "}" * 5000)
def test_any_string_gets_an_answer_or_an_error(form, mode, text):
    check(form, mode, text)


def test_a_hundred_thousand_outputs_crash_nothing_and_none_becomes_a_silent_0():
    rng, num_answers = random.Random(0), 0
    readers = itertools.cycle(READERS)
    for _ in range(100_000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)) + rng.choices(WHOLE, k=rng.randrange(2)))
        if rng.random() < 0.2:  # a mutation: something is cut off, repeated or replaced
            at = rng.randrange(len(text) + 1)
            text = text[:at] + chr(rng.randrange(1, 0xD7FF)) + text[at + rng.randrange(3) :]
        for _ in range(3):
            num_answers += check(*next(readers), text).error is None
    assert 20_000 < num_answers < 200_000  # both kinds were met


@each_reader
@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", r"\boxed{", '"score":', "score ", "<think>", "{", "[[A", " ", "}"]
)
def test_reading_takes_linear_time(form, mode, piece):
    """A reader that scans from every mark would take minutes here, or as many times longer for the longer text."""
    begun = time.process_time()
    check(form, mode, piece * 40_000)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "text, choice",
    [
        ("<answer>8</answer><answer>7</answer><|im_end|>", "A"),
        ("…</think><answer> 3 </answer>\n<answer>10</answer>", "B"),
        ("<answer>5</answer><answer>5</answer>", "tie"),
        ("<answer>1</answer> no: </think><answer>5</answer><answer>4</answer>", "A"),  # the thinking is not the answer
        ("<answer>5</answer>", None),
        ("<answer>8.5</answer><answer>7</answer>", None),  # as the original: int() refuses it
        ("<answer>11</answer><answer>7</answer>", None),
        ("<think><answer>8</answer><answer>7</answer>", None),
    ],
)
def test_judgelrm(text, choice):
    assert judgelrm.read(text).choice == choice


def test_judgelrm_reads_999_recorded_outputs_as_they_were_counted():
    file = Path(__file__).resolve().parents[4] / "shared/data/parity/judgelrm7b_outputs.json"
    if not file.exists():
        pytest.skip("shared/data/parity/judgelrm7b_outputs.json is not here")
    rows = json.loads(file.read_text(encoding="utf-8"))
    named = {1: "A", 2: "B", 0: "tie"}
    assert len(rows) == 999
    assert [judgelrm.read(row["output"]).choice for row in rows] == [named[row["result"]] for row in rows]


@pytest.mark.parametrize(
    "text, choice",
    [
        (r"so </think> \boxed{Assistant 2}", "B"),
        (r"\boxed{\text{Assistant 1}}", "A"),
        (r"first \boxed{Assistant 1}, no, \boxed{Assistant 2}", "B"),
        (r"\boxed{Assistant 1}</think> undecided", None),
        (r"\boxed{Assistant 3}", None),
        ("Assistant 1", None),
    ],
)
def test_rrm(text, choice):
    assert rrm.read(text).choice == choice


@pytest.mark.parametrize(
    "text, of_rm_r1, of_mt_bench",
    [
        ("<answer>[[A]]</answer>", "A", "A"),
        ("verdict: [[B]]", "B", "B"),
        ("[[B]] or rather [[A]]", None, "A"),  # RM-R1: both are none; RewardBench looks for A first
        ("<think>[[A]]</think><answer>[[B]]</answer>", "B", "A"),
        ("[[C]]", None, None),
        ("[[ A ]]", None, None),
    ],
)
def test_bracketed_verdicts(text, of_rm_r1, of_mt_bench):
    assert rm_r1.read(text).choice == of_rm_r1 and mt_bench.read(text).choice == of_mt_bench


@pytest.mark.parametrize(
    "text, one, two",
    [
        (r"Scores: \boxed{7}", 7, None),
        (r"Scores: \boxed{7, 4}.", None, (7, 4)),
        (r"such as \boxed{x, x}: \boxed{ 10,1 }", None, (10, 1)),
        (r"\boxed{0}", None, None),
        (r"\boxed{7.5}", None, None),
        (r"\boxed{7, 4, 2}", None, None),
        (r"\boxed{5} then \boxed{6}", 6, None),
    ],
)
def test_deepseek_grm(text, one, two):
    assert deepseek_grm.read_one(text).score == one and deepseek_grm.read_two(text).scores == two


@pytest.mark.parametrize(
    "text, one, two",
    [
        ('{"explanation": "x", "score": "4"}', 4, None),
        ('{"score": 3.9}', 3, None),  # the original cuts decimals off
        (r"{\"score\": \"Response 2\"}", None, "B"),
        ('think "score": 1 </think> "score": "Response 1"', None, "A"),
        ('"score": "Response 3"', None, None),
        ('"score": 6', None, None),
        ('"score": 0', None, None),
        ('"score": 4/5', 4, None),
        ('"score": 45', None, None),
    ],
)
def test_r3(text, one, two):
    assert r3.read_one(text).score == one and r3.read_two(text).choice == two


@pytest.mark.parametrize(
    "text, choice",
    [
        (
            '</think>```json\n{"scores": {"model-1": 2, "model-2": 4}, "best-to-worst": ["model-2", "model-1"]}\n```',
            "B",
        ),
        ('{"scores": {"model-1": 4, "model-2": 4}, "best-to-worst": ["model-2", "model-1"]}', "B"),
        ('{"scores": {"model-1": 4, "model-2": 4}}', "tie"),
        ('{"scores": {"model-1": 4}}', None),
        ('{"scores": {"model-1": 4, "model-2": 40}}', None),
        ('{"scores": [4, 2]}', None),
        ('{"scores": {"model-1": true, "model-2": NaN}}', None),
        ("[1]", None),
    ],
)
def test_rewardanything(text, choice):
    assert rewardanything.read(text).choice == choice


def test_pieces_of_readers():
    assert list(between("a<x>1</x><x><x>2</x></x><x>3", "<x>", "</x>")) == ["1", "2"]
    assert after_thinking("a</think>b</think>c") == "c" and after_thinking("a") == "a"
    assert after_thinking("<think>a") == ""
    assert [whole_number(t, 0, 10) for t in (" 7 ", "0", "10", "11", "7.", "-1", "७", "1_0", "")] == [7, 0, 10] + [
        None
    ] * 6
