"""`eval/main.py aggregate BENCHMARK ROWS.jsonl`: the official numbers of per-item scores, whoever computed them."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from eval.data.answered import read_ifeval
from eval.data.files import placed_rows
from eval.run_report import headline_rows, notes_of, policy_rows
from eval.tables import markdown
from patarm_core.benchmarks.ifeval import join
from patarm_core.benchmarks.report import Report, RowError

AGGREGATIONS = ("rewardbench", "rewardbench2", "rm_bench", "judgebench", "rmb", "llmbar", "ifeval", "infobench")


def add_aggregate_command(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("aggregate", help="a benchmark's official numbers, from per-item scores or verdicts")
    command.add_argument("benchmark", choices=AGGREGATIONS)
    command.add_argument(
        "rows", type=Path, help="JSON lines; patarm_core/benchmarks/BENCHMARK.py shows what a row looks like"
    )
    command.add_argument(
        "--data", type=Path, help="ifeval: input_data.jsonl, whose instructions rows take by their key"
    )
    command.set_defaults(
        run=lambda options: print(as_markdown(aggregate(options.benchmark, options.rows, options.data)), end="")
    )


def aggregate(benchmark: str, file: Path, prompts: Path | None = None) -> Report:
    """
    Raises:
        ValueError: one line that names the file, the row and its field; or `prompts` are given for another benchmark.
    """
    if prompts is not None and benchmark != "ifeval":
        raise ValueError(f"--data {prompts}: is for ifeval; the rows of {benchmark} say all that is needed")
    placed = placed_rows(file)
    rows = [row for _, row in placed]
    if prompts is not None:
        rows = join(rows, [item.row for item in read_ifeval(prompts).items])
    try:
        return import_module(f"patarm_core.benchmarks.{benchmark}").report(rows)
    except RowError as error:
        raise ValueError(f"{placed[error.index][0]}: {error.problem}") from None


def as_markdown(report: Report) -> str:
    parts = [f"# {report.benchmark}", markdown(headline_rows(report))]
    if policies := policy_rows(report):
        parts += ["Under other rules, with 95 % intervals and n:", markdown(policies)]
    parts.append("\n".join(f"- {note}" for note in notes_of(report)))
    return "\n\n".join(parts) + "\n"
