from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from eval.judges.judge import Drawn, Question, choice_of, compare_two, mean_of, score


@dataclass
class Scripted:
    """A judge that answers by rote."""

    mode: str
    answers: dict[tuple[str, ...], list[Drawn]]
    name: str = "scripted"
    fingerprint: dict = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        self.asked += questions
        for index in reversed(range(len(questions))):  # any order
            yield index, self.answers[questions[index].responses][:votes]


def scores(*values):
    return [Drawn(score=value, error=None if value is not None else "none") for value in values]


def choices(*values):
    return [Drawn(choice=value, error=None if value is not None else "none") for value in values]


def test_a_score_is_the_mean_of_the_valid_ones_and_never_0_for_none():
    judge = Scripted("pointwise", {("good",): scores(8, None, 7.5), ("none",): scores(None, None, None)})
    assert score(judge, "Why?", "good", votes=3) == 7.75
    assert score(judge, "Why?", "none", votes=3) is None


def test_means_are_exact():
    assert mean_of(scores(*[8.3] * 8), 8) == mean_of(scores(8.3), 1)


def test_two_responses_are_compared_by_their_means_or_by_choice():
    point = Scripted("pointwise", {("a",): scores(8), ("b",): scores(7.5), ("none",): scores(None)})
    assert [compare_two(point, "Why?", *pair) for pair in ("ab", "ba", "aa", ("a", "none"))] == ["A", "B", "tie", None]
    pair = Scripted("pairwise", {("a", "b"): choices("B")})
    assert compare_two(pair, "Why?", "a", "b") == "B"


@pytest.mark.parametrize(
    "votes, expected",
    [("A", "A"), ("AAB", "A"), ("AB", "tie"), ("tA", "A"), ("tt", "tie"), ("-t", "tie"), ("-", None), ("-B", "B")],
)
def test_ties_and_unread_choices_abstain(votes, expected):
    drawn = choices(*({"t": "tie", "-": None}.get(vote, vote) for vote in votes))
    assert choice_of(drawn, len(votes)) == expected


def test_scores_of_both_are_summed_where_a_judge_gives_them():
    """Two votes for A by a hair, one for B by far: the sum is B's."""
    drawn = [Drawn(choice=c, scores=s) for c, s in [("A", (6, 5)), ("A", (6, 5)), ("B", (1, 9))]]
    assert choice_of(drawn, 2) == "A" and choice_of(drawn, 3) == "B"


def test_every_n_is_read_from_the_first_of_one_set():
    drawn = scores(2, 4, 9)
    assert [mean_of(drawn, n) for n in (1, 2, 3)] == [2, 3, 5]
    with pytest.raises(ValueError, match="n=4 of 3"):
        mean_of(drawn, 4)
