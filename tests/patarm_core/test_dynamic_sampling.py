"""Filling a step with pairs that teach: whole pairs, none twice, no more than are needed, exact when resumed."""

from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.dynamic_sampling import fill_step
from patarm_core.sampling import PairStream


def is_kept_by(seed, step):
    """Whether a pair teaches, as a function of (step, pair): about half do."""
    return lambda pairs: [hash((seed, step, pair)) % 2 == 0 for pair in pairs]


problems = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))


@given(problems)
@example((3, 8, 5, 0))  # more places than pairs
def test_a_step_keeps_the_pairs_that_teach_and_no_others(problem):
    num_pairs, size, max_rounds, seed = problem
    stream, asked = PairStream(num_pairs, seed), []

    def is_kept(pairs):
        asked.append(pairs)
        return is_kept_by(seed, 0)(pairs)

    filled = fill_step(stream, size, max_rounds, is_kept)
    drawn = [pair for of_round in asked for pair in of_round]
    assert len(set(drawn)) == len(drawn) == filled.num_drawn  # none twice
    assert filled.pairs == [pair for pair in drawn if is_kept_by(seed, 0)([pair])[0]]
    assert filled.num_dropped == len(drawn) - len(filled.pairs)
    assert filled.num_rounds == len(asked) <= max_rounds
    assert len(filled.pairs) <= size
    # It ends for one of three reasons: full, out of rounds, out of pairs.
    assert len(filled.pairs) == size or len(asked) == max_rounds or len(drawn) == num_pairs
    missing = size
    for of_round in asked:  # a round draws what is missing, and so wastes nothing
        assert len(of_round) == min(missing, num_pairs - len(drawn[: drawn.index(of_round[0])]))
        missing -= sum(is_kept_by(seed, 0)(of_round))


@given(problems, st.integers(0, 6))
def test_a_run_that_resumes_draws_what_it_would_have_drawn(problem, cut):
    num_pairs, size, max_rounds, seed = problem

    def steps(stream, first, last):
        return [fill_step(stream, size, max_rounds, is_kept_by(seed, step)) for step in range(first, last)]

    stream = PairStream(num_pairs, seed)
    whole = steps(stream, 0, 6)
    before = PairStream(num_pairs, seed)
    begun = steps(before, 0, cut)
    after = PairStream(num_pairs, seed)
    after.load_state_dict(before.state_dict())
    assert begun + steps(after, cut, 6) == whole
    assert after.state_dict() == stream.state_dict()


def test_when_all_teach_one_round_is_enough():
    stream = PairStream(10, seed=1)
    filled = fill_step(stream, 4, 5, lambda pairs: [True] * len(pairs))
    assert (len(filled.pairs), filled.num_drawn, filled.num_rounds, stream.position) == (4, 4, 1, 4)


def test_when_none_teach_the_rounds_or_the_pairs_run_out():
    filled = fill_step(PairStream(10, seed=1), 4, 2, lambda pairs: [False] * len(pairs))
    assert (filled.pairs, filled.num_drawn, filled.num_rounds) == ([], 8, 2)
    filled = fill_step(PairStream(10, seed=1), 4, 9, lambda pairs: [False] * len(pairs))
    assert (filled.pairs, filled.num_drawn, filled.num_rounds) == ([], 10, 3)
