"""What a step draws, on its way to the host: one copy, for which nobody waits before the numbers are wanted.

B samples that draw, and rows that fill up behind them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.settings import Draw
from rollout.steps import Sample, Step


@dataclass(frozen=True, slots=True)
class Drawn:
    """On the host: token ids int64, the rest float32, in nats."""

    token_B: np.ndarray
    logprob_B: np.ndarray
    drawn_logprob_B: np.ndarray
    entropy_B: np.ndarray

    @classmethod
    def nothing(cls) -> Drawn:
        return cls(np.zeros(0, dtype=np.int64), *np.zeros((3, 0), dtype=np.float32))


def packed(draw: Draw) -> Tensor:
    """int32 [5B], the bits of `Drawn`'s columns one after the other."""
    columns = draw.token_B, draw.logprob_B, draw.drawn_logprob_B, draw.entropy_B
    return torch.cat([x_B.view(torch.int32) for x_B in columns])


class Readback:
    """A packed draw that is being copied to the host; what it was copied from may be overwritten by later work."""

    def __init__(self, packed: Tensor) -> None:
        self._bits, self._is_there = packed, None
        if packed.is_cuda:
            # Pinned memory is taken from torch's cache, which gives it to nobody else before the copy has ended.
            self._bits = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._bits.copy_(packed, non_blocking=True)
            self._is_there = torch.cuda.Event()
            self._is_there.record(torch.cuda.current_stream(packed.device))

    def wait(self, num: int) -> Drawn:
        """The first `num` rows."""
        if self._is_there is not None:
            self._is_there.synchronize()
        bits = self._bits.numpy()
        B = len(bits) // 5
        return Drawn(bits[: 2 * B].view(np.int64)[:num], *bits[2 * B :].view(np.float32).reshape(3, B)[:, :num])


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was launched.

    Attributes:
        samples: those that draw in it, as `Scheduler.commit` returns them.
        draw: of these samples.
        token_B: what a replayed step draws, on the device until the next step is launched; else None.
    """

    step: Step
    samples: Sequence[Sample]
    draw: Drawn | Readback
    token_B: Tensor | None = None

    def wait(self) -> Drawn:
        """Raises FloatingPointError if a sample that goes on has no distribution to draw from."""
        drawn = self.draw.wait(len(self.samples)) if isinstance(self.draw, Readback) else self.draw
        if any(self.samples[b].row >= 0 for b in np.flatnonzero(drawn.token_B < 0)):
            raise FloatingPointError(
                "logits are not finite: the model's weights, or what it made of a context, overflow"
            )
        return drawn
