"""PAR against its equations, and the laws of METHOD."""

import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.judgment import parse
from patarm_core.par import constant, exact, graded, mean_score, pairwise_rewards, par_rewards, total_rewards
from tests.strategies import full_sides, judgment_text, judgments, scores, sides

TENTHS = [Fraction(tenths, 10) for tenths in range(101)]
F = Fraction


def by_definition(chosen, rejected, threshold=2, low=1.2, high=1.4):
    """The equations of the paper, multiplied through by the number of valid scores so that nothing is divided."""

    def side(own, others, sign):
        valid = [s for s in others if s is not None]
        rewards = []
        for s in own:
            excess = 0 if s is None else sign * (s * len(valid) - sum(valid))  # len(valid) times the signed margin
            if not valid or excess <= 0:
                rewards.append(0.0)
            else:
                rewards.append(low if excess <= threshold * len(valid) else high)
        return rewards

    return side(chosen, rejected, +1), side(rejected, chosen, -1)


@given(sides, sides)
@example([F("8.3")], [F("6.3")])  # margin exactly 2
@example([F("8.3") + F(1, 10**9)], [F("6.3")])  # just above
@example([F("8.3")] * 8, [F("8.3")] * 8)  # a tie that float32 breaks
@example([F("0.3")], [F("0.1"), F("0.2"), F("0.6")])  # a tie that float64 breaks
@example([None, F(9)], [F(1), None])
@example([F(9)], [])
@example([None], [F(1)])
def test_rewards_are_those_of_the_equations(chosen, rejected):
    assert par_rewards(chosen, rejected) == by_definition(chosen, rejected)


@given(sides, sides, scores, st.floats(0, 3), st.floats(0, 3))
def test_a_graded_reward_uses_its_own_threshold_and_levels(chosen, rejected, threshold, low, step):
    f = graded(threshold, low, low + step)
    assert par_rewards(chosen, rejected, f) == by_definition(chosen, rejected, threshold, low, low + step)


@given(sides, sides)
def test_a_constant_reward_pays_every_margin_alike(chosen, rejected):
    assert par_rewards(chosen, rejected, constant()) == by_definition(chosen, rejected, F(2), 1.3, 1.3)


@given(sides, sides, scores)
@example([F("8.3"), F("6.3")], [F("6.3")], F(5))
def test_swapping_the_sides_and_negating_the_scores_swaps_the_rewards(chosen, rejected, centre):
    mirrored = [[None if s is None else 2 * centre - s for s in side] for side in (rejected, chosen)]
    assert par_rewards(*mirrored) == par_rewards(chosen, rejected)[::-1]


@given(sides, sides, st.fractions(-20, 20))
def test_only_score_differences_matter(chosen, rejected, shift):
    moved = [[None if s is None else s + shift for s in side] for side in (chosen, rejected)]
    assert par_rewards(*moved) == par_rewards(chosen, rejected)


@given(sides, sides, st.randoms(use_true_random=False))
def test_permuting_the_judgments_of_a_side_permutes_their_rewards(chosen, rejected, rng):
    order = list(range(len(chosen)))
    rng.shuffle(order)
    before, other_before = par_rewards(chosen, rejected)
    after, other_after = par_rewards([chosen[i] for i in order], rejected)
    assert after == [before[i] for i in order]
    assert other_after == other_before


@given(full_sides, sides, scores, st.data())
@example([F(6)], [F(6)], F(2), None)
def test_raising_a_chosen_score_never_lowers_its_own_reward(chosen, rejected, rise, data):
    i = data.draw(st.integers(0, len(chosen) - 1)) if data else 0
    raised = [*chosen[:i], chosen[i] + rise, *chosen[i + 1 :]]
    assert par_rewards(raised, rejected)[0][i] >= par_rewards(chosen, rejected)[0][i]


@given(sides, sides)
def test_a_judgment_without_a_score_changes_nobody_elses_reward(chosen, rejected):
    par_c, par_r = par_rewards(chosen, rejected)
    assert par_rewards([None, *chosen], [*rejected, None]) == ([0.0, *par_c], [*par_r, 0.0])


@given(sides, st.integers(0, 4))
def test_a_side_without_a_mean_leaves_both_sides_at_zero(side, num_invalid):
    invalid = [None] * num_invalid
    assert par_rewards(side, invalid) == ([0.0] * len(side), [0.0] * num_invalid)
    assert par_rewards(invalid, side) == ([0.0] * num_invalid, [0.0] * len(side))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("number", [float, Fraction, Decimal, np.float32, np.float64])
def test_equal_scores_earn_nothing_at_any_of_the_101_values(number, n):
    for s in TENTHS:
        side = [number(str(float(s)))] * n
        assert par_rewards(side, side) == ([0.0] * n, [0.0] * n)


@pytest.mark.parametrize("number", [float, Fraction, Decimal, np.float32, np.float64])
def test_a_margin_of_exactly_two_is_low_and_the_next_tenth_is_high(number):
    for s in TENTHS[:-21]:
        at_two, above, below = (number(str(float(s + rise))) for rise in (F(2), F("2.1"), F("0.1")))
        base = number(str(float(s)))
        assert par_rewards([at_two], [base] * 8) == ([1.2], [1.2] * 8)
        assert par_rewards([above], [base] * 8) == ([1.4], [1.4] * 8)
        assert par_rewards([below], [base] * 8) == ([1.2], [1.2] * 8)
        assert par_rewards([base], [below]) == ([0.0], [0.0])


def test_the_threshold_is_its_decimal_too():
    for tenths in range(2, 101):
        threshold = tenths / 10
        assert par_rewards([threshold], [0], graded(threshold)) == ([1.2], [1.2])
        assert par_rewards([threshold], [0], graded((tenths - 1) / 10)) == ([1.4], [1.4])


def test_a_margin_reward_is_called_with_exact_positive_margins_only():
    seen = []

    def f(margin):
        seen.append(margin)
        return margin

    par_c, par_r = par_rewards([5, 8.3, None, 2], [5, 5], f)
    assert seen == [F("3.3"), F("0.1"), F("0.1")]
    assert par_c == [0.0, 3.3, 0.0, 0.0] and par_r == [0.1, 0.1]
    assert all(type(r) is float for r in par_c + par_r)


@pytest.mark.parametrize(
    ("number", "fraction"),
    [
        (8.3, F(83, 10)),
        (-0.0, F(0)),
        (1e-7, F(1, 10**7)),
        (7, F(7)),
        (Decimal("7.25"), F(29, 4)),
        (F(1, 3), F(1, 3)),
        (np.float32(8.3), F(83, 10)),
        (np.float64(8.3), F(83, 10)),
        (np.float16(8.3), F("8.3")),
        (np.int8(100), F(100)),
        (np.uint8(3), F(3)),
    ],
)
def test_a_number_stands_for_its_shortest_decimal(number, fraction):
    assert exact(number) == fraction
    assert type(exact(number).numerator) is int  # numpy's would wrap around in a sum
    assert mean_score([number] * 3) == fraction


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), -float("inf"), Decimal("NaN"), Decimal("-Infinity"), True, False]
    + [np.float32("nan"), np.bool_(True), "7", 1j, [7]],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_finite_number_is_refused_in_one_line(bad, place):
    pair = [[5.0], [6.0, None]]
    pair[place].append(bad)
    with pytest.raises(ValueError) as error:
        par_rewards(*pair)
    assert "\n" not in str(error.value) and "finite number" in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: graded(threshold=-1),
        lambda: graded(threshold=float("nan")),
        lambda: graded(low=-0.1),
        lambda: graded(low=1.5, high=1.4),
        lambda: graded(high=float("inf")),
        lambda: constant(-1),
        lambda: constant(float("nan")),
    ],
)
def test_a_margin_reward_refuses_impossible_levels(build):
    with pytest.raises(ValueError):
        build()


def test_margin_rewards_compare_print_and_pickle():
    assert graded() == graded(2.0, 1.2, 1.4) != graded(threshold=1.0)
    assert repr(constant()) == "Constant(value=1.3)"
    f = graded()
    assert f(F(2)) == 1.2 and pickle.loads(pickle.dumps(f)) == f  # also once it has been called


@given(st.lists(judgments, max_size=8), st.lists(judgments, max_size=8))
def test_a_total_is_one_of_the_listed_rewards_and_the_sum_of_its_parts(chosen, rejected):
    for f, levels in [(graded(), {-1.5, -1.0, 0, 1.2, 1.4}), (constant(), {-1.5, -1.0, 0, 1.3})]:
        totals = total_rewards(chosen, rejected, f)
        pars = par_rewards([j.score for j in chosen], [j.score for j in rejected], f)
        for side, total, par in zip((chosen, rejected), totals, pars, strict=True):
            assert set(total) <= levels
            for judgment, r, r_par in zip(side, total, par, strict=True):
                assert r == {None: r_par, "tags": -1.5, "score": -1.0}[judgment.error]


def test_an_invalid_judgment_enters_no_mean():
    # 11 would lift the rejected mean above 6, 0 would pull it down below 5.
    for invalid in (parse(judgment_text("11")), parse("0")):
        totals = total_rewards([parse(judgment_text("6"))], [parse(judgment_text("5")), invalid])
        assert totals == ([1.2], [1.2, invalid.format_reward])


def test_pairwise_rewards_pay_the_right_choice_and_the_format():
    texts = [judgment_text("A"), judgment_text("B"), judgment_text("C"), "A"]
    parsed = [parse(text, answer="choice") for text in texts]
    assert pairwise_rewards(parsed, "A") == [1.0, 0.0, -1.0, -1.5]
    assert pairwise_rewards(parsed, "B") == [0.0, 1.0, -1.0, -1.5]


def test_judgments_of_the_other_mode_are_refused():
    point, pair = parse(judgment_text("7")), parse(judgment_text("A"), answer="choice")
    with pytest.raises(ValueError, match="answer='choice'"):
        total_rewards([point], [pair])
    with pytest.raises(ValueError, match="answer='score'"):
        pairwise_rewards([pair, point], "A")
    with pytest.raises(ValueError, match="right_choice"):
        pairwise_rewards([pair], "chosen")
