"""Text files that are there as a whole or not at all, and logs of one JSON object a line. Imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from patarm_core.fields import read_object


@contextmanager
def naming(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """What fails to be written inside is an OSError that names it, as a full disk's own error does not.

    Args:
        errors: what fails to be written is told by, beside OSError.
    """
    try:
        yield
    except (OSError, *errors) as error:
        raise OSError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


def record_line(record: Mapping[str, object]) -> str:
    """One line of strict JSON: a number that is not finite becomes null."""
    strict = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(strict, ensure_ascii=False, allow_nan=False) + "\n"


def read_record(file: Path) -> dict:
    """The JSON object that a file holds; an empty one if there is no such file.

    Raises:
        ValueError: one line with the file, if it holds anything else.
    """
    try:
        return read_object(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_records(file: Path) -> list[dict]:
    """The lines of a log; none if there is no such file.

    A line that a kill cut short, perhaps within a character, has no newline and is dropped.

    Raises:
        ValueError: one line with file and line, if any other is not a JSON object.
    """
    if not file.is_file():
        return []
    records = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not a JSON object: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{file}:{number}: not a JSON object: {line[:40]!r}")
        records.append(record)
    return records
