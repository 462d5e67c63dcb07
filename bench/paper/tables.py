"""Rows of each experiment, ours over the paper's."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isinf
from pathlib import Path

from bench.paper.facts import VOTES
from bench.paper.findings import Facts, Number, at_step, held_out, on_curve, percent, rm_bench
from bench.paper.plan import ARMS, NOISE
from bench.paper.verdict import estimate
from patarm_core.embedded.tasks import TASKS
from rollout.contexts import read_text

Rows = list[list[str]]
TASK_NAMES = tuple(task.name for task in TASKS)
LEVELS = ("Easy", "Normal", "Hard")


@dataclass(frozen=True, slots=True)
class Table:
    caption: str
    rows: Rows


@cache
def published() -> dict:
    return tomllib.loads(read_text(str(Path(__file__).with_name("published.toml"))))


def published_table(name: str) -> Table:
    numbers = dict(published()[name])
    columns = numbers.pop("columns")
    rows = [[label, *(f"{value:g}" for value in values)] for label, values in numbers.items()]
    return Table("The paper", [["as printed", *columns], *rows])


def cell(number: Number, facts: Sequence[Facts], form: str = ".1f") -> str:
    """Mean over seeds ± half of the 95 % interval; "-" where no seed has the number."""
    values = [value for of_seed in facts if (value := number(of_seed)) is not None]
    if not values:
        return "-"
    found = estimate(values)
    return f"{found.mean:{form}}" + ("" if isinf(found.half_width) else f" ± {found.half_width:{form}}")


def _plain(arm: str, votes: int, key: str) -> Number:
    return lambda facts: facts["held_out"].get(arm, {}).get(str(votes), {}).get(key)


def _row(arm: str, votes: int, facts: Sequence[Facts], with_rm: bool) -> list[str]:
    scalar = ARMS[arm].is_scalar
    row = [ARMS[arm].label, "-" if scalar else str(votes), cell(held_out(arm, votes), facts)]
    row += [cell(held_out(arm, votes, task), facts) for task in TASK_NAMES]
    if with_rm:
        row += [cell(rm_bench(arm, votes, level), facts) for level in ("Overall", *LEVELS)]
    return row


def _both_benchmarks(arms: Sequence[str], facts: Sequence[Facts], with_rm: bool) -> Rows:
    head = ["model", "votes", "overall", *TASK_NAMES, *(["RM-Bench", *LEVELS] if with_rm else [])]
    rows = [_row(arm, votes, facts, with_rm) for arm in arms for votes in ((1,) if ARMS[arm].is_scalar else (1, 8))]
    return [head, *rows]


def _matrix(arms: Sequence[str], facts: Sequence[Facts]) -> Rows:
    """Rows of the 3 × 3 matrix: the right response in a style against the wrong one in each."""
    rows = [["model", "right response", "against plain", "against one phrase", "against all phrases"]]
    for arm in arms:
        votes = "1" if ARMS[arm].is_scalar else "8"
        for i, style in enumerate(("plain", "one phrase", "all phrases")):

            def number(of_seed: Facts, i: int, j: int, arm: str = arm, votes: str = votes) -> float | None:
                cells = of_seed["rm_bench"].get(arm, {}).get(votes, {}).get("cells")
                return None if cells is None else 100 * cells[i][j]

            cells = [cell(lambda of_seed, i=i, j=j: number(of_seed, i, j), facts) for j in range(3)]
            rows.append([ARMS[arm].label, style, *cells])
    return rows


def _models(name: str, arms: Sequence[str], facts: Sequence[Facts]) -> list[Table]:
    about = "Embedded pairs by task, as RewardBench's sections, and the same questions in RM-Bench's form"
    return [
        Table(f"{about}, percent", _both_benchmarks(arms, facts, with_rm=True)),
        Table("Right response against wrong one by style, percent, most votes", _matrix(
            [arm for arm in arms if any(arm in of_seed["rm_bench"] for of_seed in facts)], facts)),
        published_table(name),
    ]  # fmt: skip


def _table4(facts: Sequence[Facts]) -> list[Table]:
    rows = [["rubrics", "SFT only, voting@8", "after RL, voting@1", "voting@8", "entropy left, %"]]
    arms = (("both", "sft", "patarm"), ("only primary", "sft_primary", "primary"),
            ("only generated", "sft_generated", "generated"))  # fmt: skip
    for label, start, arm in arms:

        def left(of_seed: Facts, arm: str = arm) -> float | None:
            ends = of_seed["entropy"].get(arm)
            return 100 * ends[1] / ends[0] if ends else None

        numbers = [held_out(start, 8), held_out(arm, 1), held_out(arm, 8), left]
        rows.append([label, *(cell(number, facts) for number in numbers)])
    return [Table("Pointwise, overall, percent", rows), published_table("table4")]


def _figure3(facts: Sequence[Facts]) -> list[Table]:
    rows = [["after step", "accuracy, f graded", "f constant", "margin, f graded", "f constant"]]
    for step in steps_of(facts):
        shares = [percent(at_step(arm, "accuracy", step)) for arm in ("patarm", "constant")]
        margins = [at_step(arm, "margin", step) for arm in ("patarm", "constant")]
        rows.append([str(step), *(cell(n, facts) for n in shares), *(cell(n, facts, ".2f") for n in margins)])
    end = [["in the end, held-out pairs", "accuracy, voting@8", "margin"]]
    for arm, label in (("patarm", "f graded"), ("constant", "f constant")):
        end.append([label, cell(held_out(arm, 8), facts), cell(_plain(arm, 8, "margin"), facts, ".2f")])
    return [Table("Dev pairs over the steps of RL, percent and points of score", rows), Table("Held-out pairs", end)]


def steps_of(facts: Sequence[Facts]) -> list[int]:
    """At which figure 3 has a measurement, of any seed."""
    arms = ("patarm", "constant")
    return sorted({step for of_seed in facts for arm in arms for step in on_curve(arm, "accuracy")(of_seed)})


def _figure4(facts: Sequence[Facts]) -> list[Table]:
    rows = [["flipped labels", "PaTaRM, voting@1", "voting@8", "ties as half", "BTRM", "ties as half"]]
    rows.append(
        [
            "step 0 (SFT only)",
            *(cell(n, facts) for n in (held_out("sft", 1), held_out("sft", 8), held_out("sft", 8, "ties_half"))),
            "-",
            "-",
        ]
    )
    for flipped in (0, *NOISE):
        patarm, bt = (name if not flipped else f"{name}_noise{flipped}" for name in ("patarm", "bt"))
        numbers = [held_out(patarm, 1), held_out(patarm, 8), held_out(patarm, 8, "ties_half")]
        numbers += [held_out(bt, 1), held_out(bt, 1, "ties_half")]
        rows.append([f"{flipped} %", *(cell(number, facts) for number in numbers)])
    return [Table("The same flips for both, percent", rows), published_table("figure4")]


def _figure5(facts: Sequence[Facts]) -> list[Table]:
    rows = [["votes", "PaTaRM, average", "majority", "SFT only, average", "majority"]]
    for n in VOTES:
        numbers = [held_out(arm, n, key) for arm in ("patarm", "sft") for key in ("overall", "majority")]
        rows.append([str(n), *(cell(number, facts) for number in numbers)])
    return [Table("All from one set of judgments, percent", rows)]


TABLES: dict[str, Callable[[Sequence[Facts]], list[Table]]] = {
    "table1": lambda facts: _models("table1", ["sft", "patarm", "bt"], facts),
    "table3": lambda facts: _models("table3", ["patarm", "sft_pair", "pair"], facts),
    "table4": _table4,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
}
