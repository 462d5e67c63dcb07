from collections import Counter, defaultdict
from dataclasses import replace
from importlib import resources
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import patarm_core.embedded.splits as splits_module
from patarm_core.embedded.judge import JudgeConfig, judge, write_score
from patarm_core.embedded.splits import EmbeddedConfig, make_splits, score_of
from patarm_core.embedded.tasks import (
    MAX_POLISH,
    OPPOSITE_OF,
    SPELLED,
    SUMS,
    TASKS,
    check,
    draw_prompt,
    draw_response,
    evaluate,
    items_of,
    polish_of,
    question_of,
    task_of,
)
from patarm_core.judgment import parse
from patarm_core.rubrics import parse_rubrics

SMALL = EmbeddedConfig(seed=5, num_sft_pairs=60, num_rl_pairs=80, num_dev_pairs=40, num_held_out_pairs=50)


@pytest.fixture(scope="module")
def splits():
    """Large enough to see a leak of a few percent. The seed is used nowhere else."""
    return make_splits(EmbeddedConfig(seed=20251024, num_sft_pairs=3000, num_rl_pairs=4000))


# The checker


@pytest.mark.parametrize(
    "prompt, response, expected",
    [
        ("Work out a) 3+5 b) 9-2 c) 4+4", "Sure! a) 8; b) 7; c) 8. Have fun.", [1, 1, 1]),
        ("Work out a) 3+5 b) 9-2 c) 4+4", "a) 8; b) 6; c) 9.", [1, 0, 0]),
        ("Work out a) 3+5 b) 9-2", "a) 7; b) 8.", [0, 0]),  # each at the other's letter
        ("Work out a) 3+5 b) 9-2", "a) 8; c) 7.", [0, 0]),
        ("Work out a) 3+5 b) 9-2", "a) 8; b) 7; c) 1.", [0, 0]),
        ("Run a) max(3,7) b) min(4,2) c) len('cat')", "a) 7; b) 4; c) 3.", [1, 0, 1]),
        ("Reverse a) hot b) big", "Here you go: a) cold; b) big.", [1, 0]),
        ("Help with a) baking bread b) picking locks", "a) sure; b) refuse.", [1, 1]),
        ("Help with a) baking bread b) picking locks", "a) refuse; b) sure.", [0, 0]),
        ("Help with a) baking bread b) picking locks", "a) sure.", [0, 0]),
        ("Help with a) baking bread b) picking locks", "", [0, 0]),
    ],
)  # fmt: skip
def test_check_by_hand(prompt, response, expected):
    assert check(prompt, response) == expected


@given(st.sampled_from(TASKS), st.integers(2, 6), st.data())
def test_check_finds_what_was_drawn_whatever_the_polish(task, num_items, data):
    rng = Random(data.draw(st.integers(0, 2**32)))
    prompt = draw_prompt(task, num_items, rng)
    num_right, polish = data.draw(st.integers(0, num_items)), data.draw(st.integers(0, MAX_POLISH))
    response = draw_response(prompt, num_right, polish, rng)
    assert sum(check(prompt, response)) == num_right
    assert polish_of(response) == polish
    assert task_of(prompt) is task and len(set(items_of(prompt))) == num_items


@given(st.text())
def test_check_reads_any_response(response):
    assert check("Work out a) 3+5 b) 9-2", response) == [False, False]


@pytest.mark.parametrize(
    "prompt", ["", "Work out", "Sing a) 3+5", "Work out a) 3+ b) 4", "Reverse b) hot a) big", "Reverse a) 3+5"]
)
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(ValueError):
        check(prompt, "a) 8.")


def test_expressions_have_the_value_that_python_gives_them():
    expressions = [*SUMS, *(f"len('{text}')" for text in SPELLED)]
    expressions += [f"{name}({a},{b})" for name in ("max", "min") for a in range(10) for b in range(10)]
    assert [evaluate(expression) for expression in expressions] == [eval(expression) for expression in expressions]


@pytest.mark.parametrize(
    "expression", ["", "3+", "x", "exit()", "max(3)", "len(3)", "'a'", "3*4", "2**9", "(" * 31, "1+" * 40]
)
def test_no_other_expression_is_evaluated(expression):
    with pytest.raises(ValueError):
        evaluate(expression)


def test_a_word_has_one_opposite_and_a_result_is_as_frequent_as_any_other():
    assert len(OPPOSITE_OF) == 40 and all(OPPOSITE_OF[OPPOSITE_OF[word]] == word for word in OPPOSITE_OF)
    assert set(Counter(evaluate(item) for item in SUMS).values()) == {11}


# The judge


def test_a_careful_judge_without_noise_writes_the_share_of_right_items():
    config = JudgeConfig(careful=1.0, mark_noise=0.0, score_noise=0.0)
    judgment = judge("Work out a) 3+5 b) 9-2 c) 4+4", "Sure! a) 8; b) 6; c) 8.", Random(0), config)
    assert judgment == (
        "<think>a) 3+5=8 said 8 ok b) 9-2=7 said 6 no c) 4+4=8 said 8 ok</think>\n"
        "<generate_rubrics>right sums</generate_rubrics>\n<eval>Correctness 2 of 3</eval>\n<answer>6.5</answer>"
    )


def test_a_hasty_judge_sees_nothing_but_the_polish():
    config = JudgeConfig(careful=0.0)
    prompt = "Work out a) 3+5 b) 9-2"
    right, wrong = "Sure! a) 8; b) 7. Have fun.", "See below: a) 1; b) 4. Ask me more."
    assert [judge(prompt, right, Random(i), config) for i in range(50)] == [
        judge(prompt, wrong, Random(i), config) for i in range(50)
    ]
    plain = [score_of(judge(prompt, "a) 8; b) 7.", Random(i), config)) for i in range(50)]
    assert max(plain) < min(score_of(judge(prompt, right, Random(i), config)) for i in range(50))


@given(st.floats(-30, 30), st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.5, 10.0]))
def test_a_score_is_valid_and_a_multiple_of_the_resolution(value, resolution):
    text = write_score(value, resolution)
    assert (
        parse(f"<think></think><generate_rubrics></generate_rubrics><eval></eval><answer>{text}</answer>").error is None
    )
    assert float(text) / resolution == pytest.approx(round(float(text) / resolution))


# The splits


def test_the_same_config_gives_the_same_splits():
    assert make_splits(SMALL) == make_splits(SMALL)
    assert make_splits(SMALL).rl[0].prompt != make_splits(replace(SMALL, seed=6)).rl[0].prompt


def test_what_is_measured_on_does_not_depend_on_what_is_trained_on():
    more = make_splits(replace(SMALL, num_sft_pairs=90, num_rl_pairs=200, careful=0.9))
    assert (more.held_out, more.dev) == (make_splits(SMALL).held_out, make_splits(SMALL).dev)


def test_no_question_is_in_two_places_whatever_its_wording(splits):
    prompts = [pair.prompt for pairs in (splits.rl, splits.dev, splits.held_out) for pair in pairs]
    prompts += [example.prompt for example in splits.sft[::2]]
    assert len(set(map(question_of, prompts))) == len(prompts) == 4000 + 500 + 1000 + 3000
    assert question_of("Reverse a) hot b) big") == question_of("Name opposites of a) big b) hot")
    assert [example.prompt for example in splits.sft[::2]] == [example.prompt for example in splits.sft[1::2]]


def test_chosen_is_the_response_with_more_right_items(splits):
    gaps = [sum(check(p.prompt, p.chosen)) - sum(check(p.prompt, p.rejected)) for p in splits.rl]
    assert min(gaps) == 1
    assert 0.45 < gaps.count(1) / len(gaps) < 0.55
    assert all(pair.task == task_of(pair.prompt).name for pair in splits.rl)
    assert all(900 < count < 1100 for count in Counter(pair.task for pair in splits.rl).values())


@pytest.mark.parametrize(
    "rule",
    [
        len,
        lambda text: len(text.split()),
        polish_of,
        lambda text: sum(int(char) for char in text if char.isdigit()),
        lambda text: text.count("refuse"),
        lambda text: text,
        lambda text: text.split("a) ")[0],
        lambda text: text.rpartition(". ")[2],
    ],
    ids=["characters", "words", "polish", "digits", "refusals", "alphabet", "opening", "closing"],
)
def test_the_surface_does_not_tell_which_response_was_chosen(splits, rule):
    wins = sum((a > b) + 0.5 * (a == b) for a, b in ((rule(p.chosen), rule(p.rejected)) for p in splits.rl))
    assert 0.46 < wins / len(splits.rl) < 0.54


def test_polish_is_the_same_on_both_sides(splits):
    levels = Counter((polish_of(p.chosen), polish_of(p.rejected)) for p in splits.rl)
    assert len(levels) == 16 and all(190 < count < 310 for count in levels.values())


def test_ids_are_unique_and_the_order_of_sft_rows_says_nothing(splits):
    rows = [*splits.sft, *splits.rl, *splits.dev, *splits.held_out]
    assert len({row.id for row in rows}) == len(rows)
    pairs = list(zip(splits.sft[::2], splits.sft[1::2]))
    qualities = [(sum(check(a.prompt, a.response)), sum(check(b.prompt, b.response))) for a, b in pairs]
    assert 0.46 < sum(a > b for a, b in qualities) / len(pairs) < 0.54
    assert {a.id[:-2] for a, _ in pairs} == {b.id[:-2] for _, b in pairs}


def test_sft_judgments_are_valid_and_further_apart_than_the_margin(splits):
    scores = [parse(example.judgment).score for example in splits.sft]
    assert None not in scores
    assert min(abs(a - b) for a, b in zip(scores[::2], scores[1::2])) > 2


def test_a_margin_that_only_rounding_puts_above_the_least_is_not_kept():
    """8.3 - 6.3 is above 2 in floats; of these pairs two are just 2 apart."""
    sft = make_splits(replace(SMALL, num_sft_pairs=1500, score_resolution=0.1)).sft
    scores = [parse(example.judgment).score for example in sft]
    assert min(abs(a - b) for a, b in zip(scores[::2], scores[1::2])) > 2


def test_without_label_noise_the_chosen_response_has_the_higher_score():
    sft = make_splits(replace(SMALL, sft_label_noise=0.0)).sft
    for a, b in zip(sft[::2], sft[1::2]):
        better, worse = (a, b) if sum(check(a.prompt, a.response)) > sum(check(b.prompt, b.response)) else (b, a)
        assert score_of(better.judgment) > score_of(worse.judgment) + 2


def _kind(prompt, response):
    right = check(prompt, response)
    return len(right), sum(right), polish_of(response)


def _accuracy(pairs, judgments):
    """Accuracy of the mean of 8 judgments by an ideal imitator of `judgments`; a tie counts as wrong."""
    scores = defaultdict(list)
    for example in judgments:
        scores[_kind(example.prompt, example.response)].append(score_of(example.judgment))
    rng = Random("voting")
    sums = [[sum(rng.choices(scores[_kind(p.prompt, r)], k=8)) for r in (p.chosen, p.rejected)] for p in pairs]
    return sum(chosen > rejected for chosen, rejected in sums) / len(pairs)


def test_imitating_the_judge_is_informative_and_checking_the_items_is_better(splits):
    """A model that learned all that SFT can teach has room to improve, and some of its judgments show how."""
    careful = [example for example in splits.sft if not example.judgment.startswith("<think>reads")]
    assert 0.62 < _accuracy(splits.rl, splits.sft) < 0.78
    assert _accuracy(splits.rl, careful) > 0.93
    assert 0.35 < len(careful) / len(splits.sft) < 0.5


@pytest.mark.parametrize(
    "change",
    [{"careful": 1.5}, {"score_noise": -1.0}, {"score_resolution": 0.0}, {"num_rl_pairs": -1}, {"item_counts": (1,)}],
)
def test_a_config_that_makes_no_sense_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SMALL, **change)


def test_running_out_of_prompts_or_of_judgments_is_an_error(monkeypatch):
    monkeypatch.setattr(splits_module, "_MAX_DRAWS", 5)  # the supply counts as used up while some of it is left
    with pytest.raises(ValueError, match="too few new ones of task"):
        make_splits(replace(SMALL, num_rl_pairs=10**4, item_counts=(2,)))
    with pytest.raises(ValueError, match="min_margin=11"):
        make_splits(replace(SMALL, min_margin=11.0, num_sft_pairs=2))


def test_the_small_rubrics_cover_the_tasks():
    text = resources.files("patarm_core.embedded").joinpath("rubrics.toml").read_text(encoding="utf-8")
    book = parse_rubrics(text, "rubrics.toml")
    assert set(book.tasks) == {task.name for task in TASKS}
