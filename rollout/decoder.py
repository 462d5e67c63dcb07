"""One decoder for rollout and training: the dense Qwen3 shape.

Attention and readout are handed in, because they alone differ by context: prefill, decode and training share every
other operation, so that the rollout's log-probabilities and the trainer's are one function of the same weights.

    B sequences   T positions   V vocabulary   D model width   F feed-forward width
    H query heads   K key/value heads   G = H / K   C head width
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(Protocol):
    """Causal attention of one layer, whatever the layout of keys and values."""

    def __call__(self, layer: int, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
        """Returns o_BTHC. Rotary embedding has been applied to q and k."""


Readout = Callable[[Tensor, Tensor], Any]  # (hidden_BTD after the final norm, head_VD) -> whatever the caller wants


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Shape of a Qwen3 decoder; field names follow `config.json` of Hugging Face directories."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 40_960

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "tie_word_embeddings" and not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be positive")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embedding")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DecoderConfig:
        """Reads `config.json` of a Hugging Face directory; refuses what this decoder would compute wrongly."""
        file = Path(path) / "config.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file; a model is a Hugging Face directory with config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{file}: not a JSON object")
        if raw.get("model_type") != "qwen3":
            raise ValueError(f"{file}: model_type: {raw.get('model_type')!r} is not supported; 'qwen3' is")
        # transformers 5 nests the rotary settings; version 4 wrote rope_theta and rope_scaling beside the rest.
        rope = raw.get("rope_scaling") or {}
        rope = {"rope_theta": raw.get("rope_theta"), "rope_type": rope.get("type", "default"), **rope}
        rope |= raw.get("rope_parameters") or {}
        for field, found, wanted in (
            ("rope_type", rope["rope_type"], "default"),
            ("hidden_act", raw.get("hidden_act", "silu"), "silu"),
            ("attention_bias", raw.get("attention_bias", False), False),
            ("use_sliding_window", raw.get("use_sliding_window", False), False),
            ("layer_types", sorted({*(raw.get("layer_types") or ()), "full_attention"}), ["full_attention"]),
        ):
            if found != wanted:
                raise ValueError(f"{file}: {field}: {found!r} is not supported; {wanted!r} is")
        values = {**raw, "rope_theta": rope["rope_theta"]}
        values.setdefault("tie_word_embeddings", False)
        found = {}
        for field in dataclasses.fields(cls):
            value = values.get(field.name)
            if value is None:
                raise ValueError(f"{file}: {field.name}: missing")
            # With postponed annotations a field's type is its name. Whole floats are written as integers by some.
            if type(value).__name__ != field.type and not (field.type == "float" and type(value) is int):
                raise ValueError(f"{file}: {field.name}: {value!r} is not of type {field.type}")
            found[field.name] = value
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def to_hf(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """`config.json` that `transformers` versions 4 and 5 both read as Qwen3."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "torch_dtype": str(dtype).removeprefix("torch."),
        }

    @property
    def num_parameters(self) -> int:
        attention = self.hidden_size * self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        norms = 2 * self.hidden_size + 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32 or better."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Not F.rms_norm: for bf16 input it multiplies by the weight before rounding, the published models after.
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rotary_tables(position_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos_BTC and sin_BTC of rotary position embedding (arXiv:2104.09864), float32, halves repeated."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_BT.device) / head_dim
    angle = position_BT[..., None].float() * theta**-exponent
    angle_BTC = torch.cat((angle, angle), dim=-1)
    return angle_BTC.cos(), angle_BTC.sin()


def apply_rotary(x_BTHC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
    low, high = x_BTHC.chunk(2, dim=-1)
    cos_BT1C, sin_BT1C = cos_BTC[:, :, None].to(x_BTHC.dtype), sin_BTC[:, :, None].to(x_BTHC.dtype)
    return x_BTHC * cos_BT1C + torch.cat((-high, low), dim=-1) * sin_BT1C


class SelfAttention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, C = config.hidden_size, config.head_dim
        self.layer, self.head_dim = layer, C
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=False)
        self.q_norm = RMSNorm(C, config.rms_norm_eps)
        self.k_norm = RMSNorm(C, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_BTC: Tensor, sin_BTC: Tensor, attend: Attention) -> Tensor:
        q_BTHC = self.q_norm(self.q_proj(x_BTD).unflatten(-1, (-1, self.head_dim)))
        k_BTKC = self.k_norm(self.k_proj(x_BTD).unflatten(-1, (-1, self.head_dim)))
        v_BTKC = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTHC, k_BTKC = apply_rotary(q_BTHC, cos_BTC, sin_BTC), apply_rotary(k_BTKC, cos_BTC, sin_BTC)
        return self.o_proj(attend(self.layer, q_BTHC, k_BTKC, v_BTKC).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, cos_BTC: Tensor, sin_BTC: Tensor, attend: Attention) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_BTC, sin_BTC, attend)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Qwen3 causal language model. Parameter names are those of Hugging Face less the `model.` prefix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tie_()

    def _tie_(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        # `to_empty` and moves between devices give each module a parameter of its own: a tied head would part.
        super()._apply(fn, recurse)
        self._tie_()
        return self

    def forward(self, token_BT: Tensor, position_BT: Tensor, attend: Attention, readout: Readout) -> Any:
        """Runs the stack and hands (hidden_BTD, head_VD) to `readout`.

        The readout runs inside `forward` so that a sharded model has its head gathered, and so that logits [B, T, V]
        exist only where somebody asks for them.

        Args:
            token_BT: int64 token ids.
            position_BT: int64 positions for the rotary embedding.
            attend: attention over these tokens and whatever came before them.
            readout: for example `last_logits`, or `kernels.linear_logprob` over the tokens of a loss.
        """
        x_BTD = self.embed_tokens(token_BT)
        cos_BTC, sin_BTC = rotary_tables(position_BT, self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTC, sin_BTC, attend)
        return readout(self.norm(x_BTD), self.lm_head.weight)


def causal_attention(layer: int, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
    """Every token sees itself and those before it in its row; right padding is seen by padding alone."""
    q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    o_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, is_causal=True, enable_gqa=True)
    return o_BHTC.transpose(1, 2)


def all_logits(hidden_BTD: Tensor, head_VD: Tensor) -> Tensor:
    """The readout that materialises logits [B, T, V]: for tests and short inputs."""
    return F.linear(hidden_BTD, head_VD)


@torch.no_grad()
def init_weights_(decoder: Decoder, seed: int, std: float = 0.02) -> Decoder:
    """Draws every matrix from N(0, std²), residual outputs scaled by 1/√(2 layers) (GPT-2's rule); norms are 1."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = std / (2 * decoder.config.num_hidden_layers) ** 0.5
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (residual_std if is_residual else std))
    return decoder
