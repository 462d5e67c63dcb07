"""Tables 8 and 9 from what the commands `step` and `downstream` have measured: bench/results/ holds their records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.paper.findings import Facts, Finding, Number, fixed, minus
from bench.paper.tables import Table, cell, published, published_table
from rollout.contexts import read_text

RESULTS = Path(__file__).parent.parent / "results"
_MEASURED = {"table8": RESULTS / "step" / "step.json", "table9": RESULTS / "downstream" / "downstream.json"}


def time_facts(name: str, file: Path | None = None) -> list[Facts]:
    """Of each timed turn or seed; none where nothing was measured.

    Args:
        name: table8 or table9.
        file: the record; the one in bench/results.
    """
    file = file or _MEASURED[name]
    if not file.is_file():
        return []
    record = json.loads(read_text(file))
    return _of_step(record) if name == "table8" else _of_downstream(record)


def time_tables(name: str, facts: Sequence[Facts]) -> tuple[str, list[Table]]:
    """What was measured in words, and the tables."""
    file = _MEASURED[name]
    command = f"bench/main.py {file.stem}"
    if not facts:
        rows = [["not measured", f"run {command} --out bench/results/{file.parent.name}"]]
        return "Not measured.", [Table("Ours", rows), published_table(name)]
    make, units = (_table8, "timed turns") if name == "table8" else (_table9, "seeds")
    said = f"{len(facts)} {units} of `{command}`, which stand for the seeds."
    return said, [make(facts), published_table(name)]


def _of_step(record: dict) -> list[Facts]:
    """Of each timed turn: seconds of a step by n, and what took them."""
    size, shorten = record["num_parameters"] / 1e6, record["options"]["shorten"]
    setting = f"{size:.1f} M parameters, lengths divided by {shorten:g}, {record['machine']['device']}"
    of_n = {str(one["num_rollouts"]): one["tree"]["turns"]["step_s"] for one in record["records"]}
    turns = zip(*of_n.values(), strict=True)
    return [{"step_s": dict(zip(of_n, turn, strict=True)), "setting": setting} for turn in turns]


def _of_downstream(record: dict) -> list[Facts]:
    return [
        {"step_s": {name: of_seed[name]["step_s"] for name in ("scalar", "judge")}} for of_seed in record["runs"]
    ]  # fmt: skip


def _ratio(first: str, second: str) -> Number:
    def ratio(facts: Facts) -> float | None:
        seconds = facts["step_s"]
        return seconds[first] / seconds[second] if first in seconds and second in seconds else None

    return ratio


def _table8(facts: Sequence[Facts]) -> Table:
    paper = {str(row[0]): row[1] for label, row in published()["table8"].items() if label.startswith("8B, 4k")}
    rows = [["n", "ours, s/step", "over n = 4", "paper, s/step", "over n = 4"]]
    for n in facts[0]["step_s"]:
        ours = cell(lambda of_turn, n=n: of_turn["step_s"][n], facts, ".2f")
        of_paper = [f"{paper[n]:g}", f"{paper[n] / paper['4']:.2f}"] if n in paper else ["-", "-"]
        rows.append([n, ours, cell(_ratio(n, "4"), facts, ".2f"), *of_paper])
    here = facts[0].get("setting", "a small model here")
    return Table(f"A step against n: 8B at 4k on 16 A100s beside {here}", rows)


def _table9(facts: Sequence[Facts]) -> Table:
    rows = [["", "scalar, s/step", "judge, s/step", "judge / scalar"]]
    seconds = [cell(lambda of_seed, name=name: of_seed["step_s"][name], facts, ".2f") for name in ("scalar", "judge")]
    rows.append(["ours", *seconds, cell(_ratio("judge", "scalar"), facts, ".2f")])
    for size in ("8B", "14B"):
        bt, patarm = (published()["table9"][f"{size}, {kind}"][0] for kind in ("BT", "PaTaRM"))
        rows.append([f"paper, {size}", f"{bt:g}", f"{patarm:g}", f"{patarm / bt:.2f}"])
    return Table("A policy's step", rows)


TIME_FINDINGS = {
    "table8": [
        Finding("a step takes longer in proportion to n: from 4 to 16 at least 3.5 times", "3.89 times",
                minus(_ratio("16", "4"), fixed(3.5)), "times, less 3.5"),
    ],
    "table9": [
        Finding("a step with a judge takes longer than with a scalar model", "1.25 and 1.39 times",
                minus(_ratio("judge", "scalar"), fixed(1)), "times, less 1"),
        Finding("by at most 40 %", "25 to 39 %", minus(fixed(1.4), _ratio("judge", "scalar")),
                "times below 1.4"),
    ],
}  # fmt: skip
