import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.benchmarks.report import (
    NUM_RESAMPLES,
    SEED,
    Metric,
    RowError,
    composites,
    missing_parts,
    proportion,
    read_rows,
)
from patarm_core.stats import wilson_interval


def number(row):
    if not isinstance(row["x"], int):
        raise ValueError("x: is not a whole number; expected one")
    return complex(row["x"])


def test_a_bad_row_is_named_by_its_place():
    with pytest.raises(RowError, match=r"^row 2: x: is not a whole number; expected one$") as caught:
        read_rows([{"x": 1}, {"x": "2"}], number)
    assert (caught.value.index, caught.value.problem) == (1, "x: is not a whole number; expected one")


def test_no_rows_are_an_error_and_so_are_two_of_one_item():
    with pytest.raises(ValueError, match="no rows"):
        read_rows([], number)
    with pytest.raises(RowError, match=r"row 3: real: row 1 has the same; expected each item once"):
        read_rows([{"x": 4}, {"x": 5}, {"x": 4}], number, unique="real")


def test_a_proportion_has_its_wilson_interval_and_a_share_of_nothing_has_no_value():
    assert proportion("a", 3, 4) == Metric("a", 0.75, 4, *wilson_interval(3, 4))
    assert proportion("a", 0, 0) == Metric("a", None, 0, None, None)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.lists(st.integers(0, 1), min_size=1, max_size=5))
def test_a_composite_is_resampled_part_by_part(a, b):
    """The same, the slow way: the mean of two parts' means, and of none where it does not exist."""

    def statistic(sums):
        share = None if sums["b"]["x"] == 0 else sums["a"]["x"] / sums["b"]["x"]
        return {"mean": (sums["a"]["x"] / len(a) + sums["b"]["x"] / len(b)) / 2, "share": share}

    got = composites({"a": {"x": a}, "b": {"x": b}}, statistic, lambda key: (key.upper(), 7))
    rng, means, shares = random.Random(SEED), [], []
    for _ in range(NUM_RESAMPLES):
        of_a, of_b = (sum(part[rng.choices(range(len(part)), k=1)[0]] for _ in part) for part in (a, b))
        means.append((of_a / len(a) + of_b / len(b)) / 2)
        shares += [of_a / of_b] if of_b else []
    means.sort()
    value = (sum(a) / len(a) + sum(b) / len(b)) / 2
    assert got["mean"].name == "MEAN" and got["mean"].num == 7 and math.isclose(got["mean"].value, value)
    ends = (means[25], means[-26])
    assert (got["mean"].low, got["mean"].high) == (ends if ends[0] < ends[1] else (None, None))
    assert (got["share"].value is None) == (sum(b) == 0)
    if sum(b):
        if got["share"].low is not None:
            assert min(shares) <= got["share"].low < got["share"].high <= max(shares)
    else:
        assert got["share"] == Metric("SHARE", None, 7)


@pytest.mark.parametrize("a", [[1], [1, 1, 1]])
def test_prompts_that_show_no_spread_give_no_interval(a):
    def statistic(sums):
        return {"a": sums["a"]["x"] / len(a), "both": (sums["a"]["x"] / len(a) + sums["b"]["x"] / 4) / 2}

    got = composites({"a": {"x": a}, "b": {"x": [0, 1, 1, 0]}}, statistic, lambda key: (key, 1))
    assert got["a"] == Metric("a", 1.0, 1)  # and not 100 % to 100 %
    assert got["both"].low < 0.75 < got["both"].high


def test_what_is_missing_or_too_much_is_named():
    assert missing_parts({"chat": 129, "code": 229}, {"chat": 129, "math": 529, "code": 228}) == [
        "math: 0 of 529",
        "code: 229 of 228",
    ]
