"""judgments.jsonl of a run's folder: one judgment a line, appended as it comes, and read again when the run goes on.

    {"question": "chat/8#0", "vote": 0, "prompt": "9f…", "text": "<think>…", "score": 7.5, "choice": null,
     "error": null, "seed": 1234, "seconds": 0.8, "is_swapped": false}

`prompt` is a hash of all that was asked. judgments.settings.json says what they were made with, and a folder takes no
others.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from eval.judges.judge import Drawn, Judge, Question
from patarm_core.fields import Fields, kind, read_object
from rollout.contexts import read_text
from rollout.resumable import check_same
from rollout.text_files import write_text

_USUAL = {"scores": None, "is_swapped": False}  # fields that are left out where they say nothing


@dataclass(slots=True)
class Judgments:
    """Of one folder. A question counts as judged once all of its votes are there."""

    file: Path
    votes: int  # of each question
    keep_texts: bool  # otherwise only what was read from them stays in memory
    of: dict[str, list[Drawn]] = field(default_factory=dict)  # question -> its votes
    _hashes: dict[str, str] = field(default_factory=dict)
    _out: BinaryIO | None = None

    def missing(self, questions: Sequence[Question], retry: bool = False) -> list[Question]:
        """Those that have not been judged as they are asked now; with `retry`, also those of which a vote got no reply,
        which name the votes that did (`kept`)."""
        found = []
        for question in questions:
            if self._hashes.get(question.id) != prompt_hash(question):
                found.append(question)
            elif retry and any(map(is_failed, drawn := self.of[question.id])):
                kept = frozenset(vote for vote, one in enumerate(drawn) if not is_failed(one))
                found.append(replace(question, kept=kept))
        return found

    def ask(
        self, judge: Judge, questions: Sequence[Question], label: str, retry: bool = False, unit: str = "judgment"
    ) -> None:
        """Judges what is missing, and keeps each question's votes as soon as they are there.

        Args:
            label, unit: of the progress bar.
        """
        missing = self.missing(questions, retry)
        total = len(questions) * self.votes
        done = total - sum(self.votes - len(question.kept) for question in missing)
        counts = {"unparsed": 0, "failed": 0}
        with tqdm(total=total, initial=done, desc=label, unit=unit) as bar:
            for index, drawn in judge.judge(missing, self.votes) if missing else ():
                for one in self.add(missing[index], drawn):
                    counts["failed"] += is_failed(one)
                    counts["unparsed"] += is_unparsed(one)
                bar.set_postfix({name: num for name, num in counts.items() if num}, refresh=False)
                bar.update(len(drawn) - len(missing[index].kept))

    def add(self, question: Question, drawn: Sequence[Drawn]) -> Sequence[Drawn]:
        """Keeps and returns its votes; of a question that is asked again, what had a reply before stays."""
        key = prompt_hash(question)
        if self._hashes.get(question.id) == key:
            before = self.of[question.id]
            drawn = [now if is_failed(old) else old for old, now in zip(before, drawn, strict=True)]
        lines = [
            json.dumps({"question": question.id, "vote": vote, "prompt": key, **_record(one)}, ensure_ascii=False)
            for vote, one in enumerate(drawn)
        ]
        # Half of a surrogate pair has no UTF-8; backslashreplace writes it as JSON's escape.
        self._out.write("".join(line + "\n" for line in lines).encode(errors="backslashreplace"))
        self._out.flush()
        self._keep(question.id, key, drawn)
        return drawn

    def _keep(self, question: str, key: str, drawn: Sequence[Drawn]) -> None:
        self._hashes[question] = key
        keep_texts = self.keep_texts or any(map(is_failed, drawn))  # they are written once more if it is asked again
        self.of[question] = [one if keep_texts else replace(one, text=one.text and "…") for one in drawn]

    def read(self) -> None:
        """Takes what the file holds, cut back to its last whole question.

        Raises:
            ValueError: a line that is not a judgment, with its number.
        """
        end = start = 0  # of what is whole; of the question that is being read
        open_question: tuple[str, str] | None = None
        votes: list[Drawn] = []
        with open(self.file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    fields = Fields(read_object(line))
                    named, vote = (fields.text("question"), fields.text("prompt")), fields.whole("vote", 0, 1 << 30)
                    drawn = _drawn(fields)
                except ValueError as error:
                    raise ValueError(
                        f"{self.file}:{number}: {error}; remove the line to have it judged again"
                    ) from None
                if vote == 0 or named != open_question:
                    open_question, votes = named, []
                votes.append(drawn)
                start += len(line)
                if len(votes) == self.votes:
                    self._keep(*named, votes)
                    end, open_question, votes = start, None, []
        os.truncate(self.file, end)


@contextmanager
def open_judgments(
    folder: Path, settings: dict, votes: int, keep_texts: bool = False, name: str = "judgments"
) -> Iterator[Judgments]:
    """The judgments of a folder, which is made or goes on.

    Args:
        settings: all that they depend on besides the number of votes, JSON-ready.
        votes: of each question, at least; a folder that has more keeps its number.

    Raises:
        ValueError: the folder was begun otherwise, holds fewer votes, or is being written by another run.
    """
    note, file = folder / f"{name}.settings.json", folder / f"{name}.jsonl"
    if note.is_file():
        begun = read_object(read_text(note))
        has = begun.pop("votes", None)
        check_same(file, begun, settings, "name another --out")
        if not isinstance(has, int) or has < votes:
            raise ValueError(
                f"{folder}: holds {has} judgments of each question, and {votes} are asked for; name another --out"
            )
        votes = has
    elif file.exists():
        raise ValueError(f"{folder}: there is no {note.name} that says what made {file.name}; name another --out")
    else:
        write_text(note, json.dumps(settings | {"votes": votes}, indent=1, ensure_ascii=False) + "\n")
    with open(file, "ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run writes to it; wait for it, or name another --out") from None
        judgments = Judgments(file, votes, keep_texts)
        judgments.read()
        out.seek(0, os.SEEK_END)
        judgments._out = out
        yield judgments


def prompt_hash(question: Question) -> str:
    """Of the task, the prompt and the responses."""
    prompt = question.prompt if isinstance(question.prompt, str) else [_message(turn) for turn in question.prompt]
    asked = json.dumps([question.task, prompt, list(question.responses)], ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def is_failed(drawn: Drawn) -> bool:
    """There is no reply at all: the endpoint did not answer, or the question could not be put to the judge."""
    return drawn.text is None and drawn.error is not None


def is_unparsed(drawn: Drawn) -> bool:
    """There is a reply, and what it should say is not in it."""
    return drawn.text is not None and drawn.error is not None


def _message(turn) -> list[str]:
    return [turn["role"], turn["content"]] if isinstance(turn, dict) else [turn.role, turn.content]


def _record(drawn: Drawn) -> dict:
    return {name: value for name, value in asdict(drawn).items() if _USUAL.get(name, ...) != value}


def _drawn(fields: Fields) -> Drawn:
    scores, text = fields.value("scores", "two numbers", None), fields.value("text", "a text", None)
    if not isinstance(text, str | None):
        raise fields.error("text", f"is {kind(text)}; expected a text")
    return Drawn(
        text=text,
        score=fields.number("score", float("-inf"), float("inf"), None),
        choice=fields.one_of("choice", ("A", "B", "tie"), None),
        error=fields.text("error", None),
        seed=fields.whole("seed", 0, (1 << 64) - 1, None),
        seconds=fields.number("seconds", 0, float("inf"), None),
        is_swapped=fields.flag("is_swapped", False),
        scores=None if scores is None else tuple(scores),
    )
