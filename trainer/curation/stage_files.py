"""Stages of a pipeline: each leaves its rows, and what it dropped, as files that are there as a whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from patarm_core.curation.sources import Refusal
from patarm_core.pairs import Pair
from patarm_core.prompts import Message
from rollout.text_files import naming, read_records, record_line, write_text

Row = dict[str, object]  # a pair's fields, where it came from (`file`, `line`), and what the stages found out

# Reasons that say that something is wrong with a row, which then is in quarantine.jsonl as it was; others say that the
# recipe does not want it (filtered.jsonl).
QUARANTINED = (
    "not_utf8", "not_json", "not_unicode", "schema", "no_partner", "empty", "identical", "duplicate", "contradiction",
    "contaminated", "unjudged", "malformed_judgment",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropped:
    source: str
    file: str
    line: int  # from 1; of a file without lines, the number of the entry
    reason: str
    detail: str
    row: object  # as it was read: its text, or its pair

    @classmethod
    def of(cls, row: Row, refusal: Refusal) -> Dropped:
        pair = {name: row[name] for name in ("prompt", "chosen", "rejected", "task", "source", "id")}
        return cls(row["source"], row["file"], row["line"], refusal.reason, refusal.detail, pair)


def pair_of(row: Row) -> Pair:
    prompt = row["prompt"]
    prompt = prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
    return Pair(prompt, *(row[name] for name in ("chosen", "rejected", "task", "source", "id")))


def question_id(source: str, id: str, about: str) -> str:
    """Names what a judge is asked of a pair: `about` is a side, "pair" or "task". No two have one name.

    A slash in the source is escaped, so that the first one is where the id begins.
    """
    return f"{source.replace('%', '%25').replace('/', '%2F')}/{id}#{about}"


def row_of(pair: Pair, file: str, line: int) -> Row:
    prompt = pair.prompt if isinstance(pair.prompt, str) else [turn._asdict() for turn in pair.prompt]
    return {**vars(pair), "prompt": prompt, "file": file, "line": line}


def sift(rows: Iterable[Row], change: Callable[[Row], Row]) -> Iterable[Row | Dropped]:
    """Each row as `change` makes it, or dropped where it raises a Refusal."""
    for row in rows:
        try:
            yield change(row)
        except Refusal as refusal:
            yield Dropped.of(row, refusal)


class StageFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dropped: list[dict] = []  # by all stages so far, with the stage's name

    def run(self, number: int, name: str, make: Callable[[], Iterable[Row | Dropped]]) -> list[Row]:
        """The rows that the stage keeps: read if they are there, else made and written."""
        file = self.folder / "stages" / f"{number}-{name}.jsonl"
        aside = self.folder / "stages" / f"{number}-{name}.dropped.jsonl"
        if not file.is_file():
            start = time.perf_counter()
            kept, dropped = [], []
            for found in make():
                if isinstance(found, Dropped):
                    dropped.append(record_line({name: getattr(found, name) for name in Dropped.__slots__}))
                else:
                    kept.append(_line(found))
            write_text(aside, "".join(dropped))
            write_text(file, "".join(kept))  # last: with it the stage is done
            self._note(name, len(kept), len(dropped), time.perf_counter() - start)
        self.dropped += [{"stage": name, **record} for record in read_records(aside)]
        return read_records(file)

    def _note(self, stage: str, kept: int, dropped: int, seconds: float) -> None:
        """Times are no part of the result."""
        file = self.folder / "timings.jsonl"
        with naming(file), open(file, "a", encoding="utf-8") as log:
            log.write(record_line({"stage": stage, "kept": kept, "dropped": dropped, "seconds": seconds}))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
