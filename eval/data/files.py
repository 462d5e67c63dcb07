"""Rows of local files: a JSON list, JSON lines or parquet. What is wrong is told with file, place and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from patarm_core.fields import Fields, kind, read_object
from rollout.contexts import read_text

Made = TypeVar("Made")
SUFFIXES = (".json", ".jsonl", ".parquet")


def find_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The file itself, or those of a folder and its folders, by name.

    Raises:
        ValueError: there is nothing there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
    if not files:
        raise ValueError(f"{path}: the folder holds no file that ends in {', '.join(suffixes)}")
    return files


def read_rows(file: Path, make: Callable[[Fields], Made]) -> list[Made]:
    """`make` of every row.

    Raises:
        ValueError: one line, `FILE:LINE: field: …`, or `FILE[INDEX]: field: …` where there are no lines.
    """
    made = []
    for place, row in _rows(file):
        try:
            made.append(make(Fields(row() if callable(row) else row)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not made:
        raise ValueError(f"{file}: holds no rows")
    return made


def placed_rows(file: Path) -> list[tuple[str, dict]]:
    """Every row as it stands, with its place.

    Raises:
        ValueError: as `read_rows`.
    """
    places = [place for place, _ in _rows(file)]
    return list(zip(places, read_rows(file, lambda fields: fields.data), strict=True))


def _rows(file: Path) -> Iterator[tuple[str, dict | Callable[[], dict]]]:
    """Each row and its place; a line is parsed by whoever reads it, so that errors name it."""
    if file.suffix == ".parquet":
        for index, row in enumerate(parquet_rows(file)):
            yield f"{file}[{index}]", row
    elif file.suffix == ".json":
        for index, row in enumerate(json_list(file)):
            place = f"{file}[{index}]"
            if not isinstance(row, dict):
                raise ValueError(f"{place}: is {kind(row)}; expected an object")
            yield place, row
    else:
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if line.strip():
                yield f"{file}:{number}", lambda line=line: read_object(line)


def json_list(file: Path) -> list:
    """The entries of a file that holds one list; a ValueError of one line otherwise."""
    try:
        rows = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}:{error.lineno}: not JSON: {error.msg} at column {error.colno}; expected a list of objects "
            "(is the file cut?)"
        ) from None
    except (ValueError, RecursionError) as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: not JSON: too large a value; expected a list of objects") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: is {kind(rows)}; expected a list of objects")
    return rows


def parquet_rows(file: Path) -> Iterator[dict]:
    """Its rows; a ValueError of one line where it cannot be read, or pyarrow is not there."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file}: not parquet, or cut: {' '.join(str(error).split())[:200]}") from None
