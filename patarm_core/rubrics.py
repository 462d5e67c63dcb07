"""Primary rubrics: the criteria that are fixed per task (PaTaRM, sec. 3.2 and app. B.2)."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

_FIELDS = ("name", "question", "bands")


@dataclass(frozen=True)
class Rubric:
    """One criterion. `bands` are lines such as "8-10: Fully addresses the question.", best first; may be empty."""

    name: str
    question: str
    bands: tuple[str, ...] = ()


@dataclass(frozen=True)
class RubricBook:
    """The primary rubrics of every task."""

    rubrics: Mapping[str, tuple[Rubric, ...]]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.rubrics)

    def for_task(self, task: str) -> tuple[Rubric, ...]:
        """The rubrics of a task; ValueError if the book has none."""
        if task not in self.rubrics:
            raise ValueError(unknown_task(task, self.tasks))
        return self.rubrics[task]


def unknown_task(task: str, tasks: Iterable[str]) -> str:
    """The one line to show for a task that is not among `tasks`."""
    known = list(tasks)
    nearest = difflib.get_close_matches(task, known, n=1, cutoff=0)
    hint = f" (nearest: {nearest[0]!r})" if nearest else ""
    return f"unknown task {task!r}; known tasks are {', '.join(known)}{hint}"


def parse_rubrics(text: str, name: str) -> RubricBook:
    """Reads a book in the form of `rubrics.toml`.

    Args:
        text: TOML with an array of tables per task, each with name, question and (optional) bands.
        name: what to call the text in errors, usually its file name.

    Raises:
        ValueError: one line with the name, the task, the rubric and the field that is wrong.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name}: not TOML: {error}") from None
    if not data:
        raise ValueError(f"{name}: no rubrics; write at least one [[task]] table")
    return RubricBook({task: _parse_task(entries, task, f"{name}: {task}") for task, entries in data.items()})


def default_rubrics() -> RubricBook:
    """The book that comes with this package."""
    file = resources.files("patarm_core").joinpath("rubrics.toml")
    return parse_rubrics(file.read_text(encoding="utf-8"), file.name)


def render(rubrics: Sequence[Rubric], questions: bool = True) -> str:
    """The rubrics as the judge reads them.

        Usefulness:
          Does the response …?
          - 8-10: Fully addresses …

    A rubric without bands is one line, `Usefulness: Does the response …?`. `questions=False` leaves out the
    question of those that have bands, which is the form the published checkpoints were shown with.
    """
    lines = []
    for rubric in rubrics:
        if not rubric.bands:
            lines.append(f"{rubric.name}: {rubric.question}")
            continue
        lines.append(f"{rubric.name}:")
        if questions:
            lines.append(f"  {rubric.question}")
        lines += [f"  - {band}" for band in rubric.bands]
    return "\n".join(lines)


def _parse_task(entries: object, task: str, where: str) -> tuple[Rubric, ...]:
    if not re.fullmatch(r"[\w-]+", task):
        raise ValueError(f"{where}: a task name has letters, digits, _ and - only")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: expected one or more [[{task}]] tables")
    rubrics = tuple(_parse_rubric(entry, f"{where}: rubric {i}") for i, entry in enumerate(entries, start=1))
    names = [rubric.name for rubric in rubrics]
    for i, rubric_name in enumerate(names, start=1):
        if rubric_name in names[: i - 1]:
            raise ValueError(f"{where}: rubric {i}: name: {rubric_name!r} is used twice in this task")
    return rubrics


def _parse_rubric(entry: dict[str, object], where: str) -> Rubric:
    for key in entry:
        if key not in _FIELDS:
            nearest = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0)[0]
            raise ValueError(f"{where}: {key}: unknown field; fields are {', '.join(_FIELDS)} (nearest: {nearest!r})")
    for key in ("name", "question"):
        if key not in entry:
            raise ValueError(f"{where}: {key}: missing; expected one line of text")
        _check_line(entry[key], f"{where}: {key}")
    bands = entry.get("bands", [])
    if not isinstance(bands, list):
        raise ValueError(f"{where}: bands: expected a list of lines, got {bands!r}")
    for band in bands:
        _check_line(band, f"{where}: bands")
    return Rubric(entry["name"], entry["question"], tuple(bands))


def _check_line(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1:
        raise ValueError(f"{where}: expected one line of text, got {value!r}")
