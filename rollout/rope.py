"""Rotary position embedding (arXiv:2104.09864), and the scalings that stretch it over longer texts.

All of them turn a key by its own position alone, so that a cached key stays right however long its text grows.
("Dynamic NTK" and LongRoPE are not of that kind: the length of the text changes every angle.)

    B sequences   T positions   C head width   W = C / 2 planes of rotation
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


def check_positive(config: object) -> None:
    """Every number of a dataclass must be positive and finite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        # With postponed annotations a field's type is its text.
        if field.type in ("int", "float", "float | None") and value is not None and not 0 < value < math.inf:
            raise ValueError(f"{field.name}={value} must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRope:
    """Position interpolation (arXiv:2306.15595): every position divided by `factor`."""

    rope_type: ClassVar[str] = "linear"
    attention_scale: ClassVar[float] = 1.0
    factor: float

    def __post_init__(self) -> None:
        check_positive(self)

    def frequencies(self, period_W: Tensor, theta: float) -> Tensor:
        return 1.0 / period_W / self.factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Rope:
    """Llama 3.1's: slow planes are slowed by `factor`, fast ones kept, those between blended.

    Slow and fast are told by the number of turns over the length the model was first trained on.
    """

    rope_type: ClassVar[str] = "llama3"
    attention_scale: ClassVar[float] = 1.0
    factor: float
    low_freq_factor: float  # turns up to which a plane is slow
    high_freq_factor: float  # turns from which it is fast
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        check_positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be below high_freq_factor={self.high_freq_factor}"
            )

    def frequencies(self, period_W: Tensor, theta: float) -> Tensor:
        low, high, length = self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings
        frequency_W = 1.0 / period_W
        wavelength_W = 2 * math.pi / frequency_W
        blend_W = (length / wavelength_W - low) / (high - low)
        blended_W = (1 - blend_W) * frequency_W / self.factor + blend_W * frequency_W
        scaled_W = torch.where(wavelength_W > length / low, frequency_W / self.factor, blended_W)
        return torch.where(wavelength_W < length / high, frequency_W, scaled_W)


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnRope:
    """YaRN (arXiv:2309.00071): a ramp over the planes from kept to slowed by `factor`, and warmer attention."""

    rope_type: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0  # turns over the original length at which the ramp begins
    beta_slow: float = 1.0  # and ends
    truncate: bool = True  # the ramp begins and ends at whole planes
    attention_factor: float | None = None  # of queries and keys alike; None: the paper's, from `factor`
    mscale: float | None = None  # both given: attention_factor is a ratio of two such
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        check_positive(self)

    @property
    def attention_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._warmth(self.mscale) / self._warmth(self.mscale_all_dim)
        return self._warmth(1.0)

    def frequencies(self, period_W: Tensor, theta: float) -> Tensor:
        W = len(period_W)
        low, high = (self._plane(turns, W, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * W - 1)
        if low == high:
            high += 0.001  # a step is the steepest ramp
        plane_W = torch.arange(W, dtype=torch.float32, device=period_W.device)
        kept_W = 1 - ((plane_W - low) / (high - low)).clamp(0, 1)
        return 1.0 / (self.factor * period_W) * (1 - kept_W) + 1.0 / period_W * kept_W

    def _plane(self, turns: float, W: int, theta: float) -> float:
        """The plane, not a whole number, that makes so many turns over the original length."""
        return 2 * W * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def _warmth(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


RopeScaling = LinearRope | Llama3Rope | YarnRope
SCALINGS = {scaling.rope_type: scaling for scaling in (LinearRope, Llama3Rope, YarnRope)}


def rotary_tables(
    position_BT: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos_BTC and sin_BTC, float32, halves repeated."""
    exponent_W = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_BT.device) / head_dim
    # In the order of the published models' code: far into a text the last bit of a frequency shows.
    period_W = theta**exponent_W  # positions per radian
    frequency_W = 1.0 / period_W if scaling is None else scaling.frequencies(period_W, theta)
    angle_BTW = position_BT[..., None].float() * frequency_W
    angle_BTC = torch.cat((angle_BTW, angle_BTW), dim=-1)
    cos_BTC, sin_BTC = angle_BTC.cos(), angle_BTC.sin()
    if scaling is None:
        return cos_BTC, sin_BTC
    return cos_BTC * scaling.attention_scale, sin_BTC * scaling.attention_scale
