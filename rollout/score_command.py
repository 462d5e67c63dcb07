"""`rollout/main.py score` and `compare`: one item from the command line, or a file of them."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patarm_core.fields import Fields, read_object
from rollout.contexts import load_rubrics, read_text
from rollout.judge import Judge
from rollout.options import judgment_settings, load_judge
from rollout.questions import Compared, Judged, Question, read_task
from rollout.resumable import check_free, write_lines

Ask = Callable[[Judge, "Item"], Question]


@dataclass(frozen=True, slots=True)
class Item:
    """One row: what it says, where it stands, and the row itself."""

    prompt: str | tuple
    responses: tuple[str, ...]
    task: str
    name: str
    row: dict


def run_score(options: argparse.Namespace) -> None:
    def ask(judge: Judge, item: Item) -> Question:
        return judge.ask(item.prompt, *item.responses, item.task, item.name)

    _run(options, ("response",), ask, {})


def run_compare(options: argparse.Namespace) -> None:
    def ask(judge: Judge, item: Item) -> Question:
        return judge.ask_to_compare(item.prompt, *item.responses, item.task, options.method, item.name)

    _run(options, ("response_a", "response_b"), ask, {"method": options.method})


def _run(options: argparse.Namespace, names: Sequence[str], ask: Ask, more_settings: dict) -> None:
    one = {name: getattr(options, name) for name in ("prompt", *names)}
    is_one = options.data is None
    if is_one != all(value is not None for value in one.values()) or (not is_one and any(one.values())):
        flags = " ".join(f"--{name.replace('_', '-')} …" for name in one)
        raise ValueError(f"name one item, {flags}, or a file of them, --data FILE --out FILE")
    if is_one != (options.out is None):
        raise ValueError("--data and --out go together: rows of the one file become rows of the other")
    tasks = load_rubrics(options.rubrics_file).tasks
    if is_one:
        item = _item(one | {"task": options.task}, "this item", names, tasks, None)
        judge = load_judge(options)
        (answer,) = judge.answers([ask(judge, item)])
        print(json.dumps(answer.record(), ensure_ascii=False) if options.json else _readable(answer))
        return
    text = read_text(options.data)
    items = _items(text, options.data, names, tasks, options.task)
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = judgment_settings(options) | more_settings | {"task": options.task, "data": digest}
    check_free(Path(options.out), settings)
    judge = load_judge(options)
    for item in items:
        ask(judge, item)  # a row that cannot be judged is told before anything is written

    def records_from(start: int) -> Iterator[dict]:
        rest = items[start:]
        for item, answer in zip(rest, judge.answers(ask(judge, item) for item in rest), strict=True):
            yield item.row | answer.record()

    write_lines(Path(options.out), settings, len(items), records_from, "judging")


def _items(text: str, file: str, names: Sequence[str], tasks: Sequence[str], task: str | None) -> list[Item]:
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(read_object(line), f"{file}:{number}", names, tasks, task))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from None
    if not items:
        raise ValueError(f"{file}: holds no rows; expected one JSON object per line")
    return items


def _item(row: dict, name: str, names: Sequence[str], tasks: Sequence[str], default_task: str | None) -> Item:
    fields = Fields(row)
    if len(names) == 2 and "chosen" in row:
        names = ("chosen", "rejected")
    return Item(
        fields.prompt("prompt"), tuple(map(fields.text, names)), read_task(fields, tasks, default_task), name, row
    )


def _readable(answer: Judged | Compared) -> str:
    if isinstance(answer, Judged):
        valid = [float(score) for score in answer.answers if score is not None]
        told = f"score {float(answer.score):g}" if valid else "no score"
        return "\n\n".join(
            [*answer.texts, f"{told}   ({len(valid)} of {len(answer.texts)} judgments have one: {valid})"]
        )
    blocks = []
    for judged, side in zip(answer.judged, "AB" if len(answer.judged) == 2 else " "):
        blocks += [f"[{side}] {text}" if side != " " else text for text in judged.texts]
    votes = {vote: answer.votes.count(vote) for vote in ("A", "B", "tie")}
    return "\n\n".join([*blocks, f"winner {answer.winner or 'none'}   (votes {votes}, of {len(answer.votes)})"])
