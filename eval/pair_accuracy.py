"""How often a judge ranks the chosen response of a preference pair above the rejected one, with voting@n.

It scores each response by itself (pointwise) or chooses between the two (pairwise, eval/pair_choices.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from eval.pair_choices import PairChoices, read_choices
from eval.pair_scores import ScoredPair
from kernels.philox import stream_seed
from patarm_core.judgment import JudgeMode, Judgment, RubricSetting, parse, read_answer
from patarm_core.pairs import Pair
from patarm_core.stats import wilson_interval
from patarm_core.voting import Verdict, at_n, compare, mean_score
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

    @property
    def judgments(self) -> list[Judgment]:
        """The strict parser's, of both sides."""
        return self.chosen + self.rejected

    def verdict(self, votes: int) -> Verdict | None:
        """Which side has the higher mean of its first `votes` judgments (METHOD: average voting)."""
        return compare(*self._means(votes))

    def margin(self, votes: int) -> Fraction | None:
        """Mean chosen score - mean rejected score; None where a side has none."""
        chosen, rejected = self._means(votes)
        return None if chosen is None or rejected is None else chosen - rejected

    def _means(self, votes: int) -> list[Fraction | None]:
        return [mean_score(at_n(side_scores, votes)) for side_scores in self.scores]

    def records(self) -> list[dict]:
        """One JSON-ready line per judgment."""
        sides = zip(
            ("chosen", "rejected"), (self.chosen_texts, self.rejected_texts), (self.chosen, self.rejected), self.scores,
            strict=True,
        )  # fmt: skip
        return [
            {
                "source": self.pair.source, "id": self.pair.id, "side": side, "judgment": text,
                "score": None if score is None else float(score), "error": judgment.error,
            }
            for side, texts, judgments, scores in sides
            for text, judgment, score in zip(texts, judgments, scores, strict=True)
        ]  # fmt: skip


Judged = JudgedPair | PairChoices | ScoredPair


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSampling:
    """How pairs are judged. Noise is named by (stream, source, id, side) alone, and so is the order of A and B."""

    n: int  # judgments of each context: of each side, or of both together
    max_tokens: int
    temperature: float = 1.0
    stream: tuple[int | str, ...]
    mode: JudgeMode = "pointwise"

    @property
    def num_judgments(self) -> int:
        """Of one pair."""
        return 2 * self.n if self.mode == "pointwise" else self.n

    def contexts(self, builder: ContextBuilder, pair: Pair) -> tuple[list[int], ...]:
        """What is read: of the chosen and of the rejected response, or one context with both."""
        if self.mode == "pointwise":
            return builder.sides(pair)
        first, second = (pair.rejected, pair.chosen) if self.is_swapped(pair) else (pair.chosen, pair.rejected)
        return (builder.pairwise(pair.prompt, first, second, pair.task, f"pair {pair.id} of {pair.source}"),)

    def is_swapped(self, pair: Pair) -> bool:
        """Pairwise: the rejected response is shown as A."""
        return bool(stream_seed("order", *self.stream, pair.source, pair.id) & 1)

    def requests(self, pair: Pair, contexts: Sequence[list[int]]) -> list[tuple[list[int], SamplingParams]]:
        """One for each of the pair's contexts."""
        stream = (*self.stream, pair.source, pair.id)
        return [
            (context, judgment_params(self.n, self.max_tokens, self.temperature, *stream, side))
            for side, context in enumerate(contexts)
        ]

    def read(
        self, pair: Pair, completions: Sequence[Sequence[Completion]], rubrics: RubricSetting, is_lenient: bool
    ) -> Judged:
        """What the completions of the pair's contexts say: to training strictly, to evaluation leniently."""
        if self.mode == "pairwise":
            return read_choices(pair, completions[0], self.is_swapped(pair), rubrics, is_lenient)
        return (read_leniently if is_lenient else read_strictly)(pair, completions, rubrics)


def judge_sampling(
    n: int, seed: int, max_completion_tokens: int, temperature: float = 1.0, mode: JudgeMode = "pointwise"
) -> PairSampling:
    """Of every evaluation: a pair's judgments depend on (seed, source, id) and the weights alone."""
    return PairSampling(
        n=n, max_tokens=max_completion_tokens, temperature=temperature, stream=("judge", seed), mode=mode
    )


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
    mode: JudgeMode = "pointwise",
) -> list[Judged]:
    """Draws n judgments of both sides of each pair (pairwise: n of both together), read leniently."""
    sampling = judge_sampling(n, seed, max_completion_tokens, temperature, mode)
    of_pairs = [sampling.requests(pair, sampling.contexts(contexts, pair)) for pair in pairs]
    requests = [request for of_pair in of_pairs for request in of_pair]
    completions = iter(engine.generate(*zip(*requests, strict=True), progress) if requests else [])
    return [
        sampling.read(pair, [next(completions) for _ in of_pair], contexts.config.rubrics, is_lenient=True)
        for pair, of_pair in zip(pairs, of_pairs, strict=True)
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
    margin: float | None  # mean over scored pairs of (mean chosen score - mean rejected score); choices have none


def pair_accuracy(judged: Sequence[Judged], votes: int) -> PairAccuracy:
    """Accuracy of the first `votes` judgments: of each side's mean, or of the majority of choices (METHOD: sec. 6)."""
    verdicts = [item.verdict(votes) for item in judged]
    margins = [margin for item in judged if (margin := item.margin(votes)) is not None]
    right, ties, num = verdicts.count("chosen"), verdicts.count("tie"), len(judged)
    low, high = wilson_interval(right, num)
    return PairAccuracy(
        votes, num, right, ties, verdicts.count(None), right / num, low, high, (right + ties / 2) / num,
        float(sum(margins) / len(margins)) if margins else None,
    )  # fmt: skip


def format_rates(judged: Sequence[Judged]) -> dict[str, float]:
    """Shares of judgments that are valid, have a tag error, or have an invalid score, by the strict parser.

    Empty of pairs that were scored without judgments.
    """
    errors = [judgment.error for item in judged for judgment in item.judgments]
    if not errors:
        return {}
    return {
        "valid_rate": errors.count(None) / len(errors),
        "tag_error_rate": errors.count("tags") / len(errors),
        "score_error_rate": errors.count("score") / len(errors),
    }


def summary(judged: Sequence[Judged], votes: Sequence[int]) -> dict:
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
