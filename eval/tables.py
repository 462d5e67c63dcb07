"""Accuracy tables in Markdown."""

from __future__ import annotations


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


def accuracy_table(results: dict[str, dict]) -> str:
    """Markdown: held-out pairwise accuracy of each model, ties counted as wrong and shown."""
    lines = [
        "| model | votes | accuracy | 95 % interval | ties as half | ties | unscored | margin "
        "| valid judgments | pairs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        for row in result["votes"]:
            margin = "-" if row["margin"] is None else f"{row['margin']:+.2f}"
            cells = [
                _label(name, results), row["votes"], f"{row['accuracy']:.1%}", f"{row['low']:.1%} - {row['high']:.1%}",
                f"{row['accuracy_ties_half']:.1%}", row["num_ties"], row["num_unscored"], margin,
                f"{result['valid_rate']:.1%}" if "valid_rate" in result else "-", row["num_pairs"],
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def task_table(results: dict[str, dict]) -> str:
    """Markdown: accuracy by task with all votes."""
    tasks = sorted({task for result in results.values() for task in result["by_task"]})
    lines = ["| model | " + " | ".join(tasks) + " |", "|---|" + "---:|" * len(tasks)]
    for name, result in results.items():
        cells = [f"{result['by_task'][task]['accuracy']:.1%}" for task in tasks]
        lines.append(f"| {_label(name, results)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
