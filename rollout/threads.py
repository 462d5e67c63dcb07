"""How the threads of torch's OpenMP wait for work; to be said before torch is imported."""

from __future__ import annotations

import os

# Tens of microseconds: a step of a small model is hundreds of operations, and waking a thread takes longer than most of
# them. Beyond that threads sleep, or processes that share cores would take them from one another.
_SPINS = "30000"


def wait_briefly() -> None:
    """Unless the environment says otherwise: spin for as long as the next operation of a step takes, then sleep."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
