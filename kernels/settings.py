"""What a draw is asked for, per row, and what comes of it: shared by `sample` and `linear_sample`.

B rows   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.draw import MAX_VOCABULARY, least_kept, scale_of
from kernels.upload import upload

MAX_TEMPERATURE = 1e30

Words = np.ndarray | Tensor | int
PerRow = float | np.ndarray | Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """What `sample` returns: token_B int64; the rest float32 [B], in nats.

    Attributes:
        token_B: the tokens.
        logprob_B: of the token under softmax(logits), whatever the temperature and the filters: the policy trained.
        drawn_logprob_B: of the token under the distribution it was drawn from: tempered, filtered, renormalised.
        lse_B: log-sum-exp of the logits.
        entropy_B: of softmax(logits).
    """

    token_B: Tensor
    logprob_B: Tensor
    drawn_logprob_B: Tensor
    lse_B: Tensor
    entropy_B: Tensor

    @classmethod
    def empty(cls, B: int, device: torch.device) -> Draw:
        return cls(
            torch.empty(B, dtype=torch.int64, device=device),
            *(torch.empty(B, dtype=torch.float32, device=device) for _ in range(4)),
        )

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """As kernels take them."""
        return self.token_B, self.logprob_B, self.drawn_logprob_B, self.lse_B, self.entropy_B


@dataclass(frozen=True, slots=True)
class Noise:
    """What names a draw: 64 bits of seed, and sample and position below 2^32, [B] each.

    uint64 arrays; or int64 tensors of the same bits that lie on a GPU, and stay there.
    """

    seed_B: np.ndarray | Tensor
    sample_B: np.ndarray | Tensor
    position_B: np.ndarray | Tensor

    @classmethod
    def of(cls, B: int, seed_B: Words, sample_B: Words, position_B: Words, device: torch.device) -> Noise:
        """From arrays, tensors, or one number for all rows. What lies on a GPU is not looked at."""
        words = []
        for name, x in (("seed_B", seed_B), ("sample_B", sample_B), ("position_B", position_B)):
            is_far = isinstance(x, Tensor) and x.device.type != "cpu"
            if is_far and x.device != device:
                raise ValueError(f"{name} is on {x.device}, but the rows to draw on {device}")
            if isinstance(x, int) and not 0 <= x < 1 << 64:
                raise ValueError(f"{name} must lie in [0, 2^64), got {x}")
            x = x if is_far else np.asarray(x)
            is_integer = not (x.is_floating_point() or x.is_complex()) if is_far else x.dtype.kind in "iu"
            if not is_integer or tuple(x.shape) not in ((), (B,)):
                raise ValueError(f"{name} must be integers, one or {B}, got {x.dtype} of shape {tuple(x.shape)}")
            if not is_far:
                x = np.broadcast_to(x.astype(np.uint64), (B,))
                if name != "seed_B" and B and int(x.max()) >> 32:
                    raise ValueError(f"{name} must lie in [0, 2^32), got {x.astype(np.int64).tolist()}")
            words.append(x)
        return cls(*words)

    def rows(self, some: slice) -> Noise:
        return Noise(*(x_B[some] for x_B in self.words))

    @property
    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `draw.uniforms` takes them."""
        return self.seed_B, self.sample_B, self.position_B

    def tensors(self, B: int, device: torch.device) -> list[Tensor]:
        """int64 and twice int32, of the same bits, on the device."""
        dtypes = (torch.int64, torch.int32, torch.int32)
        return [
            x.to(device, dtype).expand(B).contiguous() if isinstance(x, Tensor) else uploaded(x, dtype, device)
            for x, dtype in zip(self.words, dtypes, strict=True)
        ]


def uploaded(x_B: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An array as a tensor on a device: filled in there if its entries are equal, else copied without waiting."""
    x_B = np.array(x_B)
    if x_B.dtype == np.uint64:
        x_B = x_B.view(np.int64) if dtype == torch.int64 else x_B.astype(np.uint32).view(np.int32)
    if len(x_B) and (x_B == x_B[0]).all():
        return torch.full((len(x_B),), x_B[0].item(), dtype=dtype, device=device)
    return upload(x_B, device).to(dtype)


def check_rows(name: str, x_BX: Tensor, V: int) -> None:
    """Raises ValueError for a device that nobody draws on, or a vocabulary that the draw has no room for."""
    if x_BX.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on a CPU or a CUDA device, got {x_BX.device}")
    if not 0 < V <= MAX_VOCABULARY:
        raise ValueError(f"{name}: the vocabulary must have 1 to {MAX_VOCABULARY} tokens, got V = {V}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Temperature and filters of each row."""

    temperature_B: np.ndarray  # float64; 0: greedy
    top_k_B: np.ndarray  # int64
    top_p_B: np.ndarray  # float64
    min_p_B: np.ndarray  # float64

    @classmethod
    def of(cls, B: int, temperature: PerRow, top_k: PerRow, top_p: PerRow, min_p: PerRow) -> Settings:
        rows = []
        for name, x, dtype, low, high, right in (
            ("temperature", temperature, np.float64, 0, MAX_TEMPERATURE, "in [0, 1e30] (0 is greedy)"),
            ("top_k", top_k, np.int64, 0, 2**62, "at least 0 (0 keeps all tokens)"),
            ("top_p", top_p, np.float64, 5e-324, 1, "in (0, 1]"),
            ("min_p", min_p, np.float64, 0, 1, "in [0, 1]"),
        ):
            given = x
            if isinstance(x, Tensor):
                if x.is_meta:
                    raise ValueError(f"{name} must be on a CPU or a CUDA device, got meta")
                x = x.detach().cpu()
                x = (x.double() if x.is_floating_point() else x).numpy()
            x = np.asarray(x)
            kinds, what = ("iu", "integer") if dtype is np.int64 else ("iuf", "number")
            if x.dtype.kind not in kinds or x.shape not in ((), (B,)):
                got = given if x.dtype == object else f"{x.dtype} of shape {x.shape}"
                raise ValueError(f"{name} must be one {what} or {B} of them, got {got}")
            if not ((x >= low) & (x <= high)).all():
                raise ValueError(f"{name} must be {right}, got {x.tolist()}")
            rows.append(np.broadcast_to(x.astype(dtype), (B,)))
        return cls(*rows)

    def rows(self, some: slice) -> Settings:
        return Settings(self.temperature_B[some], self.top_k_B[some], self.top_p_B[some], self.min_p_B[some])

    @property
    def scale_B(self) -> np.ndarray:
        return scale_of(self.temperature_B)

    @property
    def is_greedy_B(self) -> np.ndarray:
        return self.temperature_B == 0

    @property
    def is_filtered_B(self) -> np.ndarray:
        return ((self.top_k_B > 0) | (self.top_p_B < 1) | (self.min_p_B > 0)) & ~self.is_greedy_B

    @property
    def is_plain_B(self) -> np.ndarray:
        """Which draws are from softmax(logits) itself."""
        return (self.temperature_B == 1) & ~self.is_filtered_B

    def floors(self, logits_BV: np.ndarray) -> np.ndarray:
        """The least logit that each row keeps, float32 [B]; -inf where there is no filter."""
        floor_B = np.full(len(logits_BV), -np.inf, dtype=np.float32)
        some = np.flatnonzero(self.is_filtered_B)
        if len(some):
            floor_B[some] = least_kept(
                logits_BV[some], self.scale_B[some], self.top_k_B[some], self.top_p_B[some], self.min_p_B[some]
            )
        return floor_B
