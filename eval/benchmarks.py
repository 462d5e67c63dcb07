"""The benchmarks a judge runs over: what it is asked of an item, and what its judgments say in the aggregation's rows.

From one set of judgments come the rows of every voting@n under every policy (paper, sec. 5.4):

    average   pointwise: a response's score is the mean of its first n
    majority  pointwise: the i-th judgments of two responses vote together; pairwise: each judgment is a vote

    M judgments of each question   n of them that vote
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from eval.data.humanevalpack import read_humanevalpack
from eval.data.items import Data, Item
from eval.data.judgebench import read_judgebench
from eval.data.llmbar import read_llmbar
from eval.data.rewardbench import read_rewardbench, read_rewardbench2
from eval.data.rm_bench import read_rm_bench
from eval.data.rmb import read_rmb
from eval.judges.judge import WINNERS, Drawn, Mode, Question, Winner, choice_of, mean_of
from patarm_core.benchmarks.report import Report
from patarm_core.benchmarks.rm_bench import NUM_STYLES
from patarm_core.voting import at_n, majority

Policy = Literal["average", "majority"]
Row = dict[str, object]
_RESULTS: Mapping[Winner | None, float | None] = {"A": 1, "B": 0, "tie": 0.5, None: None}  # A is the chosen one
_SHARES: Mapping[Winner | None, tuple[float | None, float | None]] = {
    "A": (1, 0), "B": (0, 1), "tie": (0.5, 0.5), None: (None, None),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: its reader, and how its rows are made."""

    read: Callable[[Path], Data]
    aggregation: str  # module of patarm_core.benchmarks
    pairs: Callable[[Item], Sequence[tuple[int, int]]] | None  # responses to be compared; None: scores alone count
    scored: Callable[[Item, Sequence[float | None]], Row]  # from the score of each response
    compared: Callable[[Item, Sequence[Winner | None]], Row] | None = None  # from the winner of each of `pairs`
    has_both_orders: bool = False  # `pairs` names both, so a judge must read each as it is given

    def report(self, rows: Sequence[Row]) -> Report:
        return import_module(f"patarm_core.benchmarks.{self.aggregation}").report(rows)

    def questions(self, item: Item, mode: Mode) -> list[Question]:
        """Of one item: each response, or each pair of them."""
        prompt = tuple({"role": turn.role, "content": turn.content} for turn in item.prompt)
        if mode == "pointwise":
            asked = {f"{item.id}#{i}": (response,) for i, response in enumerate(item.responses)}
        else:
            asked = {f"{item.id}#{i}:{j}": (item.responses[i], item.responses[j]) for i, j in self.pairs(item)}
        return [
            Question(id=name, task=item.task, prompt=prompt, responses=responses) for name, responses in asked.items()
        ]

    def policies(self, mode: Mode) -> list[Policy]:
        """That can be applied to the judgments, the first one for the headline."""
        if mode == "pairwise":
            return ["majority"]
        return ["average"] if self.pairs is None else ["average", "majority"]

    def row(self, item: Item, drawn: Sequence[Sequence[Drawn]], policy: Policy, votes: int, mode: Mode) -> Row:
        """The item's row for the aggregation, from the first `votes` judgments of each of its questions."""
        if mode == "pairwise":
            return {**item.row, **self.compared(item, [choice_of(one, votes) for one in drawn])}
        if policy == "average":
            means = [mean_of(one, votes) for one in drawn]
            return {**item.row, **self.scored(item, [None if mean is None else float(mean) for mean in means])}
        scores = [[judgment.score for judgment in at_n(one, votes)] for one in drawn]
        if len(scores) == 2:  # as scores, so that a tie counts as one of means does, and one vote says the same
            return {**item.row, **self.scored(item, _SHARES[WINNERS[majority(*scores)]])}
        winners = [WINNERS[majority(scores[i], scores[j])] for i, j in self.pairs(item)]
        return {**item.row, **self.compared(item, winners)}


def _one_order(item: Item) -> list[tuple[int, int]]:
    return [(0, 1)]


def _both_orders(item: Item) -> list[tuple[int, int]]:
    return [(0, 1), (1, 0)]


def _shifted(item: Item) -> list[tuple[int, int]]:
    """All nine cells as three passes, (i, (i + k) mod 3) for k = 0, 1, 2."""
    return [(i, NUM_STYLES + (i + k) % NUM_STYLES) for k in range(NUM_STYLES) for i in range(NUM_STYLES)]


def _cells(item: Item, winners: Sequence[Winner | None]) -> Row:
    """The 3x3 matrix of verdicts, by style of the chosen and of the rejected response."""
    won = dict(zip(_shifted(item), winners, strict=True))
    styles = range(NUM_STYLES)
    return {"results": [[_RESULTS[won[i, NUM_STYLES + j]] for j in styles] for i in styles]}


def _best_against_others(item: Item) -> list[tuple[int, int]]:
    return [(0, other) for other in range(1, len(item.responses))]


def _is_pair(item: Item) -> bool:
    return item.row["task"] == "pairwise"


def _pair_or_list(item: Item, scores: Sequence[float | None]) -> Row:
    if _is_pair(item):
        return _chosen_and_rejected(item, scores)
    return {"score_best": scores[0], "scores_losers": list(scores[1:])}


def _won(item: Item, winners: Sequence[Winner | None]) -> Row:
    results = [_RESULTS[winner] for winner in winners]
    return {"result": results[0]} if _is_pair(item) else {"results": results}


def _chosen_and_rejected(item: Item, scores: Sequence[float | None]) -> Row:
    chosen, rejected = scores
    return {"score_chosen": chosen, "score_rejected": rejected}


_PAIRS = {
    "aggregation": "rewardbench", "pairs": _one_order, "scored": _chosen_and_rejected,
    "compared": lambda item, winners: {"result": _RESULTS[winners[0]]},
}  # fmt: skip

BENCHMARKS: Mapping[str, Benchmark] = {
    "rm_bench": Benchmark(
        read=read_rm_bench, aggregation="rm_bench", pairs=_shifted, compared=_cells,
        scored=lambda item, scores: {
            "scores_chosen": list(scores[:NUM_STYLES]), "scores_rejected": list(scores[NUM_STYLES:])
        },
    ),
    "rewardbench": Benchmark(read=read_rewardbench, **_PAIRS),
    "hep": Benchmark(read=read_humanevalpack, **_PAIRS),
    "rewardbench2": Benchmark(
        read=read_rewardbench2, aggregation="rewardbench2", pairs=None,
        scored=lambda item, scores: {"scores": list(scores)},
    ),
    "rmb": Benchmark(
        read=read_rmb, aggregation="rmb", pairs=_best_against_others, scored=_pair_or_list, compared=_won
    ),
    "llmbar": Benchmark(
        read=read_llmbar, aggregation="llmbar", pairs=_both_orders, has_both_orders=True,
        scored=lambda item, scores: {"score_1": scores[0], "score_2": scores[1]},
        compared=lambda item, winners: {"winners": _both_winners(*winners)},
    ),
    "judgebench": Benchmark(
        read=read_judgebench, aggregation="judgebench", pairs=_both_orders, has_both_orders=True,
        scored=lambda item, scores: {"scores": list(scores)},
        compared=lambda item, winners: {"decisions": _two_games(*winners)},
    ),
}  # fmt: skip


def _two_games(*winners: Winner | None) -> list[str | None]:
    """Each about the pair in the order of its game, the second one swapped."""
    names = {"A": "A>B", "B": "B>A", "tie": "A=B", None: None}
    return [names[winner] for winner in winners]


def _both_winners(first: Winner | None, second: Winner | None) -> list[str | None]:
    """In the instance's own order."""
    return [{"A": "1", "B": "2"}.get(first, first), {"A": "2", "B": "1"}.get(second, second)]
