"""A user's mistake is told once, however many processes run."""

from __future__ import annotations

import time
from typing import NoReturn

_PATIENCE_S = 30.0


def leave_it_to_rank_0() -> NoReturn:
    """Ends this rank after rank 0, which meets the same mistake on its own and tells it.

    torchrun stops all processes as soon as one has left, so this one gives rank 0 time to speak; it is stopped then.
    """
    time.sleep(_PATIENCE_S)
    raise SystemExit(1)
