"""Laws of every aggregation of preferences, and each official rule against its definition, written the slow way."""

import math
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patarm_core.benchmarks import infobench, rewardbench, rewardbench2, rm_bench
from patarm_core.benchmarks import report as reports
from patarm_core.benchmarks.infobench import ALL_ASKED, UNREAD_OUT
from patarm_core.benchmarks.outcomes import LEFT_OUT, TIES_HALF, TIES_WRONG
from patarm_core.benchmarks.rewardbench2 import STRICT


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """Intervals have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "NUM_RESAMPLES", 40)
        yield


parsed = st.integers(0, 3)  # few, so that ties are common
scores = st.none() | parsed


def lists(of, least, most=None):
    return st.lists(of, min_size=least, max_size=most or least)


def rows_of(**fields):
    return lists(st.fixed_dictionaries(fields), 1, 8)


SUBSETS = st.sampled_from(["alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go"])
SCORED = {
    "rewardbench": rows_of(subset=SUBSETS, score_chosen=scores, score_rejected=scores),
    "rm_bench": rows_of(
        domain=st.sampled_from([*rm_bench.SIZES, *rm_bench.POOLED]),
        scores_chosen=lists(scores, 3), scores_rejected=lists(scores, 3),
    ),
    "judgebench": rows_of(
        source=st.sampled_from(["mmlu-pro-law", "livebench-math"]), label=st.sampled_from(["A>B", "B>A"]),
        scores=lists(scores, 2),
    ),
    "llmbar": rows_of(
        subset=st.sampled_from(["Natural", "Manual"]), label=st.integers(1, 2), score_1=scores, score_2=scores
    ),
    "rmb": rows_of(
        task=st.just("pairwise"), goal=st.sampled_from(["helpfulness", "harmlessness"]), score_chosen=scores,
        score_rejected=scores,
    ),
}  # fmt: skip
LISTS = rows_of(
    task=st.just("bon"), goal=st.sampled_from(["helpfulness", "harmlessness"]), score_best=scores,
    scores_losers=lists(scores, 1, 3),
)  # fmt: skip
BEST = rows_of(subset=st.sampled_from(["Math", "Focus"]), scores=lists(scores, 4))
ANSWERED = rows_of(
    subset=st.sampled_from(["Easy_set", "Hard_set"]), eval=lists(st.sampled_from([True, False, None]), 1, 4),
    questions=st.just(list("abcd")),
)  # fmt: skip
SIDES = (("score_chosen", "score_rejected"), ("scores_chosen", "scores_rejected"), ("score_1", "score_2"))


def report(name, rows):
    return import_module(f"patarm_core.benchmarks.{name}").report(rows)


def values(metrics):
    return {metric.name: metric.value for metric in metrics if not metric.name.startswith("Agreement")}


def swapped(row):
    """The right response in the place of the wrong one."""
    for one, other in SIDES:
        if one in row:
            return row | {one: row[other], other: row[one]}
    return row | {"scores": row["scores"][::-1]}


def mirrored(name):
    """Where a number of RM-Bench goes when its sides are swapped: the wrong response's style was the richer one."""
    word = name.split()[0]
    return name.replace(word, {"Easy": "Hard", "Hard": "Easy"}.get(word, word), 1)


def mapped(row, f):
    def of(value):
        return [of(one) for one in value] if isinstance(value, list) else None if value is None else f(value)

    return {field: of(value) if field.startswith("score") else value for field, value in row.items()}


def all_rows(name):
    if name == "rmb":
        return st.tuples(SCORED["rmb"], LISTS).map(lambda both: both[0] + both[1])
    return (SCORED | {"rewardbench2": BEST, "infobench": ANSWERED})[name]


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=30)
@given(data=st.data())
def test_a_tie_is_worth_something_between_wrong_and_right(name, data):
    rows = data.draw(SCORED[name])
    got, other = report(name, rows), report(name, [swapped(row) for row in rows])
    wrong, half, left_out = (values(got.policies[policy]) for policy in (TIES_WRONG, TIES_HALF, LEFT_OUT))
    # Right where the swapped one is wrong: undecided comparisons are right.
    right = {mirrored(metric): 1 - value for metric, value in values(other.policies[TIES_WRONG]).items()}
    assert all(type(metric.num) is int for table in (got.metrics, *got.policies.values()) for metric in table)
    for metric, official in values(got.metrics).items():
        assert wrong[metric] - 1e-12 <= official <= right[metric] + 1e-12
        assert half[metric] == pytest.approx((wrong[metric] + right[metric]) / 2, abs=1e-12)
        assert left_out[metric] is None or wrong[metric] - 1e-12 <= left_out[metric] <= right[metric] + 1e-12
    assert (got.num_ties, got.num_unparsed) == (other.num_ties, other.num_unparsed)


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=30)
@given(data=st.data())
def test_swapping_the_responses_mirrors_the_accuracy(name, data):
    rows = data.draw(SCORED[name])
    there, back = (values(report(name, of).policies[TIES_HALF]) for of in (rows, [swapped(row) for row in rows]))
    assert there == pytest.approx({mirrored(metric): 1 - value for metric, value in back.items()}, abs=1e-12)


@pytest.mark.parametrize("name", [*SCORED, "rewardbench2", "infobench"])
@settings(max_examples=20)
@given(data=st.data())
def test_the_order_of_rows_says_nothing(name, data):
    rows = data.draw(all_rows(name))
    got, again = report(name, rows), report(name, data.draw(st.permutations(rows)))
    assert values(got.metrics) == values(again.metrics)
    assert (got.num_ties, got.num_unparsed, got.notes) == (again.num_ties, again.num_unparsed, again.notes)
    assert {rule: values(of) for rule, of in got.policies.items()} == {
        rule: values(of) for rule, of in again.policies.items()
    }


@pytest.mark.parametrize("name", [*SCORED, "rewardbench2"])
@settings(max_examples=20)
@given(data=st.data())
def test_scores_matter_by_their_order_alone(name, data):
    rows = data.draw(all_rows(name))
    assert report(name, [mapped(row, lambda x: 2 * x**3 + x - 7.5) for row in rows]) == report(name, rows)


# What the official rule gives where nothing could be read; ratings of LLMBar count half, as its harness has it.
NOTHING_READ = {"rewardbench": 0.5, "rm_bench": 0, "judgebench": 0, "llmbar": 0.5, "rmb": 0, "rewardbench2": 0.25}


@pytest.mark.parametrize("name", NOTHING_READ)
@settings(max_examples=10)
@given(data=st.data())
def test_what_was_not_read_is_counted(name, data):
    rows = [mapped(row, lambda _: None) for row in data.draw(all_rows(name))]
    got = report(name, rows)
    assert set(values(got.metrics).values()) == {NOTHING_READ[name]} and got.num_ties == 0
    num_comparisons = {
        "rm_bench": 9 * len(rows), "rewardbench2": 4 * len(rows),
        "rmb": sum(len(row.get("scores_losers", [0])) for row in rows),
    }  # fmt: skip
    assert got.num_unparsed == num_comparisons.get(name, len(rows))
    if LEFT_OUT in got.policies:
        assert set(values(got.policies[LEFT_OUT]).values()) == {None}


@given(SCORED["rewardbench"])
@settings(max_examples=30)
def test_rewardbench_is_what_it_is_defined_as(rows):
    sections = []
    for subsets in rewardbench.SECTIONS.values():
        total = weight = 0
        for subset, num in subsets.items():
            sides = [(row["score_chosen"], row["score_rejected"]) for row in rows if row["subset"] == subset]
            if sides:
                weight += num
                total += num * sum(0.5 if None in pair else pair[0] > pair[1] for pair in sides) / len(sides)
        sections += [total / weight] if weight else []
    assert rewardbench.report(rows).metrics[0].value == pytest.approx(sum(sections) / len(sections), abs=1e-12)


@given(SCORED["rm_bench"])
@settings(max_examples=30)
def test_rm_bench_is_what_it_is_defined_as(rows):
    domains = {}
    for row in rows:
        domains.setdefault(row["domain"].partition("-")[0], []).append(row)
    cells = {  # domain -> share of prompts with s(chosen i) > s(rejected j)
        domain: [
            [
                sum(None not in (pair := (row["scores_chosen"][i], row["scores_rejected"][j])) and pair[0] > pair[1]
                    for row in of) / len(of)
                for j in range(3)
            ]
            for i in range(3)
        ]
        for domain, of in domains.items()
    }  # fmt: skip
    hard = [(cell[0][1] + cell[0][2] + cell[1][2]) / 3 for cell in cells.values()]
    overall = [sum(map(sum, cell)) / 9 for cell in cells.values()]
    got = [metric.value for metric in rm_bench.report(rows).metrics]
    assert got[0] == pytest.approx(sum(overall) / len(overall), abs=1e-12)
    assert got[3] == pytest.approx(sum(hard) / len(hard), abs=1e-12)


@given(SCORED["judgebench"])
@settings(max_examples=30)
def test_judgebench_gives_a_tie_of_scores_to_b(rows):
    right = [
        None not in row["scores"] and ("A>B" if row["scores"][0] > row["scores"][1] else "B>A") == row["label"]
        for row in rows
    ]
    assert report("judgebench", rows).metrics[0].value == pytest.approx(sum(right) / len(rows), abs=1e-12)


@given(SCORED["llmbar"])
@settings(max_examples=30)
def test_llmbar_counts_both_orders_as_its_harness_does(rows):
    def winners(first, second):
        if first is None or second is None:
            return 1, 2
        return 1 if first > second else 2, 2 if second > first else 1

    shares = []
    for subset in ("Natural", "Manual"):
        of = [row for row in rows if row["subset"] == subset]
        right = [one == row["label"] for row in of for one in winners(row["score_1"], row["score_2"])]
        shares += [sum(right) / len(right)] if of else []
    assert report("llmbar", rows).metrics[0].value == pytest.approx(sum(shares) / len(shares), abs=1e-12)


@given(rows_of(
    subset=st.just("Natural"), label=st.integers(1, 2), winners=lists(st.sampled_from(["1", "2", "tie", None]), 2)
))  # fmt: skip
@settings(max_examples=30)
def test_llmbar_counts_ties_of_winners_apart_from_unparsed_ones_and_both_as_wrong(rows):
    named = [winner for row in rows for winner in row["winners"]]
    got = report("llmbar", rows)
    assert (got.num_ties, got.num_unparsed) == (named.count("tie"), named.count(None))
    right = sum(winner == str(row["label"]) for row in rows for winner in row["winners"])
    assert got.metrics[0].value == pytest.approx(right / len(named), abs=1e-12)
    half = (named.count("tie") + named.count(None)) / 2
    assert got.policies[TIES_HALF][0].value == pytest.approx((right + half) / len(named), abs=1e-12)
    none = ("tie", None)
    agree = sum(a == b or (a in none and b in none) for a, b in (row["winners"] for row in rows))
    assert got.metrics[-1].name.startswith("Agreement") and got.metrics[-1].value == agree / len(rows)


@given(LISTS)
@settings(max_examples=30)
def test_a_list_of_rmb_is_right_if_the_best_beats_every_other(rows):
    shares = []
    for goal in ("helpfulness", "harmlessness"):
        of = [row for row in rows if row["goal"] == goal]
        right = [
            all(None not in (row["score_best"], s) and row["score_best"] > s for s in row["scores_losers"])
            for row in of
        ]
        shares += [sum(right) / len(right)] if of else []
    assert report("rmb", rows).metrics[0].value == pytest.approx(sum(shares) / len(shares), abs=1e-12)


@given(BEST)
@settings(max_examples=30)
def test_rewardbench_2_shares_the_highest_score(rows):
    """The chance that the correct one is drawn among those with the highest score."""
    shares, strict = [], []
    for subset in ("Math", "Focus"):
        of = [[-1 if s is None else s for s in row["scores"]] for row in rows if row["subset"] == subset]
        draws = [[i == 0 for i in range(4) if s[i] == max(s)] for s in of]
        is_read = [None not in row["scores"] for row in rows if row["subset"] == subset]
        shares += [sum(sum(draw) / len(draw) for draw in draws) / len(of)] if of else []
        strict += [sum(draw == [True] and read for draw, read in zip(draws, is_read)) / len(of)] if of else []
    got = report("rewardbench2", rows)
    assert got.metrics[0].value == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert got.policies[STRICT][0].value == pytest.approx(sum(strict) / len(strict), abs=1e-12)


ties = lists(st.tuples(lists(parsed, 4), lists(parsed, 3)), 1, 4)


@given(ties, st.integers(1, 5), st.integers(-3, 3))
@settings(max_examples=30)
def test_ties_of_rewardbench_2_follow_their_formula_and_know_no_scale(prompts, scale, shift):
    """Two correct answers of four (tied), one of three (ref)."""
    rows = []
    for number, (tied, ref) in enumerate(prompts):
        rows += [{"id": f"tied:{number}", "subset": "Ties", "num_correct": 2, "scores": tied},
                 {"id": f"ref:{number}", "subset": "Ties", "scores": ref}]  # fmt: skip
    terms = []
    for tied, ref in prompts:
        d, g_tied, g_ref = abs(tied[0] - tied[1]), min(tied[:2]) - max(tied[2:]), ref[0] - max(ref[1:])
        g = min(g_tied, g_ref)
        tail = math.tanh(g / d - 1) if d else (g > 0) - (g < 0)
        terms.append(0.3 * (g_tied > 0) + 0.3 * (g_ref > 0) + 0.2 * (g_tied > d) + 0.2 * (g > d) + 0.01 * tail)
    got = rewardbench2.report(rows).metrics[0].value
    assert got == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    moved = [mapped(row, lambda x: scale * x + shift) for row in rows]
    assert rewardbench2.report(moved).metrics[0].value == pytest.approx(got, abs=1e-12)


@given(ANSWERED)
@settings(max_examples=30)
def test_infobench_is_the_share_of_requirements_that_are_followed(rows):
    answers = [answer for row in rows for answer in row["eval"]]
    yes, read = answers.count(True), len(answers) - answers.count(None)
    got = infobench.report(rows)
    everything, read_only = (got.policies[rule][0].value for rule in (ALL_ASKED, UNREAD_OUT))
    assert got.metrics[0].value == pytest.approx(yes / len(answers), abs=1e-12)
    assert read_only == (None if not read else pytest.approx(yes / read, abs=1e-12))
    assert everything == pytest.approx(yes / (4 * len(rows)), abs=1e-12)
    assert everything <= got.metrics[0].value
    assert got.num_unparsed == answers.count(None)
    flipped = [row | {"eval": [None if one is None else not one for one in row["eval"]]} for row in rows]
    if read:
        assert infobench.report(flipped).policies[UNREAD_OUT][0].value == pytest.approx(1 - read_only, abs=1e-12)
