"""What the runs of one seed say, in numbers: all that tables, pictures and verdicts are made of."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from bench.paper.plan import ARMS, Needs, with_starts
from bench.paper.runs import SeedRuns
from eval.pair_accuracy import Judged, JudgedPair, pair_accuracy
from eval.pair_choices import PairChoices
from eval.pair_scores import ScoredPair
from patarm_core.benchmarks.rm_bench import read_row
from patarm_core.pairs import Pair
from patarm_core.voting import at_n, majority
from rollout.contexts import load_pairs, load_rubrics, read_text
from rollout.text_files import read_records

VOTES = (1, 2, 4, 8, 16)
CURVES = {"accuracy": "dev_accuracy", "margin": "dev_margin"}


def facts_of(runs: SeedRuns, needs: Needs) -> dict:
    """
    Returns:
        held_out: by arm and number of votes, shares from 0 to 1: `overall` (the mean of the tasks, as RewardBench's
            of its sections; ties count 0), `majority` (the same by majority voting), `ties_half` (the same with half
            of each tie), each task; and `margin`, of all pairs;
        rm_bench: by arm and votes, official numbers; curves: by arm; entropy: by arm, of its first and last steps.
    """
    pairs = load_pairs(runs.file("held_out"), load_rubrics(runs.recipe.prompt.rubrics_file)) if needs.held_out else []
    held_out = {}
    for arm in needs.held_out:
        judged = read_judged(read_records(runs.held_out(arm)), pairs)
        held_out[arm] = voted(judged)
    trained = [arm for arm in with_starts(list(needs.held_out)) if ARMS[arm].stage != "sft"]
    metrics = {arm: read_records(runs.folder / arm / "metrics.jsonl") for arm in with_starts(trained)}
    return {
        "seed": runs.seed,
        "held_out": held_out,
        "rm_bench": {arm: _rm_bench(runs.rm_bench(arm)) for arm in needs.rm_bench} if runs.is_embedded else {},
        "curves": {arm: curve_of(metrics[arm], metrics[ARMS[arm].start]) for arm in trained},
        "entropy": {arm: _ends(metrics[arm], "entropy") for arm in trained if ARMS[arm].stage == "grpo"},
        "step_s": {arm: median(record["step_s"] for record in records) for arm, records in metrics.items()},
    }


def read_judged(records: Sequence[dict], pairs: Sequence[Pair]) -> list[Judged]:
    """Pairs as they were judged, from the lines that judging left."""
    of_pair = defaultdict(list)
    for record in records:
        of_pair[record["source"], record["id"]].append(record)
    found: list[Judged] = []
    for pair in pairs:
        mine = of_pair.get((pair.source, pair.id), [])
        if not mine:
            raise ValueError(f"pair {pair.id} of {pair.source} was not judged; remove the folder of the arm and go on")
        if "choice" in mine[0]:  # in the pair's own order
            letters = {"chosen": "A", "rejected": "B"}
            found.append(PairChoices(pair, [], [], [letters.get(record["choice"]) for record in mine], False))
            continue
        chosen, rejected = ([r["score"] for r in mine if r["side"] == side] for side in ("chosen", "rejected"))
        if "judgment" in mine[0]:
            found.append(JudgedPair(pair, [], [], [], [], (chosen, rejected)))
        else:
            found.append(ScoredPair(pair, chosen[0], rejected[0]))
    return found


def voted(judged: Sequence[Judged]) -> dict[str, dict]:
    """Of every number of votes up to what was drawn; a scalar model has one."""
    first = judged[0]
    num = {JudgedPair: lambda: len(first.scores[0]), PairChoices: lambda: len(first.choices), ScoredPair: lambda: 1}
    most = num[type(first)]()
    return {str(n): _voted(judged, n) for n in VOTES if n <= most}


def _voted(judged: Sequence[Judged], n: int) -> dict:
    tasks = sorted({item.pair.task for item in judged})
    parts = {task: [item for item in judged if item.pair.task == task] for task in tasks}
    of_task = {task: pair_accuracy(items, n) for task, items in parts.items()}
    whole = pair_accuracy(judged, n)
    result = {
        "overall": fmean(one.accuracy for one in of_task.values()),
        "ties_half": fmean(one.accuracy_ties_half for one in of_task.values()), "margin": whole.margin,
        "num_pairs": whole.num_pairs, "num_ties": whole.num_ties, "num_unscored": whole.num_unscored,
        **{task: one.accuracy for task, one in of_task.items()},
    }  # fmt: skip
    if isinstance(judged[0], JudgedPair):
        right = {
            task: fmean(majority(*(at_n(side, n) for side in item.scores)) == "chosen" for item in items)
            for task, items in parts.items()
        }
        result["majority"] = fmean(right.values())
    return result


def curve_of(records: Sequence[dict], before: Sequence[dict]) -> dict[str, list[float]]:
    """Dev accuracy and margin over the steps; step 0 is the last measurement of the start, by the same judging."""
    measured = [record for record in records if "dev_accuracy" in record]
    at_zero = [record for record in before if "dev_accuracy" in record][-1:]
    is_same_kind = at_zero and measured and measured[0].get("stage") == "grpo"  # a scalar model starts from no score
    points = [*([{**at_zero[0], "step": 0}] if is_same_kind else []), *measured]
    points = [point for point in points if None not in (point.get(key) for key in CURVES.values())]
    return {"step": [p["step"] for p in points]} | {name: [p[key] for p in points] for name, key in CURVES.items()}


def _ends(records: Sequence[dict], key: str, num: int = 5) -> list[float]:
    values = [record[key] for record in records]
    return [fmean(values[:num]), fmean(values[-num:])]


def _rm_bench(folder: Path) -> dict[str, dict]:
    """Votes → official numbers, and `cells`, the shares of the 3 × 3 matrix."""
    report = json.loads(read_text(folder / "report.json"))
    found = {}
    for way in report["voting"]:
        if way["policy"] == report["voting"][0]["policy"]:
            numbers = {metric["name"].partition(" ")[0]: metric["value"] for metric in way["report"]["metrics"]}
            found[str(way["votes"])] = numbers
    rows = [read_row(row) for row in read_records(folder / "rows.jsonl")]
    cells = [[fmean(row.cells[i][j].official for row in rows) for j in range(3)] for i in range(3)]
    found[str(report["voting"][0]["votes"])]["cells"] = cells
    return found
