"""Rows of input files with their places. What is wrong with a row is told with it and stops nothing."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from eval.data.files import json_list, parquet_rows
from patarm_core.curation.sources import Refusal
from patarm_core.fields import kind, read_object

SUFFIXES = (".jsonl", ".json", ".parquet", ".gz")
Found = tuple[int, str, dict | Refusal]  # (line from 1, the row as it is written, the object in it)


def input_rows(file: Path) -> Iterator[Found]:
    """Of JSON lines (gzipped or not), a JSON list, or parquet.

    Bytes that are no UTF-8 are told as `\\xff`.

    Raises:
        ValueError: one line; the file as a whole cannot be read.
    """
    if file.suffix in (".parquet", ".json"):
        rows = parquet_rows(file) if file.suffix == ".parquet" else json_list(file)
        for number, row in enumerate(rows, start=1):
            raw = json.dumps(row, ensure_ascii=True, default=repr)
            is_object = isinstance(row, dict)
            yield number, raw, row if is_object else Refusal("not_json", f"is {kind(row)}; expected an object")
        return
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield number, line.decode(errors="backslashreplace").rstrip("\r\n"), _object(line)


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _object(line: bytes) -> dict | Refusal:
    try:
        return read_object(line)
    except ValueError as error:
        return Refusal("not_utf8" if "UTF-8" in str(error) else "not_json", str(error))
