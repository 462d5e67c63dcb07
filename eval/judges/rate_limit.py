"""When requests may be sent: so many a minute, and none while the server has asked for a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """Shared by threads. Requests are spread evenly: a server that counts by the second sees no burst."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if per_minute is not None and not 0 < per_minute < float("inf"):
            raise ValueError(f"--requests-per-minute {per_minute}: must be above 0")
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._next = clock()

    def delay_s(self) -> float:
        """Takes the next place and says in how many seconds it is."""
        with self._lock:
            now = self._clock()
            place = max(now, self._next)
            self._next = place + self._gap_s
            return place - now

    def pause(self, seconds: float) -> None:
        """No places for that long, for anybody."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
