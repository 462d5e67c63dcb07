"""Peak memory of a piece of work above what the process holds before it.

On a CPU: peak less present resident memory, as Linux counts it (VmHWM, VmRSS), after the C library has given back what
is free. So it counts everything that a machine must have, whoever allocates it; but nothing else may run in the
process. On a GPU: what torch has allocated.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SELF = Path("/proc/self")


class Peak:
    """Bytes; None where nobody counts them."""

    num_bytes: int | None = None


class PeakMeter:
    """From `start` on, until `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif _can_count():
            if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
                trim(0)
            (_SELF / "clear_refs").write_text("5")  # the peak is what is resident now
            self._before = _resident("VmRSS")

    def stop(self) -> int | None:
        """Bytes; None where nobody counts them."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return _resident("VmHWM") - self._before if _can_count() else None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    meter, peak = PeakMeter(device), Peak()
    meter.start()
    yield peak
    peak.num_bytes = meter.stop()


def _can_count() -> bool:
    return (_SELF / "clear_refs").exists()


def _resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", (_SELF / "status").read_text())[1]) * 1024
