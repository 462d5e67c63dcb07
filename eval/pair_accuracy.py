"""How often a judge ranks the chosen response of a preference pair above the rejected one, with voting@n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from patarm_core.judgment import Judgment, RubricSetting, parse, read_answer
from patarm_core.pairs import Pair
from patarm_core.stats import wilson_interval
from patarm_core.voting import at_n, compare, mean_score
from rollout.contexts import ContextBuilder
from rollout.engine import Engine
from rollout.params import Completion, SamplingParams
from rollout.questions import judgment_params


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """n judgments of each side of one pair, in the order in which they were drawn.

    Training scores a judgment by the strict parser alone; evaluation, which takes any judge as it is, by the lenient
    reader: the last well-formed answer, whatever stands around it.
    """

    pair: Pair
    chosen_texts: list[str]
    rejected_texts: list[str]
    chosen: list[Judgment]
    rejected: list[Judgment]
    lenient_scores: tuple[list[Fraction | None], list[Fraction | None]] | None = None

    @property
    def scores(self) -> tuple[list[Fraction | None], list[Fraction | None]]:
        """Of the chosen and of the rejected side; None where a judgment has no score."""
        return self.lenient_scores or ([j.score for j in self.chosen], [j.score for j in self.rejected])


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSampling:
    """How both sides of pairs are judged. The noise of a side is named by (stream, source, id, side) alone."""

    n: int  # judgments of each side
    max_tokens: int
    temperature: float = 1.0
    stream: tuple[int | str, ...]

    def requests(self, pair: Pair, contexts: Sequence[list[int]]) -> list[tuple[list[int], SamplingParams]]:
        """One for each side, given their contexts."""
        stream = (*self.stream, pair.source, pair.id)
        return [
            (context, judgment_params(self.n, self.max_tokens, self.temperature, *stream, side))
            for side, context in enumerate(contexts)
        ]


def judge_sampling(n: int, seed: int, max_completion_tokens: int, temperature: float = 1.0) -> PairSampling:
    """Of every evaluation: a pair's judgments depend on (seed, source, id) and the weights alone."""
    return PairSampling(n=n, max_tokens=max_completion_tokens, temperature=temperature, stream=("judge", seed))


def read_strictly(pair: Pair, sides: Sequence[Sequence[Completion]], rubrics: RubricSetting) -> JudgedPair:
    """A pair as training scores it, from the completions of its two sides."""
    texts = [[completion.text for completion in side] for side in sides]
    return JudgedPair(pair, *texts, *([parse(text, rubrics=rubrics) for text in side] for side in texts))


def read_leniently(pair: Pair, sides: Sequence[Sequence[Completion]], rubrics: RubricSetting) -> JudgedPair:
    """A pair as evaluation scores it (METHOD: sec. 3)."""
    judged = read_strictly(pair, sides, rubrics)
    scores = tuple([read_answer(text) for text in texts] for texts in (judged.chosen_texts, judged.rejected_texts))
    return replace(judged, lenient_scores=scores)


def judge_pairs(
    engine: Engine,
    contexts: ContextBuilder,
    pairs: Sequence[Pair],
    n: int,
    seed: int,
    max_completion_tokens: int,
    temperature: float = 1.0,
    progress: str = "",
) -> list[JudgedPair]:
    """Draws n judgments of both sides of each pair, scored by the lenient reader."""
    sampling = judge_sampling(n, seed, max_completion_tokens, temperature)
    requests = [request for pair in pairs for request in sampling.requests(pair, contexts.sides(pair))]
    completions = engine.generate(*zip(*requests, strict=True), progress) if requests else []
    return [
        read_leniently(pair, completions[2 * i : 2 * i + 2], contexts.config.rubrics) for i, pair in enumerate(pairs)
    ]


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """Pairwise accuracy with voting@n. A tie and an unscored pair count as wrong; both are shown."""

    votes: int
    num_pairs: int
    num_right: int
    num_ties: int
    num_unscored: int  # pairs with a side without any score
    accuracy: float
    low: float  # 95 % Wilson interval
    high: float
    accuracy_ties_half: float
    margin: float | None  # mean over scored pairs of (mean chosen score - mean rejected score)


def pair_accuracy(judged: Sequence[JudgedPair], votes: int) -> PairAccuracy:
    """Accuracy of the mean of the first `votes` judgments of each side (METHOD: average voting)."""
    means = [tuple(mean_score(at_n(side_scores, votes)) for side_scores in item.scores) for item in judged]
    verdicts = [compare(*pair) for pair in means]
    margins: list[Fraction] = [c - r for c, r in means if c is not None and r is not None]
    right, ties, num = verdicts.count("chosen"), verdicts.count("tie"), len(judged)
    low, high = wilson_interval(right, num)
    return PairAccuracy(
        votes, num, right, ties, verdicts.count(None), right / num, low, high, (right + ties / 2) / num,
        float(sum(margins) / len(margins)) if margins else None,
    )  # fmt: skip


def format_rates(judged: Sequence[JudgedPair]) -> dict[str, float]:
    """Shares of judgments that are valid, have a tag error, or have an invalid score, by the strict parser."""
    errors = [judgment.error for item in judged for judgment in (*item.chosen, *item.rejected)]
    return {
        "valid_rate": errors.count(None) / len(errors),
        "tag_error_rate": errors.count("tags") / len(errors),
        "score_error_rate": errors.count("score") / len(errors),
    }


def summary(judged: Sequence[JudgedPair], votes: Sequence[int]) -> dict:
    """Everything above in one JSON-ready object, by task too."""
    tasks = sorted({item.pair.task for item in judged})
    return {
        **format_rates(judged),
        "votes": [asdict(pair_accuracy(judged, n)) for n in votes],
        "by_task": {
            task: asdict(pair_accuracy([item for item in judged if item.pair.task == task], max(votes)))
            for task in tasks
        },
    }
