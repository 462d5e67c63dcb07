"""report.html of a run: its curves, results, warnings, times and judgments on one page that needs nothing else.

The page is a function of the files in the run's folder, so it can be made again at any time, of a run that goes on or
was cut short too. Imports no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from eval.html_page import html_page, table, tiles
from eval.tables import accuracy_rows, task_rows
from rollout.text_files import read_record, read_records, write_text
from trainer.failure_signs import SIGNS
from trainer.html_charts import charts
from trainer.html_samples import judgments
from trainer.over_optimisation import NAME as OVER_OPTIMISATION
from trainer.panels import last_steps
from trainer.report import PHASES, policy_rows, time_rows


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run's folder says."""

    name: str
    recipe: str  # TOML
    is_finished: bool
    metrics: Sequence[dict] = ()
    samples: Sequence[dict] = ()
    warnings: Sequence[dict] = ()
    results: dict[str, dict] | None = None  # on the held-out pairs, by model
    answered: dict[str, dict] | None = None  # of a policy, on the held-out prompts
    machine: dict | None = None
    wall_s: float | None = None


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder, at whatever point it is.

    Raises:
        ValueError: one line that says which file is not what a run leaves.
    """
    file = folder / "recipe.toml"
    if not file.is_file():
        raise ValueError(f"{folder}: no run is here (no {file.name}); name the folder that a run printed")
    recipe = file.read_text(encoding="utf-8")
    try:
        stages = tomllib.loads(recipe).get("stages", [])
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: not TOML: {error}") from None
    report = read_record(folder / "report.json")
    return RunRecord(
        name=folder.resolve().name,
        recipe=recipe,
        is_finished=all((folder / "models" / stage / "config.json").is_file() for stage in stages),
        metrics=read_records(folder / "metrics.jsonl"),
        samples=read_records(folder / "samples.jsonl"),
        warnings=read_records(folder / "warnings.jsonl"),
        results=report.get("held_out"),
        answered=report.get("held_out_prompts"),
        machine=report.get("machine"),
        wall_s=report.get("wall_s"),
    )


def write_report(folder: Path) -> Path:
    """Makes `report.html` of a run's folder; returns its path."""
    write_text(folder / "report.html", page(read_run(folder)))
    return folder / "report.html"


def page(run: RunRecord) -> str:
    """The page. Whatever a model or a file wrote appears as text and as nothing else."""
    body = [
        _head(run), _tiles(run), _warnings(run), charts(run.metrics, run.results or {}, run.warnings), _held_out(run),
        _time(run), judgments(run.samples), _recipe(run),
        '<footer>Made from the files of the run\'s folder, and again by <code>trainer/main.py --report FOLDER</code>.'
        "</footer>",
    ]  # fmt: skip
    return html_page(f"{run.name} - PaTaRM run", body)


def _head(run: RunRecord) -> str:
    done = ", ".join(f"{stage} at step {step}" for stage, step in last_steps(run.metrics).items())
    state = "finished" if run.is_finished else "not finished"
    where = run.machine or {}
    on = f" on {where.get('device')}, torch {where.get('torch')}, commit {where.get('commit')}" if where else ""
    said = f"{state}; {done or 'no step is done'}{on}"
    return f'<header><h1>{escape(run.name)}</h1>\n<p class="muted">{escape(said)}</p></header>'


def _tiles(run: RunRecord) -> str:
    shown = []
    rows = [(name, result["votes"][-1]) for name, result in (run.results or {}).items()]
    if rows:
        (first, before), (last, now) = rows[0], rows[-1]
        interval = f"95 %: {now['low']:.1%} - {now['high']:.1%}"
        was = f"; {first}: {before['accuracy']:.1%}" if len(rows) > 1 else ""
        shown.append((f"held-out accuracy, {last}, voting@{now['votes']}", f"{now['accuracy']:.1%}", interval + was))
    checked = [(name, result) for name, result in (run.answered or {}).items() if "accuracy" in result]
    if checked:
        (first, before), (last, now) = checked[0], checked[-1]
        told = f"95 %: {now['low']:.1%} - {now['high']:.1%}" if "low" in now else "no interval"
        told += f"; {first}: {before['accuracy']:.1%}" if len(checked) > 1 else ""
        shown.append((f"held-out prompts by the checker, {last}", f"{now['accuracy']:.1%}", told))
    measured = [r for r in run.metrics if r.get("dev_accuracy") is not None]
    if measured:
        top = max(measured, key=lambda r: r["dev_accuracy"])
        at = f"{top['stage']} step {top['step']}; {len(measured)} measurements"
        shown.append(("best dev accuracy", f"{top['dev_accuracy']:.1%}", at))
    for key, label, form in (("valid_rate", "valid judgments", ".1%"), ("margin", "margin of scores", "+.2f")):
        values = [r[key] for r in run.metrics if r.get(key) is not None]
        if values:
            shown.append((f"{label}, training", f"{values[-1]:{form}}", f"at first {values[0]:{form}}"))
    if run.wall_s is not None:
        hours, minutes = divmod(round(run.wall_s / 60), 60)
        shown.append(
            (
                "wall time",
                f"{hours} h {minutes:02d} min" if hours else f"{run.wall_s:.0f} s",
                "until the last measurement",
            )
        )
    return tiles(shown)


def _warnings(run: RunRecord) -> str:
    if not any("reward" in record for record in run.metrics):
        return ""  # nothing was watched
    title = "<h2>Warnings</h2>\n"
    if not run.warnings:
        signs = ", ".join([*(sign.name for sign in SIGNS), OVER_OPTIMISATION])
        return f'{title}<p class="muted">None. What was watched for: {escape(signs)}.</p>'
    rows = [["sign", "stage", "from step", "to step", "what it was at the beginning"]]
    for warning in run.warnings:
        if warning["event"] == "begins":
            end = next((str(w["step"]) for w in run.warnings if _ends(w, warning)), "still shows")
            rows.append([warning["sign"], warning["stage"], str(warning["step"]), end, warning["text"]])
    return title + table(rows, "words")


def _ends(later: dict, warning: dict) -> bool:
    is_same = (later["sign"], later["stage"], later["event"]) == (warning["sign"], warning["stage"], "ends")
    return is_same and later["step"] > warning["step"]


def _held_out(run: RunRecord) -> str:
    if run.answered:
        return "<h2>Held-out prompts</h2>\n" + table(policy_rows(run.answered))
    if not run.results:
        return ""
    parts = [table(accuracy_rows(run.results))]
    if len(task_rows(run.results)[0]) > 2:
        parts.append('<p class="muted">By task, with all votes:</p>' + table(task_rows(run.results)))
    return "<h2>Held-out pairs</h2>\n" + "\n".join(parts)


def _time(run: RunRecord) -> str:
    if not run.metrics:
        return ""
    rows = time_rows(run.metrics)
    parts = ['<h2>Time</h2>\n<p class="muted">Median seconds over the steps of a stage.</p>', table(rows)]
    for row in rows[1:]:
        named = dict(zip(rows[0], row, strict=True))
        names = [name for phase in PHASES if (name := phase.removesuffix("_s")) in named]
        phases = [(name, float(named[name])) for name in names if named[name] != "-"]
        whole = max(sum(seconds for _, seconds in phases), 0.0 if named["s/step"] == "-" else float(named["s/step"]))
        if not phases or not whole:
            continue
        phases.append(("rest", whole - sum(seconds for _, seconds in phases)))
        spans = [
            f'<span class="{"rest" if name == "rest" else "phase"}" style="width:{seconds / whole:.1%}" '
            f'title="{name}: {seconds:.2f} s">{name}</span>'
            for name, seconds in phases
            if seconds / whole >= 0.001
        ]
        parts.append(f'<p class="label">{escape(row[0])}</p><div class="bar">{"".join(spans)}</div>')
    return "\n".join(parts)


def _recipe(run: RunRecord) -> str:
    return (
        '<h2>Recipe</h2>\n<details><summary>All settings, resolved</summary><div class="inside"><pre>'
        f"{escape(run.recipe)}</pre></div></details>"
    )
