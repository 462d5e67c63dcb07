"""`bench/main.py paper NAME`: trains and measures what is not there; then tables and verdicts beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.paper.facts import facts_of
from bench.paper.page import write_page
from bench.paper.plan import NEEDS, joined_needs, needs_of
from bench.paper.report import Experiment, about, as_markdown, experiment_of
from bench.paper.runs import Scale, SeedRuns, run_jobs
from bench.paper.tables import TABLES
from bench.paper.times import time_facts
from bench.result_files import write_result
from trainer.machine import machine


def run_paper(
    names: Sequence[str],
    scale: Scale,
    seeds: Sequence[int],
    work: Path,
    out: Path | None,
    side_by_side: int,
    without: Sequence[str] = (),
) -> list[Experiment]:
    """Prints and returns the experiments.

    Args:
        names: some of NEEDS, or "all".
        work: folder of the runs, which experiments share.
        side_by_side: processes at a time.
        without: arms that are left out.

    Raises:
        ValueError: an unknown name, a mistake in a recipe, or a run that failed; one line.
    """
    if unknown := [name for name in names if name != "all" and name not in NEEDS]:
        raise ValueError(f"paper {unknown[0]}: no such experiment; expected all or some of {', '.join(NEEDS)}")
    names = list(NEEDS) if "all" in names else list(dict.fromkeys(names))
    needs = {name: needs_of(name, without) for name in names}
    of_seeds = [SeedRuns(scale, seed, work.resolve() / f"seed-{seed}") for seed in seeds]
    run_jobs([job for runs in of_seeds for job in runs.jobs(joined_needs(list(needs.values())))], side_by_side)
    found = []
    for name in names:
        is_trained = name in TABLES
        experiment = experiment_of(
            name, [facts_of(runs, needs[name]) for runs in of_seeds] if is_trained else time_facts(name)
        )
        found.append(experiment)
        text = as_markdown(experiment)
        print(text, flush=True)
        if out is not None:
            made_with = {
                "machine": machine(), "seeds": list(seeds), "recipes": list(scale.recipes),
                "settings": list(scale.settings),
            }  # fmt: skip
            write_result(out, name, text, (made_with if is_trained else {}) | about(experiment))
    if out is not None:
        write_page(out)
    return found
