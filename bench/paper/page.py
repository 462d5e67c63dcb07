"""report.html of the paper's experiments: verdicts, tables and pictures; and the pictures as one PNG, an extra."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite
from pathlib import Path

from bench.paper.facts import VOTES
from bench.paper.findings import Facts, Number, at_step, held_out
from bench.paper.plan import NOISE
from bench.paper.report import RULE, Experiment, read_experiments
from bench.paper.tables import steps_of
from bench.paper.verdict import estimate
from eval.html_page import html_page, table
from eval.line_chart import Chart, Curve, svg
from rollout.text_files import write_text

_CLASS = {"holds": "good", "does not hold": "bad"}


def write_page(out: Path) -> None:
    """Writes report.html and, where matplotlib is, figures.png, of all experiments whose results lie in the folder."""
    experiments = read_experiments(out)
    charts = {one.name: charts_of(one) for one in experiments}
    head = f"<header><h1>The paper's experiments at this scale</h1>\n<p>{escape(RULE)}</p></header>"
    body = [head, *(_section(one, charts[one.name]) for one in experiments)]
    write_text(out / "report.html", html_page("The paper's experiments", body))
    _draw([chart for of_one in charts.values() for chart in of_one], out / "figures.png")


def _section(experiment: Experiment, charts: Sequence[Chart]) -> str:
    parts = [f'<h2>{escape(experiment.title)}</h2>\n<p class="muted">{escape(experiment.said)}</p>']
    if experiment.judged:
        lines = [f'<li class="{_CLASS.get(one.word, "")}">{escape(one.line())}</li>' for one in experiment.judged]
        parts.append("<ul>" + "\n".join(lines) + "</ul>")
    if charts:
        parts.append('<div class="charts">' + "\n".join(map(_figure, charts)) + "</div>")
    parts += [f'<p class="muted">{escape(one.caption)}</p>{table(one.rows)}' for one in experiment.tables]
    if experiment.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in experiment.notes) + "</ul>")
    return "\n".join(parts)


def _figure(chart: Chart) -> str:
    keys = "".join(f'<span class="key {curve.style}">{escape(curve.label)}</span>' for curve in chart.curves)
    return f"<figure><h3>{escape(chart.name)}</h3><figcaption>{keys}</figcaption>{svg(chart)}</figure>"


def charts_of(experiment: Experiment) -> list[Chart]:
    """With the 95 % interval of the seeds at every point, where there are several."""
    facts = experiment.facts
    if experiment.name == "figure3":
        steps = steps_of(facts)
        if len(steps) < 2:
            return []
        arms = (("patarm", "f graded", "c1"), ("constant", "f constant", "c2"))

        def curves(key: str) -> list[Curve]:
            return [
                _curve(label, style, steps, [at_step(arm, key, step) for step in steps], facts)
                for arm, label, style in arms
            ]

        ticks = [(step, str(step)) for step in steps]
        return [
            Chart(f"{key} on dev pairs over steps of RL", curves(key), (0, steps[-1]), ticks)
            for key in ("accuracy", "margin")
        ]
    if experiment.name == "figure4":
        shares = (0, *NOISE)
        arms = (("patarm", "PaTaRM, voting@8", "c1", 8), ("bt", "BTRM", "c2", 1))
        curves = [
            _curve(label, style, shares, [held_out(f"{arm}_noise{p}" if p else arm, votes) for p in shares], facts)
            for arm, label, style, votes in arms
        ]
        curves.append(_curve("step 0 of PaTaRM", "c3", (0, 100), [held_out("sft", 8)] * 2, facts))
        return [Chart("accuracy, %, against flipped labels, %", curves, (0, 100), [(p, str(p)) for p in shares])]
    if experiment.name == "figure5":
        kinds = (("average", "overall", "c1"), ("majority", "majority", "c2"))
        curves = [
            _curve(label, style, VOTES, [held_out("patarm", n, key) for n in VOTES], facts)
            for label, key, style in kinds
        ]
        return [Chart("accuracy, %, against votes", curves, (0, VOTES[-1]), [(n, str(n)) for n in VOTES])]
    return []


def _curve(label: str, style: str, xs: Sequence[float], numbers: Sequence[Number], facts: Sequence[Facts]) -> Curve:
    points, intervals = [], []
    for x, number in zip(xs, numbers, strict=True):
        values = [value for of_seed in facts if (value := number(of_seed)) is not None]
        if values:
            found = estimate(values)
            points.append((x, found.mean))
            intervals.append((found.low, found.high))
    has_intervals = all(isfinite(end) for interval in intervals for end in interval)
    return Curve(label, points, style, has_dots=True, intervals=intervals if has_intervals else ())


def _draw(charts: Sequence[Chart], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    if not charts:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(charts), figsize=(5 * len(charts), 4), squeeze=False, constrained_layout=True)
    for axis, chart in zip(axes[0], charts, strict=True):
        for curve in filter(lambda curve: curve.points, chart.curves):
            xs, ys = zip(*curve.points, strict=True)
            bars = [[y - low for y, (low, _) in zip(ys, curve.intervals, strict=True)]] * 2 if curve.intervals else None
            axis.errorbar(xs, ys, yerr=bars, fmt="o-", ms=4, lw=1.3, capsize=3, label=curve.label)
        axis.set_title(chart.name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
