"""The stages (paper, app. C): each takes the rows of the one before and yields those it keeps and those it drops."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from eval.benchmarks import BENCHMARKS
from eval.data.files import find_files
from eval.data.xstest import read_xstest
from eval.judges.judge import Drawn
from patarm_core.curation.classify import read_task
from patarm_core.curation.contamination import BenchmarkIndex, content_hash
from patarm_core.curation.margin import sample_to_keep
from patarm_core.curation.sources import Refusal, check_sides, read_source_rows, rows_per_pair
from patarm_core.embedded.splits import EmbeddedConfig, make_splits
from patarm_core.judgment import AnswerKind, RubricSetting, parse
from patarm_core.pairs import Pair, prompt_key, split_by_prompt
from patarm_core.prompts import flatten
from patarm_core.rubrics import RubricBook, unknown_task
from trainer.curation.config import CurateRecipe, ReadConfig
from trainer.curation.input_rows import SUFFIXES, input_rows
from trainer.curation.judging import (
    SIDES,
    ask_all,
    open_classifier,
    open_stage_judge,
    pair_question,
    side_questions,
    task_question,
)  # fmt: skip
from trainer.curation.stage_files import Dropped, Row, pair_of, row_of, sift

Found = Iterator[Row | Dropped]
# Benchmarks by name, and what RewardBench has taken from elsewhere.
READERS = {name: benchmark.read for name, benchmark in BENCHMARKS.items()} | {"xstest": read_xstest}


def read(recipe: CurateRecipe, book: RubricBook) -> Found:
    """Pairs of all sources, each with a (source, id) of its own, whatever the files call them.

    Raises:
        ValueError: one line; a file cannot be read, or a source holds no rows.
    """
    seen, times = _Seen(recipe.read.duplicates), Counter()
    for name, source in recipe.sources.items():
        schema, _, where = source.partition(":")
        is_empty = True
        for found in _embedded(int(where), recipe.seed) if schema == "embedded" else _pairs(name, schema, Path(where)):
            is_empty = False
            if isinstance(found, Dropped):
                yield found
                continue
            pair, file, line = found
            try:
                pair = _wanted(pair, recipe.read, book)
                seen.check(pair, f"{file}:{line}")
            except Refusal as refusal:
                yield Dropped.of(row_of(pair, file, line), refusal)
                continue
            yield row_of(_with_free_id(pair, times), file, line)
        if is_empty:
            raise ValueError(f"sources.{name}: {where} holds no rows")


def _with_free_id(pair: Pair, times: Counter[tuple[str, str]]) -> Pair:
    """The pair, or where its id is taken with the first of `id.2`, `id.3`, … that is not; counts it in `times`."""
    id = pair.id
    while times[pair.source, id]:
        times[pair.source, pair.id] += 1
        id = f"{pair.id}.{times[pair.source, pair.id]}"
    times[pair.source, id] += 1
    return replace(pair, id=id)


def _embedded(num_pairs: int, seed: int) -> Iterator[tuple[Pair, str, int]]:
    config = EmbeddedConfig(seed=seed, num_sft_pairs=0, num_rl_pairs=num_pairs, num_dev_pairs=0, num_held_out_pairs=0)
    for number, pair in enumerate(make_splits(config).rl, start=1):
        yield pair, "embedded", number


def _pairs(name: str, schema: str, path: Path) -> Iterator[tuple[Pair, str, int] | Dropped]:
    """Rows that make one pair together (`rows_per_pair`) stand one after the other, but for rows that hold nothing."""
    files = find_files(path, SUFFIXES)
    for file in files:
        prefix = "" if len(files) == 1 else f"{file.relative_to(path).with_suffix('').as_posix()}-"
        together: list[tuple[int, str, dict]] = []
        for line, raw, found in input_rows(file):
            if isinstance(found, Refusal):
                yield Dropped(name, str(file), line, found.reason, found.detail, raw)
                continue
            together.append((line, raw, found))
            if len(together) < rows_per_pair(schema):
                continue
            line = together[0][0]
            try:
                for pair in read_source_rows(schema, [row for _, _, row in together], name, f"{prefix}{line}"):
                    yield pair, str(file), line
                together = []
            except Refusal as refusal:
                # The second row may be the first of the next pair.
                num_bad = 1 if refusal.reason == "no_partner" else len(together)
                raw = "\n".join(raw for _, raw, _ in together[:num_bad])
                yield Dropped(name, str(file), line, refusal.reason, refusal.detail, raw)
                together = together[num_bad:]
        for line, raw, _ in together:
            yield Dropped(name, str(file), line, "no_partner", f"{schema} has two rows of each prompt", raw)


def _wanted(pair: Pair, config: ReadConfig, book: RubricBook) -> Pair:
    check_sides(pair)
    if pair.source in config.drop_sources:
        raise Refusal("source_left_out", f"read.drop_sources has {pair.source}")
    if pair.task and pair.task not in book.tasks:
        raise Refusal("schema", f"task: {unknown_task(pair.task, book.tasks)}")
    if not isinstance(pair.prompt, str) and config.multi_turn != "keep":
        users = [turn.content for turn in pair.prompt if turn.role == "user" and turn.content.strip()]
        if config.multi_turn == "drop" or not users:
            raise Refusal("multi_turn", f"the prompt has {len(pair.prompt)} messages")
        pair = replace(pair, prompt=users[-1])
    num_chars = len(flatten(pair.prompt))
    if 0 < config.max_prompt_chars < num_chars:
        raise Refusal("too_long", f"prompt: has {num_chars} characters; read.max_prompt_chars is less")
    return pair


class _Seen:
    """Pairs that were read before, by their texts."""

    def __init__(self, rule: str) -> None:
        self.rule, self.place = rule, {}

    def check(self, pair: Pair, place: str) -> None:
        if self.rule == "keep":
            return
        texts = flatten(pair.prompt), pair.chosen, pair.rejected
        if self.rule == "normalised":
            texts = tuple(content_hash(text) or text for text in texts)
        prompt, chosen, rejected = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
        if (before := self.place.get((prompt, chosen, rejected))) is not None:
            raise Refusal("duplicate", f"{before} is the same pair")
        if (before := self.place.get((prompt, rejected, chosen))) is not None:
            raise Refusal("contradiction", f"{before} is the same pair with its sides exchanged")
        self.place[prompt, chosen, rejected] = place


def classify(rows: Sequence[Row], recipe: CurateRecipe, folder: Path) -> Found:
    """Gives every pair a task, and says in `task_from` where that is from."""
    config = recipe.classify
    found = [
        row | ({"task": of_source, "task_from": "source"} if (of_source := config.of_source.get(row["source"])) else {})
        for row in rows
    ]
    unknown = [row for row in found if not row["task"]]
    answers: dict[int, str | None] = {}
    if unknown and config.how == "judge":
        judge = open_classifier(config.judge, config.tasks, recipe.seed)
        drawn = ask_all(folder, "classify", judge, [task_question(row) for row in unknown], 1)
        answers = {id(row): read_task(one.text or "", config.tasks) for row, (one,) in zip(unknown, drawn)}
    for row in found:
        if row["task"]:
            yield {"task_from": "row", **row}
        elif (task := answers.get(id(row))) is not None:
            yield row | {"task": task, "task_from": "judge"}
        else:
            yield row | {"task": config.fallback, "task_from": "fallback"}


def decontaminate(rows: Sequence[Row], recipe: CurateRecipe) -> Found:
    """Before anything is judged: it depends on prompts alone, so it drops what it would drop at the end."""
    config = recipe.contamination
    index = BenchmarkIndex(config.ngram, config.min_share)
    for name, path in config.against.items():
        for item in READERS[name](Path(path)).items:
            index.add(f"{name}/{item.id}", item.prompt)

    def clean(row: Row) -> Row:
        if (found := index.find(pair_of(row).prompt)) is not None:
            raise Refusal("contaminated", found)
        return row

    return sift(rows, clean)


def roll_out(rows: Sequence[Row], recipe: CurateRecipe, folder: Path) -> Found:
    """Each response's scores, None where a judgment has none."""
    judge = open_stage_judge(recipe.judges()["rollouts.judge"], "pointwise", recipe.seed, "rollouts.judge")
    questions = [question for row in rows for question in side_questions(row)]
    drawn = ask_all(folder, "rollouts", judge, questions, recipe.rollouts.num_rollouts, keep_texts=False)
    for number, row in enumerate(rows):
        sides = drawn[2 * number : 2 * number + 2]
        yield row | {
            "scores": {side: [one.score for one in of] for side, of in zip(SIDES, sides)},
            "errors": _errors([one for of in sides for one in of]),
        }


def select(rows: Sequence[Row], recipe: CurateRecipe) -> Found:
    """`use` is "rl" where correctness is within the bounds, "sft" of what remains."""
    rule, remaining = recipe.rollouts.rule(), recipe.rollouts.remaining

    def used(row: Row) -> Row:
        scores = [[_exact(score) for score in row["scores"][side]] for side in SIDES]
        verdict, (share, *sides) = rule.verdict(*scores), rule.shares(*scores)
        if verdict == "unjudged":
            raise Refusal("unjudged", f"a response without a score in {len(scores[0])} judgments: {row['errors']}")
        if verdict == "undecided":
            raise Refusal("undecided", "every comparison is a tie, or lacks a score, and is left out")
        if verdict == "hard" and remaining == "easy":
            told = str(share) if rule.unit == "pair" else f"{sides[0]} of chosen or {sides[1]} of rejected"
            raise Refusal("hard", f"correctness {told} is below {rule.low}")
        return row | {"correctness": str(share), "use": "rl" if verdict == "keep" else "sft"}

    return sift(rows, used)


def judge_for_sft(rows: Sequence[Row], recipe: CurateRecipe, folder: Path) -> Found:
    """Judgments of the pairs that are for SFT, whole."""
    asked = [row for row in rows if row["use"] == "sft"]
    drawn: Iterator[list[Drawn]] = iter(())
    if asked:
        judge = open_stage_judge(recipe.judges()["sft.judge"], "pointwise", recipe.seed + 1, "sft.judge")
        questions = [question for row in asked for question in side_questions(row)]
        drawn = iter(ask_all(folder, "judgments", judge, questions, recipe.sft.samples))
    for row in rows:
        if row["use"] == "sft":
            sides = {side: next(drawn) for side in SIDES}
            row = row | {"judgments": {side: [[one.score, one.text] for one in of] for side, of in sides.items()}}
        yield row


def keep_margins(rows: Sequence[Row], recipe: CurateRecipe) -> Found:
    """Pairs for SFT whose kept sample tells the sides apart, in judgments that have the format to be taught."""
    config = recipe.sft
    above, rubrics = Fraction(str(config.margin)), config.judge.prompt.rubrics

    def kept(row: Row) -> Row:
        if row["use"] != "sft":
            return row
        judgments = row["judgments"]
        raw = [[_exact(score) for score, _ in judgments[side]] for side in SIDES]
        if not all(any(score is not None for score in side) for side in raw):
            raise Refusal("unjudged", f"a response without a score in {len(raw[0])} judgments for SFT")
        texts = {side: [_target(text, config.target) for _, text in judgments[side]] for side in SIDES}
        scores = [[parse(text, "score", rubrics).score for text in texts[side]] for side in SIDES]
        sample = sample_to_keep(*scores, above, config.keep)
        if sample is None:
            if sample_to_keep(*raw, above, config.keep) is not None:
                raise Refusal("malformed_judgment", "the margin is there, and no judgment in the format to be taught")
            raise Refusal("margin", f"no margin above {config.margin:g}")
        told = {name: value for name, value in row.items() if name != "judgments"}
        return told | {"judgment": {side: texts[side][sample] for side in SIDES}}

    return sift(rows, kept)


def choose(rows: Sequence[Row], recipe: CurateRecipe, folder: Path) -> Found:
    """Adds the first choice that is right, and in the format to be taught, to pairs of the pointwise set."""
    config = recipe.pairwise
    asked = [row for row in rows if row["use"] == "sft"]
    chosen: Iterator[list[Drawn]] = iter(())
    if asked and config.samples:
        judge = open_stage_judge(recipe.judges()["pairwise.judge"], "pairwise", recipe.seed + 2, "pairwise.judge")
        chosen = iter(ask_all(folder, "choices", judge, [pair_question(row) for row in asked], config.samples))
    for row in rows:
        right = None
        if row["use"] == "sft" and config.samples:
            drawn = [replace(one, text=_target(one.text, recipe.sft.target)) for one in next(chosen)]
            rubrics = config.judge.prompt.rubrics
            right = next((one for one in drawn if one.choice == "A" and _has_format(one.text, "choice", rubrics)), None)
        yield row if right is None else row | {"choice": {"text": right.text, "is_swapped": right.is_swapped}}


def split(rows: Sequence[Row], recipe: CurateRecipe) -> Found:
    """Says in `end` what becomes of each pair."""
    config = recipe.split
    pairs = [pair_of(row) for row in rows]
    rest, held_out = split_by_prompt(pairs, config.held_out, recipe.seed)
    _, dev = split_by_prompt(
        rest, min(config.dev / (1 - config.held_out), 1) if config.held_out < 1 else 0, recipe.seed + 1
    )
    measured = {prompt_key(pair): "dev" for pair in dev} | {prompt_key(pair): "held_out" for pair in held_out}
    keys = {(pair.source, pair.id): prompt_key(pair) for pair in pairs}
    in_rl = {keys[row["source"], row["id"]] for row in rows if row["use"] == "rl"}

    def ended(row: Row) -> Row:
        key = keys[row["source"], row["id"]]
        end = measured.get(key, "rl" if row["use"] == "rl" else "sft_point")
        if config.disjoint == "prompt" and end == "sft_point" and key in in_rl:
            raise Refusal("prompt_in_rl", "another pair of the prompt is for RL")
        return row | {"end": end}

    return sift(rows, ended)


def _errors(drawn: Sequence[Drawn]) -> dict[str, int]:
    """Numbers of judgments without a score, by the kind of their error."""
    return dict(sorted(Counter(one.error.partition(":")[0] for one in drawn if one.error is not None).items()))


def _exact(score: float | None) -> Fraction | None:
    return None if score is None else Fraction(str(score))


def _target(text: str | None, target: str) -> str:
    text = text or ""
    return text[max(text.find("<think>"), 0) :] if target == "from_think" else text


def _has_format(text: str, kind: AnswerKind, rubrics: RubricSetting) -> bool:
    return parse(text, kind, rubrics).error is None


Stage = Callable[[Sequence[Row]], Found]


def check_names(recipe: CurateRecipe, book: RubricBook) -> None:
    """
    Raises:
        ValueError: one line; the recipe names a task that has no rubrics, or a benchmark that there is not.
    """
    config = recipe.classify
    for task in (*config.of_source.values(), *config.tasks, config.fallback):
        if task not in book.tasks:
            raise ValueError(f"classify: {unknown_task(task, book.tasks)}")
    for name in recipe.contamination.against:
        if name not in READERS:
            raise ValueError(f"contamination.against.{name}: unknown benchmark; known are {', '.join(READERS)}")


def check_sources(recipe: CurateRecipe, found: Collection[str]) -> None:
    """Once all is read: rows may name sources of their own, which no recipe tells beforehand.

    Args:
        found: sources, those of rows that are dropped among them.

    Raises:
        ValueError: one line; the recipe names the task of a source that there is not.
    """
    for name in recipe.classify.of_source:
        if name not in found:
            raise ValueError(f"classify.of_source.{name}: no such source; the rows' are {', '.join(sorted(found))}")


def all_stages(recipe: CurateRecipe, book: RubricBook, folder: Path) -> dict[str, Stage]:
    """In their order, by the names of their files."""
    return {
        "read": lambda rows: read(recipe, book),
        "classify": lambda rows: classify(rows, recipe, folder),
        "decontaminate": lambda rows: decontaminate(rows, recipe),
        "rollouts": lambda rows: roll_out(rows, recipe, folder),
        "select": lambda rows: select(rows, recipe),
        "judgments": lambda rows: judge_for_sft(rows, recipe, folder),
        "margin": lambda rows: keep_margins(rows, recipe),
        "choices": lambda rows: choose(rows, recipe, folder),
        "split": lambda rows: split(rows, recipe),
    }
