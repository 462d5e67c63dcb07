"""Seconds of a step against n, beside the paper's table 8 on an axis of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.plan_time import PAPER_S, paper_line

_LABELS = {"tree": "ours, token trees", "flat": "ours, flat", "trl": "TRL GRPOTrainer"}


def draw(result: dict[str, Any], file: Path) -> bool:
    """One PNG; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (step_axes, update_axes) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, marker in zip(_LABELS, "os^"):
        for axes, key in ((step_axes, "step_s"), (update_axes, "update_s")):
            points = [(r["num_rollouts"], r[name]) for r in result["records"] if name in r]
            if points:
                n, found = zip(*points)
                seconds = [one[key] for one in found]
                spread = [
                    [s - min(one["turns"][key]) for s, one in zip(seconds, found)],
                    [max(one["turns"][key]) - s for s, one in zip(seconds, found)],
                ]
                axes.errorbar(n, seconds, spread, marker=marker, capsize=3, label=_LABELS[name])
    for axes, title in ((step_axes, "step: rollout, reward, update"), (update_axes, "update alone")):
        axes.set(xlabel="n, judgments of a response", ylabel="seconds on this machine", title=title)
        axes.set_ylim(bottom=0)
    n = [r["num_rollouts"] for r in result["records"]]
    paper = step_axes.twinx()
    paper.plot(n, [paper_line(k) for k in n], ":", color="gray", label="paper: 5 + 30 n")
    measured = {k: s for (model, k), s in PAPER_S.items() if model == "Qwen3-8B"}
    paper.plot(list(measured), list(measured.values()), "x", color="gray", label="paper: table 8, 16 A100s")
    paper.set_ylabel("seconds, paper")
    paper.set_ylim(bottom=0)
    lines = [pair for axes in (step_axes, paper) for pair in zip(*axes.get_legend_handles_labels())]
    step_axes.legend(*zip(*lines), fontsize=8, loc="upper left")
    update_axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True
