"""A file of JSON lines that appears whole.

Lines go to FILE.partial as they are finished, and FILE.partial.settings says what made them. The same call goes on
after the last complete line of a run that was interrupted; FILE gets its name when its last line is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm


def check_free(file: Path, settings: dict) -> None:
    """Raises ValueError where `write_lines` could not go on, before anything is loaded or computed for it."""
    if file.exists():
        raise ValueError(f"{file}: exists already; name a new file")
    aside, note = _aside(file)
    if aside.exists():
        try:
            begun = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{aside}: there is no {note.name} that says what made it; remove it") from None
        check_same(aside, begun, settings, "remove it")


def check_same(where: Path, begun: dict, settings: dict, or_else: str) -> None:
    """Raises ValueError, with the first key that differs, where something was begun with other settings."""
    for key in sorted(begun.keys() | settings.keys()):
        if begun.get(key) != settings.get(key):
            was, now = (json.dumps(value.get(key)) for value in (begun, settings))
            raise ValueError(f"{where}: begun with {key} {was}, now {now}; go on as it was begun, or {or_else}")


def write_lines(
    file: Path, settings: dict, num_lines: int, records_from: Callable[[int], Iterable[dict]], label: str
) -> None:
    """Writes `num_lines` records, one a line; `records_from(k)` gives those from number k on.

    Args:
        settings: all that the records depend on, JSON-ready; a run goes on only with equal ones.
        label: of the progress bar.
    """
    check_free(file, settings)
    aside, note = _aside(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not aside.exists():
        note.write_text(json.dumps(settings), encoding="utf-8")
    with open(aside, "ab") as out:
        num_done = _cut_to_whole_lines(aside)
        out.seek(0, os.SEEK_END)
        with tqdm(total=num_lines, initial=num_done, desc=label, unit="row") as bar:
            for record in records_from(num_done):
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                out.flush()
                bar.update()
    os.replace(aside, file)
    note.unlink()


def _aside(file: Path) -> tuple[Path, Path]:
    return file.with_name(file.name + ".partial"), file.with_name(file.name + ".partial.settings")


def _cut_to_whole_lines(file: Path) -> int:
    """Drops the beginning of a line that was not finished; returns the number of lines."""
    num_lines = num_bytes = 0
    with open(file, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                num_lines += 1
                num_bytes += len(line)
    os.truncate(file, num_bytes)
    return num_lines
