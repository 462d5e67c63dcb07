"""A user's mistake is told once, however many processes run."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from rollout.mistakes import tell

PATIENCE_S = 30.0  # of a rank that lets another one tell what is wrong


def leave_it_to_rank_0(error: Exception) -> NoReturn:
    """Ends this rank after rank 0, which most likely meets the same mistake on its own and tells it.

    torchrun stops all processes as soon as one has left, so this one gives rank 0 time to speak, and is stopped then.
    If it is not, the mistake is its own, and it tells it.
    """
    time.sleep(PATIENCE_S)
    tell(error)
    raise SystemExit(1)


class Halt(Exception):
    """The run cannot go on, through no mistake of the program: one line tells why, all ranks end, exit status 1."""


def warn(line: str) -> None:
    print("warning:", " ".join(line.split()), file=sys.stderr, flush=True)


def end_at_once(status: int) -> NoReturn:
    """Ends the process without Python's own end, and without a word to its peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
