"""The curves of report.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from eval.line_chart import Chart, Curve, svg
from trainer.panels import PANELS, Panel, last_steps, positions

STYLES = ("c1", "c2", "c3")


def charts(records: Sequence[dict], results: dict[str, dict], warnings: Sequence[dict]) -> str:
    """One figure per panel that has a point; "" if none has.

    Args:
        records: lines of metrics.jsonl.
        results: on the held-out pairs, by model.
        warnings: lines of warnings.jsonl: where one shows, the panel of its metric is shaded.
    """
    figures = [figure for panel in PANELS if (figure := _figure(panel, records, results, warnings))]
    if not figures:
        return ""
    shading = '<p class="muted">Shaded: a warning shows.</p>\n' if warnings else ""
    return f'<h2>Curves</h2>\n{shading}<div class="charts">\n' + "\n".join(figures) + "\n</div>"


def _figure(panel: Panel, records: Sequence[dict], results: dict[str, dict], warnings: Sequence[dict]) -> str:
    places = positions(records)
    curves = []
    for style, (key, label) in zip(STYLES, panel.curves, strict=False):
        found = [(x, record) for x, record in zip(places, records, strict=True) if _is_number(record.get(key))]
        if found:
            is_measured = key.startswith("dev_")
            low, high = f"{key}_low", f"{key}_high"
            has_interval = all(_is_number(r.get(low)) and _is_number(r.get(high)) for _, r in found)
            intervals = [(r[low], r[high]) for _, r in found] if has_interval else []
            curves.append(Curve(label, [(x, r[key]) for x, r in found], style, is_measured, intervals=intervals))
    if panel is PANELS[0] and (held_out := _held_out(records, results)):
        curves.append(held_out)
    drawn = svg(_chart(panel, curves, records, warnings)) if curves else ""
    if not drawn:
        return ""
    keys = "".join(f'<span class="key {curve.style}">{escape(curve.label)}</span>' for curve in curves)
    return f"<figure><h3>{escape(panel.title)}</h3><figcaption>{keys}</figcaption>{drawn}</figure>"


def _chart(panel: Panel, curves: Sequence[Curve], records: Sequence[dict], warnings: Sequence[dict]) -> Chart:
    """Over the stages that the curves have points in; each is one unit wide."""
    stages = last_steps(records)
    begin = math.ceil(min(x for curve in curves for x, _ in curve.points)) - 1
    end = math.ceil(max(x for curve in curves for x, _ in curve.points))
    begin, end = max(0, begin), max(1, end)
    shown = list(enumerate(stages.items()))[begin:end]
    ticks = [
        (offset + half / 2, f"step {last}" if half == 2 else str(last // 2))
        for offset, (_, last) in shown
        for half in (1, 2)
        if half == 2 or last > 1
    ]
    keys = {key for key, _ in panel.curves}
    return Chart(
        panel.title, curves, (begin, end + 0.04 * (end - begin)), ticks,
        dividers=[(offset, stage) for offset, (stage, _) in shown],
        shades=[span for key in sorted(keys) for span in _spans(key, records, warnings)],
        is_share=panel.is_share, is_log=panel.is_log,
    )  # fmt: skip


def _held_out(records: Sequence[dict], results: dict[str, dict]) -> Curve | None:
    ends = {"initial": 0} | {stage: offset + 1 for offset, stage in enumerate(last_steps(records))}
    rows = [(ends[name], result["votes"][-1]) for name, result in results.items() if name in ends]
    if not rows:
        return None
    return Curve(
        f"held-out pairs, voting@{rows[0][1]['votes']}, 95 %", [(x, row["accuracy"]) for x, row in rows], "ink",
        has_dots=True, has_line=False, intervals=[(row["low"], row["high"]) for _, row in rows],
    )  # fmt: skip


def _spans(metric: str, records: Sequence[dict], warnings: Sequence[dict]) -> list[tuple[float, float]]:
    """Where on the axis a warning about the metric shows."""
    place = {(r["stage"], r["step"]): x for r, x in zip(records, positions(records), strict=True)}
    spans, begun = [], {}
    for warning in warnings:
        where = place.get((warning["stage"], warning["step"]))
        if warning["metric"] != metric or where is None:
            continue
        key = (warning["stage"], warning["sign"])
        if warning["event"] == "begins":
            begun[key] = where
        elif key in begun:
            spans.append((begun.pop(key), where))
    return spans + [(where, float(math.ceil(where))) for where in begun.values()]  # to the end of the stage


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
