"""A judge over a benchmark: judgments into a folder, and from all that is there its rows and reports.

The folder is a function of the data and the judge: an interrupted run goes on, a finished one is reported again to the
same bytes, and one set of judgments serves every n of voting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks import BENCHMARKS, Benchmark, Policy
from eval.data.items import Data
from eval.judges.judge import Judge
from eval.judgments import Judgments, open_judgments
from eval.run_report import Voted, counts_of, write_reports
from rollout.text_files import write_text


def run_benchmark(
    name: str, data: Data, judge: Judge, votes: Sequence[int], out: Path, retry: bool = False
) -> list[Voted]:
    """Judges what is not judged yet, then writes rows.jsonl, rows/, report.json, report.md and report.html.

    Args:
        votes: numbers of judgments to vote with; the largest is drawn of each question.
        retry: asks again what got no reply.

    Raises:
        ValueError: the benchmark needs scores and the judge compares; or the folder is another run's.
    """
    benchmark = BENCHMARKS[name]
    if judge.mode == "pairwise" and benchmark.pairs is None:
        raise ValueError(f"{name} ranks more than two responses by their scores; give it a pointwise judge")
    settings = {
        "benchmark": name,
        "data": data.digest,
        "mode": judge.mode,
        **fingerprint_of("judge", judge),
    }
    questions = [question for item in data.items for question in benchmark.questions(item, judge.mode)]
    with open_judgments(out, settings, max(votes)) as judgments:
        judgments.ask(judge, questions, name, retry)
        voted = _voted(benchmark, data, judgments, judge, votes)
        write_rows(out, voted)
        asked = [judgments.of[question.id] for question in questions]
        write_reports(out, data, settings, voted, counts_of(asked))
    return voted


def fingerprint_of(role: str, judge: Judge) -> dict[str, object]:
    """What a run's folder knows it by, one entry for each thing that a mistake may be about."""
    return {role: judge.name} | {f"{role}.{name}": part for name, part in judge.fingerprint.items()}


def _voted(benchmark: Benchmark, data: Data, judgments: Judgments, judge: Judge, votes: Sequence[int]) -> list[Voted]:
    """The most votes first, under the policy of the headline first."""
    drawn = [[judgments.of[question.id] for question in benchmark.questions(item, judge.mode)] for item in data.items]
    ways: list[tuple[Policy, int]] = [
        (policy, n) for policy in benchmark.policies(judge.mode) for n in sorted(set(votes), reverse=True)
    ]
    found = []
    for policy, n in ways:
        rows = [
            benchmark.row(item, of_item, policy, n, judge.mode) for item, of_item in zip(data.items, drawn, strict=True)
        ]
        found.append(Voted(policy, n, rows, benchmark.report(rows)))
    return found


def write_rows(out: Path, voted: Sequence[Voted]) -> None:
    """rows.jsonl is what the headline is computed from; rows/ holds every other way to vote, and none of before."""
    files = [out / "rows.jsonl", *(out / "rows" / f"{one.label}.jsonl" for one in voted[1:])]
    for file in set((out / "rows").glob("*.jsonl")) - set(files):
        file.unlink()
    for file, one in zip(files, voted, strict=True):
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in one.rows))
