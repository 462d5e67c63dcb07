"""What a run shows in the end: a table of time and one picture of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

PHASES = ("sync_s", "rollout_s", "wait_s", "reward_s", "update_s")


def time_table(records: Sequence[dict]) -> str:
    """Markdown: median seconds of a step and of its phases, per stage."""
    lines = ["| stage | steps | s/step | " + " | ".join(p.removesuffix("_s") for p in PHASES)]
    lines[0] += " | tokens/s | s/checkpoint |"
    lines.append("|---|---:|---:|" + "---:|" * (len(PHASES) + 2))
    for stage in dict.fromkeys(record["stage"] for record in records):
        steps = [record for record in records if record["stage"] == stage]
        cells = [
            f"{median(step[phase] for step in steps):.2f}" if all(phase in step for step in steps) else "-"
            for phase in PHASES
        ]
        step_s, rate = (median(step[key] for step in steps) for key in ("step_s", "tokens_per_s"))
        checkpoints = [step["checkpoint_s"] for step in steps if "checkpoint_s" in step]  # not part of s/step
        cells += [f"{rate:,.0f}", f"{median(checkpoints):.2f}" if checkpoints else "-"]
        lines.append(f"| {stage} | {len(steps)} | {step_s:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(records: Sequence[dict], results: dict[str, dict], path: Path) -> bool:
    """Accuracy, margin, valid rate and entropy over the steps of all stages, as one PNG; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("pairwise accuracy", (("pair_accuracy", "training pairs, mean of n"), ("dev_accuracy", "dev pairs"))),
        ("margin: mean chosen - mean rejected score", (("margin", "training pairs"), ("dev_margin", "dev pairs"))),
        ("share of valid judgments", (("valid_rate", "training pairs"), ("dev_valid_rate", "dev pairs"))),
        ("entropy (nats per token)", (("entropy", "sampled or SFT tokens"),)),
    ]
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7.5), sharex=True, constrained_layout=True)
    # Every stage has the same width, whatever its number of steps.
    stages = list(dict.fromkeys(record["stage"] for record in records))
    num_steps = {record["stage"]: record["step"] for record in records}
    ends = [stages.index(record["stage"]) + record["step"] / num_steps[record["stage"]] for record in records]
    for axis, (title, curves) in zip(axes.flat, panels, strict=True):
        for key, label in curves:
            points = [(end, record[key]) for end, record in zip(ends, records, strict=True) if key in record]
            if points:
                is_sparse = key.startswith("dev_")
                axis.plot(*zip(*points, strict=True), "o-" if is_sparse else "-", ms=4, lw=1.3, label=label)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        for offset, stage in enumerate(stages):
            axis.axvline(offset, color="gray", lw=0.8, ls=":")
            axis.annotate(stage, (offset, 1), (3, -3), ("data", "axes fraction"), "offset points", fontsize=8, va="top")
    stage_ends = {stage: offset + 1 for offset, stage in enumerate(stages)}
    for name, x in {"initial": 0, **stage_ends}.items():
        if name in results:
            row = results[name]["votes"][-1]
            bars = ([row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]])
            axes[0, 0].errorbar(
                [x], [row["accuracy"]], yerr=bars, fmt="s", color="black", ms=5, capsize=4, zorder=5,
                label=f"held-out pairs, voting@{row['votes']}, 95 %" if name == next(iter(results)) else None,
            )  # fmt: skip
    axes[0, 0].axhline(0.5, color="gray", lw=0.8)
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    ticks = [
        (offset + half / 2, num_steps[stage] * half // 2) for offset, stage in enumerate(stages) for half in (1, 2)
    ]
    axes[1, 1].set_yscale("log")
    for axis in axes[1]:
        axis.set_xticks([x for x, _ in ticks], [str(step) for _, step in ticks])
        axis.set_xlabel("optimiser step of the stage")
    aside = path.with_name("partial-" + path.name)
    figure.savefig(aside, dpi=110)
    pyplot.close(figure)
    aside.replace(path)
    return True
