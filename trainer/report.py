"""What a run shows in the end: a table of time and one picture of the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from eval.tables import markdown
from rollout.text_files import naming
from trainer.panels import PANELS, last_steps, positions

PHASES = ("sync_s", "rollout_s", "judge_s", "wait_s", "reward_s", "update_s")


def time_rows(records: Sequence[dict]) -> list[list[str]]:
    """Median seconds of a step and of its phases, per stage; the first row is the header."""
    is_judged = any("judge_s" in record for record in records)  # answers of a policy
    phases = [phase for phase in PHASES if is_judged or phase != "judge_s"]
    names = [phase.removesuffix("_s") for phase in phases]
    rows = [["stage", "steps", "s/step", *names, "tokens/s", "s/checkpoint"]]
    for stage in dict.fromkeys(record["stage"] for record in records):
        steps = [record for record in records if record["stage"] == stage]
        checkpoints = [step for step in steps if "checkpoint_s" in step]  # not part of s/step
        rows.append([stage, str(len(steps)), *(_median(steps, key) for key in ("step_s", *phases))])
        rows[-1] += [_median(steps, "tokens_per_s", ",.0f"), _median(checkpoints, "checkpoint_s")]
    return rows


def _median(steps: Sequence[dict], key: str, form: str = ".2f") -> str:
    """ "-" unless every step has the number."""
    values = [step.get(key) for step in steps]
    return format(median(values), form) if values and None not in values else "-"


def time_table(records: Sequence[dict]) -> str:
    return markdown(time_rows(records))


def policy_rows(results: Mapping[str, dict]) -> list[list[str]]:
    """What each model's answers to the held-out prompts are worth; the first row is the header.

    Args:
        results: by model, `held_out_prompts` of report.json.
    """
    tasks = sorted({task for result in results.values() for task in result["by_task"]})
    rows = [["policy", "checker", "95 % interval", "all right", "reward", "tokens", "cut", *tasks]]
    for name, result in results.items():
        interval = f"{result['low']:.1%} - {result['high']:.1%}" if "low" in result else "-"
        shares = [_share(result.get(key)) for key in ("accuracy", "all_right")]
        score = f"{result['score']:.2f}" if "score" in result else "-"
        row = [name, shares[0], interval, shares[1], score, f"{result['completion_tokens']:.0f}"]
        rows.append([*row, _share(result["cut_short_rate"]), *(_share(result["by_task"].get(task)) for task in tasks)])
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def draw_curves(records: Sequence[dict], results: dict[str, dict], path: Path) -> bool:
    """Accuracy, margin, valid rate and entropy over the steps of all stages, as one PNG; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7.5), sharex=True, constrained_layout=True)
    stages = list(dict.fromkeys(record["stage"] for record in records))
    num_steps, ends = last_steps(records), positions(records)
    for axis, panel in zip(axes.flat, PANELS, strict=False):
        for key, label in panel.curves:
            points = [(end, record[key]) for end, record in zip(ends, records, strict=True) if key in record]
            if points:
                is_sparse = key.startswith("dev_")
                axis.plot(*zip(*points, strict=True), "o-" if is_sparse else "-", ms=4, lw=1.3, label=label)
        axis.set_title(panel.title, fontsize=10)
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
    with naming(path):
        figure.savefig(aside, dpi=110)
        aside.replace(path)
    pyplot.close(figure)
    return True
