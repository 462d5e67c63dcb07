"""Accuracy tables: rows of cells, the first one the header, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def _label(name: str, results: dict[str, dict]) -> str:
    """What a model of a training run is called in its tables; another keeps its name."""
    start = "before SFT" if "sft" in results else "start"
    after = {
        "sft": "after SFT",
        "grpo": "after GRPO",
        "bt": "after BT, by score",
        "dpo": "after DPO, by implicit reward",
    }
    return {"initial": start, **after}.get(name, name)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header; all columns but the first hold numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def accuracy_rows(results: dict[str, dict]) -> list[list[str]]:
    """Held-out pairwise accuracy of each model, ties counted as wrong and shown."""
    rows = [
        ["model", "votes", "accuracy", "95 % interval", "ties as half", "ties", "unscored", "margin"]
        + ["valid judgments", "pairs"]
    ]
    for name, result in results.items():
        for row in result["votes"]:
            margin = "-" if row["margin"] is None else f"{row['margin']:+.2f}"
            cells = [
                _label(name, results), row["votes"], f"{row['accuracy']:.1%}", f"{row['low']:.1%} - {row['high']:.1%}",
                f"{row['accuracy_ties_half']:.1%}", row["num_ties"], row["num_unscored"], margin,
                f"{result['valid_rate']:.1%}" if "valid_rate" in result else "-", row["num_pairs"],
            ]  # fmt: skip
            rows.append([str(cell) for cell in cells])
    return rows


def accuracy_table(results: dict[str, dict]) -> str:
    return markdown(accuracy_rows(results))


def task_rows(results: dict[str, dict]) -> list[list[str]]:
    """Accuracy by task with all votes, its 95 % interval and the number of pairs."""
    tasks = sorted({task for result in results.values() for task in result["by_task"]})
    return [["model", *tasks]] + [
        [_label(name, results)]
        + [_with_interval(result["by_task"][task]) if task in result["by_task"] else "-" for task in tasks]
        for name, result in results.items()
    ]


def _with_interval(row: dict) -> str:
    return f"{row['accuracy']:.1%} ({row['low']:.1%} - {row['high']:.1%}), {row['num_pairs']}"


def task_table(results: dict[str, dict]) -> str:
    return markdown(task_rows(results))
