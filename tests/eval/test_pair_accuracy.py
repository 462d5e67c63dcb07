"""Voting@n over pairs, against a slow reading of its definition."""

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.pair_accuracy import JudgedPair, PairAccuracy, format_rates, judge_pairs, pair_accuracy, summary
from patarm_core.judgment import parse
from patarm_core.pairs import Pair
from patarm_core.stats import wilson_interval
from rollout.contexts import ContextBuilder, PromptConfig, load_pairs, load_rubrics
from rollout.engine import Engine, EngineConfig
from tests.strategies import judgment_text

# What a judgment may say: scores that tie often, an invalid score, a tag error.
TEXTS = [judgment_text(score) for score in ("2", "5", "5.0", "5.1", "8.3", "10")] + [judgment_text("11"), "no tags"]
N = 4
sides = st.lists(st.sampled_from(TEXTS), min_size=N, max_size=N)
judged_pairs = st.lists(st.tuples(sides, sides, st.sampled_from(["chat", "math"])), min_size=1, max_size=6)


def judged(rows) -> list[JudgedPair]:
    made = []
    for number, (chosen, rejected, task) in enumerate(rows):
        pair = Pair("Why?", "a", "b", task, "here", str(number))
        made.append(
            JudgedPair(pair, chosen, rejected, *([parse(text) for text in side] for side in (chosen, rejected)))
        )
    return made


def by_definition(rows, votes: int) -> PairAccuracy:
    right = ties = unscored = 0
    margins = []
    for chosen, rejected, _ in rows:
        means = []
        for side in (chosen, rejected):
            scores = []
            for text in side[:votes]:
                judgment = parse(text)
                if judgment.error is None:
                    scores.append(judgment.score)
            total = Fraction(0)
            for score in scores:
                total += score
            means.append(total / len(scores) if scores else None)
        if means[0] is None or means[1] is None:
            unscored += 1
            continue
        margins.append(means[0] - means[1])
        if means[0] == means[1]:
            ties += 1
        elif means[0] > means[1]:
            right += 1
    num = len(rows)
    margin = float(sum(margins) / len(margins)) if margins else None
    interval = wilson_interval(right, num)
    return PairAccuracy(votes, num, right, ties, unscored, right / num, *interval, (right + ties / 2) / num, margin)


@given(judged_pairs, st.integers(1, N))
@example([([TEXTS[1]] * N, [TEXTS[2]] * N, "chat")], N)  # 5 against 5.0
@example([([TEXTS[4]] * N, [TEXTS[4]] * N, "chat")], 3)  # a tie that float32 breaks
@example([([TEXTS[-1]] * N, [TEXTS[0]] * N, "chat")], N)  # a side without one score
@example([([TEXTS[-1], *[TEXTS[0]] * 3], [TEXTS[1]] * N, "chat")], 1)  # scored by later votes only
def test_voting_matches_the_definition(rows, votes):
    assert pair_accuracy(judged(rows), votes) == by_definition(rows, votes)


@given(judged_pairs, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter_and_all_votes_may_be_shuffled(rows, rng):
    shuffled = [(rng.sample(chosen, N), rng.sample(rejected, N), task) for chosen, rejected, task in rows]
    rng.shuffle(shuffled)
    assert pair_accuracy(judged(shuffled), N) == pair_accuracy(judged(rows), N)


@given(judged_pairs)
def test_exchanging_the_sides_exchanges_right_and_wrong(rows):
    there = pair_accuracy(judged(rows), N)
    back = pair_accuracy(judged([(rejected, chosen, task) for chosen, rejected, task in rows]), N)
    assert (back.num_ties, back.num_unscored) == (there.num_ties, there.num_unscored)
    assert there.num_right + back.num_right + there.num_ties + there.num_unscored == len(rows)
    assert there.margin is None or back.margin == pytest.approx(-there.margin)


def test_more_votes_than_judgments_are_refused():
    with pytest.raises(ValueError, match="got n=5 of 4"):
        pair_accuracy(judged([([TEXTS[0]] * N, [TEXTS[1]] * N, "chat")]), 5)


@given(judged_pairs)
def test_format_rates_are_shares_of_all_judgments(rows):
    texts = [text for chosen, rejected, _ in rows for text in chosen + rejected]
    assert format_rates(judged(rows)) == {
        "valid_rate": sum(text in TEXTS[:6] for text in texts) / len(texts),
        "tag_error_rate": texts.count("no tags") / len(texts),
        "score_error_rate": texts.count(TEXTS[6]) / len(texts),
    }


@given(judged_pairs)
def test_a_summary_holds_every_number_of_votes_and_every_task(rows):
    found = summary(judged(rows), [1, N])
    assert [row["votes"] for row in found["votes"]] == [1, N]
    assert found["by_task"].keys() == {task for _, _, task in rows}
    for key in ("num_pairs", "num_right", "num_ties", "num_unscored"):
        assert sum(task[key] for task in found["by_task"].values()) == found["votes"][1][key]


@pytest.fixture(scope="module")
def judge(tiny_files, tiny_judge):
    """(contexts, pairs, a function from max_rows to a new engine)."""
    book = load_rubrics(str(tiny_files["prompt.rubrics_file"]))
    config = PromptConfig(template="bare", rubrics="primary")
    pairs = load_pairs(tiny_files["data.held_out"], book)
    engine = Engine.from_pretrained(tiny_judge)
    contexts = ContextBuilder(engine.tokenizer, config, book)
    return contexts, pairs, lambda max_rows: Engine(engine.decoder, engine.tokenizer, EngineConfig(max_rows=max_rows))


def texts_of(judged_pairs) -> dict[str, tuple[list[str], list[str]]]:
    return {item.pair.id: (item.chosen_texts, item.rejected_texts) for item in judged_pairs}


def test_judgments_do_not_depend_on_the_order_or_the_batch(judge):
    contexts, pairs, engine = judge
    everything = judge_pairs(engine(512), contexts, pairs, 3, seed=5, max_completion_tokens=24)
    assert [item.pair for item in everything] == pairs
    expected = texts_of(everything)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert texts_of(judge_pairs(engine(512), contexts, shuffled, 3, 5, 24)) == expected
    assert texts_of(judge_pairs(engine(3), contexts, pairs, 3, 5, 24)) == expected
    alone = [judge_pairs(engine(512), contexts, [pair], 3, 5, 24)[0] for pair in pairs]
    assert texts_of(alone) == expected


def test_judgments_are_drawn_anew_for_each_side_pair_and_seed(judge):
    contexts, pairs, engine = judge
    drawn = judge_pairs(engine(512), contexts, pairs, 16, seed=5, max_completion_tokens=24, temperature=1.5)
    sides = [tuple(texts) for item in drawn for texts in (item.chosen_texts, item.rejected_texts)]
    assert all(len(side) == 16 and len(set(side)) > 1 for side in sides)
    assert len(set(sides)) == len(sides)
    again = judge_pairs(engine(512), contexts, pairs, 16, seed=6, max_completion_tokens=24, temperature=1.5)
    assert not set(sides) & {tuple(texts) for item in again for texts in (item.chosen_texts, item.rejected_texts)}


def test_judgments_are_parsed_by_the_rules_of_their_prompt(judge):
    contexts, pairs, engine = judge
    drawn = judge_pairs(engine(512), contexts, pairs, 8, seed=5, max_completion_tokens=24)
    for item in drawn:
        assert item.chosen == [parse(text, rubrics="primary") for text in item.chosen_texts]
        assert item.rejected == [parse(text, rubrics="primary") for text in item.rejected_texts]
    assert format_rates(drawn)["valid_rate"] > 0.5  # the judge has learned the format
    assert all(text.count("</answer>") <= 1 for item in drawn for text in item.chosen_texts + item.rejected_texts)


def test_a_pair_that_is_too_long_is_told_before_anything_is_drawn(judge):
    contexts, pairs, engine = judge
    short = ContextBuilder(contexts.tokenizer, PromptConfig(template="bare", max_context_tokens=20), contexts.book)
    with pytest.raises(ValueError, match=r"pair 40 of tiny: prompt and response make a context of \d+ tokens; "):
        judge_pairs(engine(512), short, pairs, 3, 5, 24)


def test_evaluation_reads_leniently_and_the_reward_strictly():
    unclosed = "<think></think><generate_rubrics><eval></eval><answer>7</answer>"  # as in the paper's own samples
    strict = judged([([unclosed] * 2, [judgment_text("5")] * 2, "chat")])
    assert (pair_accuracy(strict, 2).num_unscored, pair_accuracy(strict, 2).accuracy) == (1, 0.0)
    lenient = [replace(strict[0], lenient_scores=([Fraction(7)] * 2, [Fraction(5)] * 2))]
    assert (pair_accuracy(lenient, 2).num_unscored, pair_accuracy(lenient, 2).accuracy) == (0, 1.0)
    assert format_rates(lenient)["tag_error_rate"] == 0.5
