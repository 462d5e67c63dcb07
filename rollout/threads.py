"""How the threads of torch's OpenMP wait for work. Imports no torch: it must be said before that is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")

# Tens of microseconds: a step of a small model is hundreds of operations, and waking a thread takes longer than most of
# them. Beyond that threads sleep: with a busy neighbour on the machine and no end to it, a step took 5 s, not 0.3 s.
_SPINS = "30000"


def wait_briefly() -> None:
    """Unless the environment says otherwise: spin for as long as the next operation of a step takes, then sleep."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def made_aside(make: Callable[[], Made]) -> Made:
    """What `make` returns, made in a thread that has ended by then: for what another thread is to compute with.

    A thread that has run a parallel operation keeps OpenMP threads of its own until it ends. With more of all these
    than cores libgomp no longer spins: beside the thread that had loaded its model, an engine drew half the tokens.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
