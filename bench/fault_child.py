"""Starts training runs as forks of itself, so that a run need not import torch first, and notes what they are doing.

One JSON object a line: {"arguments": […], "folder": DIR, "kill": null or {"phase", "occurrence", "after_s"}} in, and
when it has ended {"status"} out. A run writes DIR/notes, lines of `SECONDS +PHASE` and `SECONDS -PHASE` that outlive a
kill, and DIR/log.

A kill that is aimed at a phase comes from within; of no phase (null), after so many seconds from without. Both are
SIGKILL and spare nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trainer.learner
import trainer.run
import trainer.stage
from trainer.checkpoint_writer import CheckpointWriter
from trainer.held_out import HeldOut
from trainer.main import main
from trainer.run_folder import RunFolder, Stopwatch
from trainer.stage_log import StageLog

AT_ONCE_S = 0.002  # a timer is no more exact than that


class Notes:
    """What a run is doing, in a file; and a kill when it does what was named."""

    def __init__(self, file: Path, kill: dict | None) -> None:
        self._file, self._kill, self._start = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), kill, time.time()
        self._entered: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._write(f"+{name}")
        self._entered[name] += 1
        if self._kill and (name, self._entered[name]) == (self._kill["phase"], self._kill["occurrence"]):
            if self._kill["after_s"] < AT_ONCE_S:
                _die()
            threading.Timer(self._kill["after_s"], _die).start()
        try:
            yield
        finally:
            self._write(f"-{name}")

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        function = getattr(owner, attribute)

        def noted(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, noted)

    def _write(self, text: str) -> None:
        os.write(self._file, f"{time.time() - self._start:.4f} {text}\n".encode())


def watch(notes: Notes) -> None:
    """Makes the parts of a run tell of themselves."""
    measure = Stopwatch.phase

    @contextmanager
    def phase(watch: Stopwatch, name: str) -> Iterator[None]:
        with notes.phase(name.removesuffix("_s")), measure(watch, name):
            yield

    Stopwatch.phase = phase
    parts: list[tuple[object, str, str]] = [
        (trainer.run, "load_inputs", "reading inputs"),
        (trainer.run, "make_model", "making the model"),
        (trainer.learner, "sharded_decoder", "loading weights"),
        (HeldOut, "measure", "held-out"),
        (trainer.stage, "restore_", "restoring"),
        (StageLog, "write", "log"),
        (RunFolder, "sync", "log to disk"),
        (CheckpointWriter, "_write", "writing"),
        (trainer.run, "save_decoder", "export"),
        (trainer.run, "_report", "report"),
    ]
    for owner, attribute, name in parts:
        notes.wrap(owner, attribute, name)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run(arguments: list[str], folder: Path, kill: dict | None) -> int:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    notes = Notes(folder / "notes", kill)
    watch(notes)
    with notes.phase("the run"):
        return main(arguments)


def serve(tell: Callable[[dict], None]) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _run(job["arguments"], Path(job["folder"]), job["kill"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if job["kill"] and job["kill"]["phase"] is None:
            time.sleep(job["kill"]["after_s"])
            os.kill(pid, signal.SIGKILL)  # its number is its own until it is waited for
        tell({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


if __name__ == "__main__":
    serve(lambda record: print(json.dumps(record), flush=True))
