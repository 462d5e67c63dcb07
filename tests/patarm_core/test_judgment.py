"""The two readers against a slow second reading of the grammar, on hostile strings and on long ones."""

import dataclasses
import random
import time
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core import judgment as judgment_module
from patarm_core.judgment import ALL_TAGS, INPUT_TAGS, JUDGMENT_TAGS, MAX_DECIMALS, Judgment, parse, read_answer
from tests.strategies import judgment_text

TAGS = [f"<{slash}{name}>" for name in JUDGMENT_TAGS for slash in ("", "/")]
SETTINGS = [(answer, rubrics) for answer in ("score", "choice") for rubrics in ("adaptive", "primary", "generated")]
texts_without_tags = st.text(max_size=30).filter(lambda text: not any(tag in text for tag in TAGS))
spaces = st.text(st.sampled_from(" \t\r\n\u00a0\u2003"), max_size=3)


# --- the oracle: one character at a time, no regular expression, no numeric parsing -----------------------------------


def slow_tags(text):
    """(position, tag) of every tag in the text."""
    return [(i, tag) for i, c in enumerate(text) if c == "<" for tag in TAGS if text.startswith(tag, i)]


def without_space(text):
    first, last = 0, len(text)
    while first < last and text[first].isspace():
        first += 1
    while first < last and text[last - 1].isspace():
        last -= 1
    return text[first:last]


def slow_value(text, answer):
    text = without_space(text)
    if answer == "choice":
        return {"A": "A", "B": "B"}.get(text)
    value, unit, seen_point = Fraction(0), Fraction(1), False
    for i, c in enumerate(text):
        if c == "." and not seen_point and 0 < i < len(text) - 1:
            seen_point = True
        elif c in {*"0123456789"}:
            value = 10 * value + "0123456789".index(c)
            unit = unit / 10 if seen_point else unit
        else:
            return None
    return value * unit if text and value * unit <= 10 else None


def slow_parse(text, answer, rubrics):
    names = [name for name in JUDGMENT_TAGS if not (rubrics == "primary" and name == "generate_rubrics")]
    blocks, position = {}, 0
    for name in names:
        for tag in (f"<{name}>", f"</{name}>"):
            following = [(i, found) for i, found in slow_tags(text) if i >= position]
            if not following or following[0][1] != tag:
                return Judgment(error="tags")
            blocks[name] = text[position : following[0][0]]
            position = following[0][0] + len(tag)
    if without_space(text[position:]) != "":
        return Judgment(error="tags")
    value = slow_value(blocks["answer"], answer)
    return Judgment(
        blocks["think"],
        blocks.get("generate_rubrics"),
        blocks["eval"],
        value if answer == "score" else None,
        value if answer == "choice" else None,
        "score" if value is None else None,
    )


def slow_read_answer(text, answer):
    found, last = slow_tags(text), None
    for (i, tag), (j, next_tag) in pairwise(found):
        if (tag, next_tag) == ("<answer>", "</answer>"):
            value = slow_value(text[i + len("<answer>") : j], answer)
            last = value if value is not None else last
    return last


# --- the grammar ------------------------------------------------------------------------------------------------------


@given(st.lists(texts_without_tags, min_size=8, max_size=8), st.integers(0, 1000), spaces, spaces, spaces)
@example([""] * 8, 0, "", "", "")
@example(
    ["<Think>", "<think", "< eval>", "<eval/>", "</answer", "ANSWER>", "<response>", "</task>"], 1000, " ", " ", "\n"
)
def test_a_judgment_in_order_is_read_back(texts, hundredths, before, after, tail):
    think, rubrics, evaluation, *between = texts
    score = f"{hundredths // 100}.{hundredths % 100:02d}"
    text = (
        f"{between[0]}<think>{think}</think>{between[1]}<generate_rubrics>{rubrics}</generate_rubrics>"
        f"{between[2]}<eval>{evaluation}</eval>{between[3]}<answer>{before}{score}{after}</answer>{tail}"
    )
    assert parse(text) == Judgment(think, rubrics, evaluation, score=Fraction(hundredths, 100))
    assert parse(text, rubrics="generated") == parse(text)
    assert parse(text, rubrics="primary") == Judgment(error="tags")
    assert read_answer(text) == Fraction(hundredths, 100)


def test_all_101_values_are_read_exactly():
    for tenths in range(101):
        for written in {f"{tenths / 10}", f"{tenths / 10:.2f}"}:
            assert parse(judgment_text(written)).score == Fraction(tenths, 10)


@pytest.mark.parametrize(
    ("written", "score"),
    [
        ("7", Fraction(7)),
        ("7.25", Fraction(29, 4)),
        (" 8.3 ", Fraction(83, 10)),
        ("\n10\n", Fraction(10)),
        ("10.000", Fraction(10)),
        ("0", Fraction(0)),
        ("0.0", Fraction(0)),
        ("007.50", Fraction(15, 2)),
        ("0" * 5000 + "7.0", Fraction(7)),
        ("7." + "0" * 5000, Fraction(7)),
        ("0." + "0" * 3998 + "1", Fraction(1, 10**3999)),
        ("9." + "9" * MAX_DECIMALS, 10 - Fraction(1, 10**MAX_DECIMALS)),
        ("9." + "9" * 5000, 10 - Fraction(1, 10**MAX_DECIMALS)),  # cut, not refused and not rounded up
    ],
)
def test_a_plain_decimal_from_0_to_10_is_a_score(written, score):
    parsed = parse(judgment_text(written))
    assert (parsed.score, parsed.error, parsed.format_reward) == (score, None, 0.0)
    assert read_answer(f"text <answer>{written}</answer> text") == score
    repr(parsed)  # integers above 4300 digits would not print


INVALID_SCORES = [
    *(
        "8/10",
        "nan",
        "inf",
        "1e1",
        "-1",
        "−1",
        "+7",
        "-0",
        "7.",
        ".5",
        ".",
        "7,5",
        "11",
        "10.1",
        "100",
        "010.5",
        "",
        " ",
    ),
    *(
        "０",
        "٣",
        "7.٣",
        "²",
        "½",
        "Ⅶ",
        "seven",
        "7 8",
        "7 .5",
        "7. 5",
        "7.5.1",
        "1_0",
        "0x7",
        "7\x00",
        "\ud800",
        "7\u200b",
    ),
    *("**7**", "7/10", "A", "<b>7</b>", "10." + "0" * 5000 + "1", "1" + "0" * 5000, "7.5%", "7;", "(7)"),
]


@pytest.mark.parametrize("written", INVALID_SCORES)
def test_anything_else_is_an_invalid_score(written):
    parsed = parse(judgment_text(written))
    assert (parsed.score, parsed.choice, parsed.error, parsed.format_reward) == (None, None, "score", -1.0)
    assert parsed.think == "I compare." and parsed.evaluation == "It is short."
    assert read_answer(judgment_text(written)) is None


@pytest.mark.parametrize("written", ["A", " A\n", "B"])
def test_a_choice_is_a_or_b(written):
    parsed = parse(judgment_text(written), answer="choice")
    assert (parsed.choice, parsed.score, parsed.error) == (written.strip(), None, None)
    assert read_answer(judgment_text(written), answer="choice") == written.strip()


@pytest.mark.parametrize("written", ["", "a", "AB", "A B", "A.", "C", "tie", "7", "А", "[[A]]", "A or B"])
def test_anything_else_is_an_invalid_choice(written):
    parsed = parse(judgment_text(written), answer="choice")
    assert (parsed.choice, parsed.error, parsed.format_reward) == (None, "score", -1.0)
    assert read_answer(judgment_text(written), answer="choice") is None


GOOD = judgment_text("8.3")
TAG_ERRORS = {
    "empty": "",
    "only the answer": "<answer>8.3</answer>",
    "text after": GOOD + ".",
    "a NUL after": GOOD + "\x00",
    "a second judgment": GOOD + GOOD,
    "an end-of-turn token after": GOOD + "<|im_end|>",
    "nested answer": GOOD.replace("8.3", "<answer>8.3</answer>"),
    "repeated answer": GOOD.replace("<answer>", "<answer>7</answer><answer>"),
    "eval within think": GOOD.replace("I compare.", "<eval>x</eval>"),
    "a tag quoted in think": GOOD.replace("I compare.", "then I close </think>"),
    "a tag between blocks": GOOD.replace("</eval>", "</eval><think>"),
    "a tag before": "</think>" + GOOD,
    "other order": "<generate_rubrics></generate_rubrics><think></think><eval></eval><answer>8</answer>",
    "closed before opened": GOOD.replace("<think>I compare.</think>", "</think>I compare.<think>"),
    "other case": GOOD.replace("<think>", "<Think>"),
    "attribute": GOOD.replace("<eval>", '<eval id="1">'),
    "inner space": GOOD.replace("</eval>", "</eval >"),
    "look-alike": GOOD.replace("<answer>", "＜answer＞"),
    "tags and score both wrong": GOOD.replace("8.3", "n/a") + "x",
}


@pytest.mark.parametrize("text", TAG_ERRORS.values(), ids=TAG_ERRORS.keys())
@pytest.mark.parametrize(("answer", "rubrics"), SETTINGS)
def test_tags_missing_or_out_of_order_are_a_tag_error(text, answer, rubrics):
    assert parse(text, answer, rubrics) == Judgment(error="tags")
    assert parse(text, answer, rubrics).format_reward == -1.5


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("rubrics", ["adaptive", "primary", "generated"])
def test_each_tag_is_needed_exactly_once(tag, rubrics):
    text = judgment_text("8.3", rubrics)
    assert parse(text, rubrics=rubrics).score == Fraction("8.3")
    for broken in (text.replace(tag, ""), text.replace(tag, tag + tag), text + tag, tag + text):
        if broken != text:  # there is no generate_rubrics block to remove in the primary setting
            assert parse(broken, rubrics=rubrics) == Judgment(error="tags")


def test_generated_rubrics_belong_to_the_settings_that_ask_for_them():
    primary = judgment_text("8.3", "primary")
    assert parse(primary, rubrics="primary") == Judgment("I compare.", None, "It is short.", Fraction("8.3"))
    assert parse(GOOD, rubrics="primary").error == "tags"
    for rubrics in ("adaptive", "generated"):
        assert parse(primary, rubrics=rubrics).error == "tags"
        assert parse(GOOD, rubrics=rubrics).generated_rubrics == "Brevity: is it short?"


def test_tags_of_the_prompt_may_be_quoted_in_a_judgment():
    quoted = "".join(f"<{name}></{name}>" for name in INPUT_TAGS)
    assert parse(GOOD.replace("I compare.", quoted)).think == quoted
    assert set(ALL_TAGS) == {*JUDGMENT_TAGS, *INPUT_TAGS} and len(ALL_TAGS) == 11


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<answer>7</answer>", 7),
        ("<generate_rubrics>unclosed <eval>x</eval> <answer> 4.8 </answer> and more", Fraction("4.8")),
        ("<answer>7</answer> no, <answer>8</answer>", 8),
        ("<answer>7</answer> no, <answer>8", 7),
        ("<answer>7</answer> no, <answer>11</answer>", 7),
        ("<answer>7</answer></answer><answer>", 7),
        ("<answer> 4.8 <answer> 4.9 </answer>", Fraction("4.9")),
        ("<answer>7<answer></answer>", None),
        ("<answer><think>7</think></answer>", None),
        ("</answer>7<answer>", None),
        ("<Answer>7</Answer>", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_lenient_reader_takes_the_last_well_formed_answer(text, score):
    assert read_answer(text) == score


def test_the_kinds_of_answer_do_not_mix():
    text = "<answer>7</answer><answer>B</answer>"
    assert (read_answer(text), read_answer(text, "choice")) == (7, "B")
    for call in (lambda: parse("", answer="scores"), lambda: parse("", rubrics="none"), lambda: read_answer("", "x")):
        with pytest.raises(ValueError, match="must be"):
            call()


def test_a_judgment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(GOOD).score = Fraction(10)


# --- hostile strings --------------------------------------------------------------------------------------------------

PIECES = [
    *TAGS * 3,
    *(tag.upper() for tag in TAGS[:4]),
    *("<Answer>", "< answer>", "<answer >", "<answer/>", "<answer id='1'>", "<answer", "answer>", "</", "<", ">", "<<"),
    *("<task>", "</response>", "<responseA>", "&lt;answer&gt;", "<|im_end|>", "＜answer＞"),
    *(
        "7",
        "8.3",
        "10",
        "10.0",
        "11",
        "0",
        ".",
        "5.",
        "-1",
        "1e1",
        "nan",
        "A",
        "B",
        "AB",
        "０",
        "٣",
        "²",
        "7,5",
        "8/10",
    ),
    *(" ", "\n", "\t", "\x00", "\x1c", "\x85", "\u00a0", "\u200b", "\ufeff", "\ud800", "\udfff", "\U0001f600", "é"),
]


def hostile_text(rng):
    """A soup of tags, numbers and traps, or a good judgment that was damaged in up to three places."""
    if rng.random() < 0.4:
        return "".join(rng.choices(PIECES, k=rng.randrange(25)))
    answer = rng.choice(["7", "8.3", " 10.0\n", "A", "B ", "11", "x"])
    text = judgment_text(answer, rng.choice(["adaptive", "primary"]))
    for _ in range(rng.randrange(4)):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        damage = rng.randrange(6)
        if damage == 0:
            text = text[:i] + rng.choice(PIECES) + text[i:]
        elif damage == 1:
            text = text[:i] + text[j:] if j - i < 12 else text[:j]  # a hole, or a truncation
        elif damage == 2:
            text = text[:j] + text[i:]  # a repetition
        elif damage == 3:
            text = text[:i] + text[i:j].swapcase() + text[j:]
        elif damage == 4:
            text = text[j:] + text[i:j] + text[:i]
        else:
            text = text + rng.choice([" ", "\n", "\x00", text])
    return text


def test_hostile_strings_are_read_as_the_slow_oracle_reads_them():
    rng = random.Random(20251024)
    outcomes = Counter()
    for _ in range(100_000):
        text = hostile_text(rng)
        answer, rubrics = rng.choice(SETTINGS)
        parsed, read = parse(text, answer, rubrics), read_answer(text, answer)
        assert parsed == slow_parse(text, answer, rubrics), ascii(text)
        assert read == slow_read_answer(text, answer), ascii(text)
        assert_is_possible(parsed, read, answer, rubrics)
        outcomes[answer, parsed.error, read is None] += 1
    # Every outcome came up often enough for the comparison to mean something.
    assert len(outcomes) == 8 and min(outcomes.values()) >= 1000, outcomes


def assert_is_possible(parsed, read, answer, rubrics):
    value, other = (parsed.score, parsed.choice) if answer == "score" else (parsed.choice, parsed.score)
    assert other is None
    assert (value is None) == (parsed.error is not None)
    assert value is None or value == read  # what the strict reader reads, the lenient one reads too
    assert parsed.format_reward == {None: 0.0, "score": -1.0, "tags": -1.5}[parsed.error]
    assert (parsed.think is None) == (parsed.evaluation is None) == (parsed.error == "tags")
    assert (parsed.generated_rubrics is None) == (parsed.error == "tags" or rubrics == "primary")
    if answer == "score" and read is not None:
        assert type(read) is Fraction and 0 <= read <= 10


@given(st.text())
def test_any_text_is_read_as_the_slow_oracle_reads_it(text):
    for answer, rubrics in SETTINGS:
        for whole in (text, judgment_text(text, rubrics), judgment_text("7", rubrics) + text):
            assert parse(whole, answer, rubrics) == slow_parse(whole, answer, rubrics)
            assert read_answer(whole, answer) == slow_read_answer(whole, answer)


# --- long strings -----------------------------------------------------------------------------------------------------

# What the two readers make of it: (error of the strict one, value of the lenient one); `size` is in characters.
LONG = {
    "unclosed answers": (lambda size: "<answer>" * (size // 8), ("tags", None)),
    "closed answers": (lambda size: "</answer>" * (size // 9), ("tags", None)),
    "many answers": (lambda size: "<answer>7</answer>" * (size // 18), ("tags", 7)),
    "many invalid answers": (lambda size: "<answer>x</answer>" * (size // 18), ("tags", None)),
    "nested tags": (lambda size: "<think>" * (size // 15) + "</think>" * (size // 15), ("tags", None)),
    "tag beginnings": (lambda size: "<generate_rubrics" * (size // 17), ("tags", None)),
    "angle brackets": (lambda size: "<" * size, ("tags", None)),
    "closing angle brackets": (lambda size: "</" * (size // 2), ("tags", None)),
    "white space": (lambda size: " " * size, ("tags", None)),
    "white space in the answer": (lambda size: judgment_text(" " * size), ("score", None)),
    "white space around the score": (lambda size: judgment_text(" " * size + "7" + " " * size), (None, 7)),
    "white space within the score": (lambda size: judgment_text("7" + " " * size + "x"), ("score", None)),
    "white space after": (lambda size: GOOD + "\n" * size, (None, Fraction("8.3"))),
    "white space and text after": (lambda size: GOOD + "\n" * size + "x", ("tags", Fraction("8.3"))),
    "digits": (lambda size: judgment_text("9" * size), ("score", None)),
    "digits and a word": (lambda size: judgment_text("9" * size + "x"), ("score", None)),
    "leading zeros": (lambda size: judgment_text("0" * size + "7.0"), (None, 7)),
    "decimals": (lambda size: judgment_text("0." + "3" * size), (None, Fraction(int("3" * 4000), 10**4000))),
    "decimals and a word": (lambda size: judgment_text("0." + "3" * size + "x"), ("score", None)),
    "points": (lambda size: judgment_text("1." * (size // 2)), ("score", None)),
    "thinking": (lambda size: GOOD.replace("I compare.", "x" * size), (None, Fraction("8.3"))),
}


@pytest.mark.parametrize("build", [build for build, _ in LONG.values()], ids=LONG.keys())
def test_a_megabyte_takes_time_in_proportion(build):
    def seconds(text):
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            parse(text)
            read_answer(text)
            best = min(best, time.process_time() - start)
        return best

    # Quadratic time would be 16-fold. The constant is for what is too short to time.
    assert seconds(build(4_000_000)) < 10 * seconds(build(1_000_000)) + 0.02


@pytest.mark.parametrize(("build", "expected"), LONG.values(), ids=LONG.keys())
def test_a_megabyte_is_read_right(build, expected):
    text = build(1_000_000)
    assert (parse(text).error, read_answer(text)) == expected


@pytest.mark.parametrize("answer", ["score", "choice"])
def test_every_character_is_looked_at_once(monkeypatch, answer):
    looked_at = []
    name = "_read_score" if answer == "score" else "_read_choice"
    read = getattr(judgment_module, name)
    monkeypatch.setattr(judgment_module, name, lambda text: looked_at.append(len(text)) or read(text))
    for build, _ in LONG.values():
        text = build(100_000)
        for reader in (parse, read_answer):
            looked_at.clear()
            reader(text, answer)
            assert sum(looked_at) <= len(text)
