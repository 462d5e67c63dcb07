"""report.json, report.md and report.html of a run's folder: functions of its judgments, without times or places."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from eval.data.items import Data
from eval.html_page import html_page, table, tiles
from eval.judges.judge import Drawn
from eval.judgments import is_failed, is_unparsed
from eval.line_chart import Chart, Curve, svg
from eval.tables import markdown
from patarm_core.benchmarks.report import Metric, Report
from rollout.text_files import write_text

_STYLES = {"average": "c1", "majority": "c2"}
_NUM_ERRORS = 8  # kinds that a report lists


@dataclass(frozen=True, slots=True)
class Voted:
    """One way to vote, and what comes of it."""

    policy: str
    votes: int
    rows: Sequence[Mapping[str, object]]
    report: Report

    @property
    def label(self) -> str:
        return f"{self.policy}@{self.votes}"


@dataclass(frozen=True, slots=True)
class Counts:
    """Of single judgments, before any vote."""

    num_judgments: int
    num_unparsed: int  # written, but without a score or choice
    num_failed: int  # no reply
    errors: Mapping[str, int]  # kind of error -> judgments, most frequent first


def counts_of(drawn: Iterable[Sequence[Drawn]]) -> Counts:
    judgments = [one for votes in drawn for one in votes]
    kinds = Counter(re.sub(r"\d+", "N", one.error)[:160] for one in judgments if one.error is not None)
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    errors, others = dict(ordered[:_NUM_ERRORS]), ordered[_NUM_ERRORS:]
    if others:
        errors[f"of {len(others)} other kinds"] = sum(num for _, num in others)
    return Counts(len(judgments), sum(map(is_unparsed, judgments)), sum(map(is_failed, judgments)), errors)


def write_reports(
    out: Path, data: Data, settings: Mapping[str, object], voted: Sequence[Voted], counts: Counts, noun="judgments"
) -> None:
    """Writes the three files; the first of `voted` is the headline."""
    about = {
        **settings, "num_items": len(data.items), "warnings": list(data.warnings), **asdict(counts),
        "voting": [
            {"policy": one.policy, "votes": one.votes, "report": asdict(one.report)} for one in voted
        ],
    }  # fmt: skip
    write_text(out / "report.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", as_markdown(data, settings, voted, counts, noun))
    write_text(out / "report.html", as_html(data, settings, voted, counts, noun))


def as_markdown(
    data: Data, settings: Mapping[str, object], voted: Sequence[Voted], counts: Counts, noun: str = "judgments"
) -> str:
    parts = [f"# {_title(settings)}", _said(data, settings, voted, counts, noun)]
    if warnings := _warnings(data, counts, noun):
        parts.append("\n".join(f"- {line}" for line in warnings))
    parts.append(markdown(headline_rows(voted[0].report, voted[0].label)))
    if len(voted) > 1:
        parts += [
            "Every way to vote, from the same judgments, with 95 % intervals and n:",
            markdown(_voting_rows(voted)),
        ]
    if policies := policy_rows(voted[0].report):
        parts += ["Under other rules, with 95 % intervals and n:", markdown(policies)]
    if notes := notes_of(voted[0].report):
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def as_html(
    data: Data, settings: Mapping[str, object], voted: Sequence[Voted], counts: Counts, noun: str = "judgments"
) -> str:
    first = voted[0]
    shown = [
        (f"{metric.name}, {first.label}", _share(metric.value), _interval(metric)) for metric in _top(first.report)
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in _warnings(data, counts, noun))
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(first.report))
    said = _said(data, settings, voted, counts, noun)
    body = [
        f'<header><h1>{escape(_title(settings))}</h1>\n<p class="muted">{escape(said)}</p></header>',
        tiles(shown),
        f"<ul>{items}</ul>" if items else "",
        _chart(voted),
        "<h2>Results</h2>\n" + table(headline_rows(first.report, first.label)),
        "<h2>Every way to vote, from the same judgments, with 95 % intervals and n</h2>\n" + table(_voting_rows(voted))
        if len(voted) > 1
        else "",
        "<h2>Under other rules, with 95 % intervals and n</h2>\n" + table(rows)
        if (rows := policy_rows(first.report))
        else "",
        f"<h2>Notes</h2>\n<ul>{notes}</ul>" if notes else "",
    ]
    return html_page(_title(settings), body)


def _title(settings: Mapping[str, object]) -> str:
    names = [str(settings[role]) for role in ("policy", "judge") if role in settings]
    return f"{settings['benchmark']}: {', judged by '.join(names)}"


def _said(
    data: Data, settings: Mapping[str, object], voted: Sequence[Voted], counts: Counts, noun: str = "judgments"
) -> str:
    made = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return (
        f"{len(data.items)} items, {counts.num_judgments} {noun}, {settings['mode']}; headline by {voted[0].label}. "
        f"Made with {made}: report.json says what that is."
    )


def _warnings(data: Data, counts: Counts, noun: str) -> list[str]:
    """What a reader must know before the numbers."""
    lines = list(data.warnings)
    if counts.num_unparsed:
        lines.append(f"{counts.num_unparsed} of {counts.num_judgments} {noun} could not be read: no score, never 0")
    if counts.num_failed:
        lines.append(f"{counts.num_failed} of {counts.num_judgments} {noun} got no reply; --retry asks again")
    return lines + [f"{num} x {error}" for error, num in counts.errors.items()]


def notes_of(report: Report) -> list[str]:
    """What must be known to read the numbers."""
    counted = [f"{report.num_ties} ties and {report.num_unparsed} without a verdict among {report.num_items} items"]
    return counted + list(report.notes)


def _top(report: Report, num: int = 4) -> Sequence[Metric]:
    return report.metrics[:num]


def headline_rows(report: Report, label: str = "") -> list[list[str]]:
    head = [label, "value", "95 % interval", "n"]
    return [head] + [[m.name, _share(m.value), _interval(m), str(m.num)] for m in report.metrics]


def _voting_rows(voted: Sequence[Voted]) -> list[list[str]]:
    return _across({one.label: one.report.metrics for one in voted})


def policy_rows(report: Report) -> list[list[str]]:
    """Of the other tie policies; none if there are no others."""
    return _across(report.policies) if report.policies else []


def _across(tables: Mapping[str, Sequence[Metric]]) -> list[list[str]]:
    """Metrics down, tables across."""
    names = list(dict.fromkeys(metric.name for metrics in tables.values() for metric in metrics))
    values = [{metric.name: metric for metric in metrics} for metrics in tables.values()]
    return [["", *tables]] + [[name, *(_whole(of[name]) if name in of else "-" for of in values)] for name in names]


def _chart(voted: Sequence[Voted]) -> str:
    """The headline number over votes; "" where there is one number of votes."""
    numbers = sorted({one.votes for one in voted})
    if len(numbers) < 2:
        return ""
    place = {n: float(x) for x, n in enumerate(numbers)}  # evenly: 1, 2, 4, 8
    curves = []
    for policy in dict.fromkeys(one.policy for one in voted):
        points = sorted(
            (place[one.votes], metric)
            for one in voted
            if one.policy == policy and (metric := one.report.metrics[0]).value is not None
        )
        if points:
            has_intervals = all(metric.low is not None for _, metric in points)
            curves.append(
                Curve(
                    policy, [(x, metric.value) for x, metric in points], _STYLES[policy], has_dots=True,
                    intervals=[(metric.low, metric.high) for _, metric in points] if has_intervals else (),
                )
            )  # fmt: skip
    name = f"{voted[0].report.metrics[0].name} over votes"
    ticks = [(x, f"@{n}") for n, x in place.items()]
    drawn = svg(Chart(name, curves, (-0.2, len(numbers) - 0.8), ticks, is_share=True))
    keys = "".join(f'<span class="key {curve.style}">{escape(curve.label)}</span>' for curve in curves)
    return f"<figure><h3>{escape(name)}</h3><figcaption>{keys}</figcaption>{drawn}</figure>" if drawn else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _whole(metric: Metric) -> str:
    """A number with its interval and n, in one cell."""
    if metric.value is None:
        return "-"
    interval = "" if metric.low is None else f" ({_interval(metric)})"
    return f"{_share(metric.value)}{interval}, {metric.num}"


def _interval(metric: Metric) -> str:
    return "-" if metric.low is None else f"{metric.low:.1%} - {metric.high:.1%}"
