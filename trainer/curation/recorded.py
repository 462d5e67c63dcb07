"""Judgments that were made elsewhere, in place of a judge: JSON lines, one for each pair.

    {"source": "rmb", "id": "12", "chosen": [8, 7.5, null], "rejected": [6, "<think>… <answer>5</answer>", 7]}
    {"source": "rmb", "id": "12", "a": "rejected", "choices": ["B", "<think>… <answer>B</answer>"]}
    {"source": "rmb", "id": "12", "replies": ["<answer>chat</answer>"]}

Scores of each response, or judgments as they were written; of a pairwise judge what it chose, and which response it
read as A; of a classification what it said. null: nothing that could be read. A pair that is not in the file is one
about which the judge never answered; one that is there twice is a mistake.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.data.files import read_rows
from eval.judges.judge import Drawn, Mode, Question
from patarm_core.fields import Fields, show
from patarm_core.judgment import read_answer
from patarm_core.voting import unswap
from trainer.curation.stage_files import question_id

NOTHING = Drawn(text="", error="unparsed: recorded as none")
ABSENT = Drawn(error="unrecorded: the file has no more judgments of it")


class RecordedJudge:
    """Questions are those of trainer/curation/judging.py, whose ids name source, id and side."""

    def __init__(self, file: Path, mode: Mode) -> None:
        """
        Raises:
            ValueError: one line with file, line and field.
        """
        self.name, self.mode = f"recorded in {file.name}", mode
        self.fingerprint = {"fingerprint": "recorded " + hashlib.sha256(file.read_bytes()).hexdigest()[:16]}
        self._drawn: dict[str, list[Drawn]] = {}
        read_rows(file, self._take)

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        for index, question in enumerate(questions):
            drawn = self._drawn.get(question.id, [])[:votes]
            yield index, drawn + [ABSENT] * (votes - len(drawn))

    def _take(self, row: Fields) -> None:
        source, id = row.text("source"), row.label("id")
        for about, drawn in _entries(row).items():
            if self._drawn.setdefault(question_id(source, id, about), drawn) is not drawn:
                raise row.error("id", f"{id!r} of source {source!r} is there already; expected one row for each pair")


def _entries(row: Fields) -> dict[str, list[Drawn]]:
    """By what they are about, as in `question_id`."""
    found = {}
    for side in ("chosen", "rejected"):
        if side in row.data:
            found[side] = [_score(row, side, one) for one in _list(row, side)]
    if "choices" in row.data:
        is_swapped = row.one_of("a", ("chosen", "rejected")) == "rejected"
        found["pair"] = [_choice(row, one, is_swapped) for one in _list(row, "choices")]
    if "replies" in row.data:
        found["task"] = [_reply(row, one) for one in _list(row, "replies")]
    if not found:
        raise row.error("chosen", "missing; expected scores of chosen and rejected, choices, or replies")
    return found


def _list(row: Fields, field: str) -> list:
    value = row.value(field, "a list")
    if not isinstance(value, list):
        raise row.error(field, "expected a list")
    return value


def _score(row: Fields, field: str, value: object) -> Drawn:
    if value is None:
        return NOTHING
    if isinstance(value, str):
        score = read_answer(value, "score")
        return Drawn(text=value, score=None if score is None else float(score), error=_why(score))
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise row.error(field, f"holds {show(value)}; expected a list of finite numbers, texts and nulls")
    return Drawn(score=float(value))


def _choice(row: Fields, value: object, is_swapped: bool) -> Drawn:
    if value is None:
        return NOTHING
    if not isinstance(value, str):
        raise row.error("choices", f"holds {show(value)}; expected a list of texts and nulls")
    choice = value if value in ("A", "B") else read_answer(value, "choice")
    return Drawn(text=value, choice=unswap(choice, is_swapped), error=_why(choice), is_swapped=is_swapped)


def _reply(row: Fields, value: object) -> Drawn:
    """Of a classification: the stage reads the text."""
    if value is None:
        return NOTHING
    if not isinstance(value, str):
        raise row.error("replies", f"holds {show(value)}; expected a list of texts and nulls")
    return Drawn(text=value, score=0.0)


def _why(answer: object) -> str | None:
    return "unparsed: no <answer>" if answer is None else None
