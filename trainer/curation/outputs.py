"""What a run leaves: data for training in two layouts, the reports, and everything that was not used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.tables import markdown
from patarm_core.curation.counts import PAPER, count, table, total
from patarm_core.curation.released import rl_rows, sft_rows
from patarm_core.pairs import ChoiceExample, JudgmentExample, Pair, judgment_to_json, pair_to_json
from patarm_core.prompts import pointwise
from patarm_core.rubrics import RubricBook
from rollout.text_files import record_line, write_text
from trainer.curation.config import CurateRecipe
from trainer.curation.judging import SIDES
from trainer.curation.stage_files import QUARANTINED, Row, pair_of


def write_outputs(
    recipe: CurateRecipe,
    book: RubricBook,
    folder: Path,
    num_read: Mapping[str, int],
    rows: Sequence[Row],
    dropped: Sequence[dict],
) -> None:
    """Writes data/, released/, quarantine.jsonl, filtered.jsonl and the reports, of which report.json comes last.

    Args:
        num_read: by source, of pairs and of rows that are none, before any stage could lose one.
        rows: of the last stage.
        dropped: by all stages.

    Raises:
        ValueError: what was read is not what is accounted for.
    """
    pairs = {end: [pair_of(row) for row in rows if row["end"] == end] for end in ("rl", "dev", "held_out")}
    sft = [row for row in rows if row["end"] == "sft_point"]
    judged = [_judgments(row) for row in sft]
    chosen = [_choice(row) for row in sft if "choice" in row]
    trained = [pair_of(row) for row in rows if row["end"] in ("rl", "sft_point")]  # by a Bradley-Terry model
    for name, of in [*pairs.items(), ("pairs", trained)]:
        _write_shards(folder / "data" / name, [pair_to_json(pair) for pair in of], recipe.shard_rows)
    lines = [judgment_to_json(example) for both in judged for _, example in both]
    _write_shards(folder / "data" / "sft_point", lines, recipe.shard_rows + recipe.shard_rows % 2)
    _write_shards(folder / "data" / "sft_pair", [judgment_to_json(row) for row in chosen], recipe.shard_rows)
    _write_released(recipe, book, folder / "released", pairs["rl"], judged)
    for name, is_bad in (("quarantine", True), ("filtered", False)):
        found = [record for record in dropped if (record["reason"] in QUARANTINED) == is_bad]
        if not is_bad:
            found = [{key: value for key, value in record.items() if key != "row"} for record in found]
        write_text(folder / f"{name}.jsonl", "".join(map(record_line, found)))
    _write_report(recipe, folder, num_read, rows, dropped)


def _judgments(row: Row) -> list[tuple[str, JudgmentExample]]:
    pair = pair_of(row)
    return [
        (side, JudgmentExample(pair.prompt, row[side], pair.task, row["judgment"][side], pair.source, pair.id))
        for side in SIDES
    ]


def _choice(row: Row) -> ChoiceExample:
    pair, choice = pair_of(row), row["choice"]
    a, b = (pair.rejected, pair.chosen) if choice["is_swapped"] else (pair.chosen, pair.rejected)
    return ChoiceExample(pair.prompt, a, b, pair.task, choice["text"], pair.source, pair.id)


def _write_shards(folder: Path, lines: Sequence[str], shard_rows: int) -> None:
    """No file at all of what has no rows."""
    for number, start in enumerate(range(0, len(lines), shard_rows)):
        write_text(folder / f"{number:05d}.jsonl", _text(lines[start : start + shard_rows]))


def _write_released(recipe: CurateRecipe, book: RubricBook, folder: Path, rl: Sequence[Pair], judged: Sequence) -> None:
    def render(prompt, response: str, task: str) -> str:
        rubrics = recipe.sft.judge.prompt.rubrics
        return pointwise(prompt, response, task, book, rubrics=rubrics, template=recipe.template)

    write_text(folder / "rl_train_mix.jsonl", _text([line for pair in rl for line in rl_rows(pair, render)]))
    write_text(folder / "sft_train.jsonl", _text([line for both in judged for line in sft_rows(both, render)]))


def _text(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _write_report(
    recipe: CurateRecipe, folder: Path, num_read: Mapping[str, int], rows: Sequence[Row], dropped: Sequence[dict]
) -> None:
    counts = count(
        num_read, [(record["source"], record["reason"]) for record in dropped],
        [(row["source"], row["end"]) for row in rows],
        [row["source"] for row in rows if row["end"] == "sft_point" and "choice" in row],
    )  # fmt: skip
    counts = dict(sorted(counts.items()))
    reasons = [[reason, str(num), "quarantine.jsonl" if reason in QUARANTINED else "filtered.jsonl"]
               for reason, num in total(counts)["dropped"].items()]  # fmt: skip
    correctness = Counter(row["correctness"] for row in rows)
    tasks = {end: Counter(row["task"] for row in rows if row["end"] == end) for end in ("rl", "sft_point")}
    origins = Counter(row["task_from"] for row in rows)
    errors = Counter()
    for row in rows:
        errors.update(row["errors"])
    record = {
        "counts": counts, "total": total(counts), "tasks": {end: dict(sorted(of.items())) for end, of in tasks.items()},
        "task_from": dict(sorted(origins.items())), "correctness_of_kept": dict(sorted(correctness.items())),
        "unscored_rollouts_of_kept": dict(sorted(errors.items())),
        "decontaminated_against": list(recipe.contamination.against),
    }  # fmt: skip
    text = "\n".join(
        [
            "# Pairs, by source", "", markdown(table(counts)), "",
            "SFT (pair) is a part of SFT (point). The paper's shares are of its table 6, whose RL column adds up to "
            f"{sum(row[1] for row in PAPER.values()):,}; printed is 20,853.", "", *_rules(recipe), "",
            "# Not used", "", markdown([["reason", "rows", "see"], *reasons]), "",
            f"Pairs by what named their task: {_told(Counter({_NAMED_BY[of]: num for of, num in origins.items()}))}.",
            f"Rollouts without a score, of pairs that were kept: {_told(errors)}.", "",
        ]
    )  # fmt: skip
    write_text(folder / "report.md", text)
    write_text(folder / "report.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


# What `task_from` of a row says (`trainer.curation.stages.classify`).
_NAMED_BY = {
    "row": "their own row", "source": "classify.of_source", "judge": "the classifier", "fallback": "classify.fallback",
}  # fmt: skip


def _rules(recipe: CurateRecipe) -> list[str]:
    rule, sft = recipe.rollouts, recipe.sft
    against = ", ".join(recipe.contamination.against) or "nothing: do not measure on benchmarks with what this trains"
    return [
        f"RL: correctness in [{rule.low}, {rule.high}] of {rule.num_rollouts} rollouts; definition {rule.definition},",
        f"ties {rule.ties}, unparsed {rule.unparsed}, unit {rule.unit}. SFT: of {rule.remaining} that remain; margin",
        f"above {sft.margin:g}, kept: {sft.keep} of {sft.samples} samples. Decontaminated against {against}.",
    ]


def _told(counts: Counter) -> str:
    return ", ".join(f"{name} {num}" for name, num in sorted(counts.items())) or "none"
