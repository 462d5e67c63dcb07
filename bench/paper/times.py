"""Tables 8 and 9 from what the commands `step` and `downstream` have measured: bench/results/ holds their records."""

from __future__ import annotations

import json
from pathlib import Path

from bench.paper.findings import Facts, Finding, Judged, judge
from bench.paper.tables import Table, cell, published, published_table
from rollout.contexts import read_text

RESULTS = Path(__file__).parent.parent / "results"
STEP, DOWNSTREAM = RESULTS / "step" / "step.json", RESULTS / "downstream" / "downstream.json"


def time_tables(name: str, file: Path | None = None) -> tuple[str, list[Table], list[Facts], list[Judged]]:
    """
    Args:
        name: table8 or table9.
        file: the record; the one in bench/results.

    Returns:
        What was measured in words, the tables, facts of each turn or seed, and verdicts.
    """
    file = file or {"table8": STEP, "table9": DOWNSTREAM}[name]
    command = f"bench/main.py {file.stem}"
    if not file.is_file():
        rows = [["not measured", f"run {command} --out {file.parent.name}"]]
        return "Not measured.", [Table("Ours", rows), published_table(name)], [], judge(_FINDINGS[name], [])
    record = json.loads(read_text(file))
    facts = _of_step(record) if name == "table8" else _of_downstream(record)
    make = _table8 if name == "table8" else _table9
    units = "timed turns" if name == "table8" else "seeds"
    said = f"{len(facts)} {units} of `{command}`, which stand for the seeds."
    return said, [make(facts), published_table(name)], facts, judge(_FINDINGS[name], facts)


def _of_step(record: dict) -> list[Facts]:
    """Of each timed turn: seconds of a step by n."""
    of_n = {str(one["num_rollouts"]): one["tree"]["turns"]["step_s"] for one in record["records"]}
    return [{"step_s": dict(zip(of_n, turn, strict=True))} for turn in zip(*of_n.values(), strict=True)]


def _of_downstream(record: dict) -> list[Facts]:
    return [
        {"step_s": {name: of_seed[name]["step_s"] for name in ("scalar", "judge")}} for of_seed in record["runs"]
    ]  # fmt: skip


def _ratio(first: str, second: str):
    def ratio(facts: Facts) -> float | None:
        seconds = facts["step_s"]
        return seconds[first] / seconds[second] if first in seconds and second in seconds else None

    return ratio


def _table8(facts: list[Facts]) -> Table:
    paper = {str(row[0]): row[1] for label, row in published()["table8"].items() if label.startswith("8B, 4k")}
    rows = [["n", "ours, s/step", "over n = 4", "paper, s/step", "over n = 4"]]
    for n in facts[0]["step_s"]:
        ours = cell(lambda of_turn, n=n: of_turn["step_s"][n], facts, ".2f")
        of_paper = [f"{paper[n]:g}", f"{paper[n] / paper['4']:.2f}"] if n in paper else ["-", "-"]
        rows.append([n, ours, cell(_ratio(n, "4"), facts, ".2f"), *of_paper])
    return Table(
        "8B at 4k on 16 A100s beside 6.6 M parameters and texts a twelfth as long on two cores; timed turns", rows
    )


def _table9(facts: list[Facts]) -> Table:
    rows = [["", "scalar, s/step", "judge, s/step", "judge / scalar"]]
    seconds = [cell(lambda of_seed, name=name: of_seed["step_s"][name], facts, ".2f") for name in ("scalar", "judge")]
    rows.append(["ours", *seconds, cell(_ratio("judge", "scalar"), facts, ".2f")])
    for size in ("8B", "14B"):
        bt, patarm = (published()["table9"][f"{size}, {kind}"][0] for kind in ("BT", "PaTaRM"))
        rows.append([f"paper, {size}", f"{bt:g}", f"{patarm:g}", f"{patarm / bt:.2f}"])
    return Table("A policy's step", rows)


def _less(number, by: float):
    return lambda facts: None if (value := number(facts)) is None else value - by


_FINDINGS = {
    "table8": [
        Finding("a step takes longer in proportion to n: from 4 to 16 at least 3.5 times", "3.89 times",
                _less(_ratio("16", "4"), 3.5), "times, less 3.5"),
    ],
    "table9": [
        Finding("a step with a judge takes longer than with a scalar model", "1.25 and 1.39 times",
                _less(_ratio("judge", "scalar"), 1), "times, less 1"),
        Finding("by at most 40 %", "25 to 39 %", lambda facts: -_less(_ratio("judge", "scalar"), 1.4)(facts),
                "times below 1.4"),
    ],
}  # fmt: skip
