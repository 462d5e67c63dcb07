"""Hypothesis strategies shared by the tests."""

from fractions import Fraction

from hypothesis import strategies as st

from patarm_core.judgment import Judgment, parse

# Scores as judges write them: one decimal makes ties and margins of exactly 2 common, more decimals do not.
scores = st.one_of(
    st.integers(0, 100).map(lambda tenths: Fraction(tenths, 10)),
    st.integers(0, 10**6).map(lambda millionths: Fraction(millionths, 10**5)),
)
# One side of a pair: the scores of its judgments, None for an invalid one.
sides = st.lists(st.none() | scores, max_size=8)
full_sides = st.lists(scores, min_size=1, max_size=8)

# Rewards as PAR gives them, and any others.
rewards = st.sampled_from([-1.5, -1.0, 0.0, 1.2, 1.3, 1.4]) | st.floats(-10, 10)
# (reward, group id) rows of one batch.
grouped_rewards = st.lists(st.tuples(rewards, st.integers(0, 3)), max_size=24)


def judgment_text(answer: str, rubrics: str = "adaptive") -> str:
    """A judgment with right tags around any answer."""
    generated = "" if rubrics == "primary" else "<generate_rubrics>Brevity: is it short?</generate_rubrics>\n"
    return f"<think>I compare.</think>\n{generated}<eval>It is short.</eval>\n<answer>{answer}</answer>"


# Pointwise judgments, parsed: with scores, with invalid scores and with tag errors.
judgments: st.SearchStrategy[Judgment] = st.one_of(
    st.integers(0, 100).map(lambda tenths: parse(judgment_text(str(tenths / 10)))),
    st.sampled_from(["8/10", "11", ""]).map(lambda answer: parse(judgment_text(answer))),
    st.just(parse("<answer>7</answer>")),
)
