"""How the threads of torch's OpenMP wait for work; to be said before torch is imported."""

from __future__ import annotations

import os

# Tens of microseconds: a step of a small model is hundreds of operations, and waking a thread takes longer than most of
# them. Beyond that threads sleep: with a busy neighbour on the machine and no end to it, a step took 5 s, not 0.3 s.
_SPINS = "30000"


def wait_briefly() -> None:
    """Unless the environment says otherwise: spin for as long as the next operation of a step takes, then sleep."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
