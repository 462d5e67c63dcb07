"""One decoder for rollout and training: dense Qwen3, Qwen2, Llama and Mistral, with a language or a scalar head.

Attention and readout are handed in, because they alone differ by context: prefill, decode and training share every
other operation, so that the rollout's log-probabilities and the trainer's are one function of the same weights.

    B sequences   T positions   V vocabulary   D model width   F feed-forward width
    H query heads   K key/value heads   G = H / K   C head width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kernels.fused import add_rms_norm, norm_rotary, rms_norm, swiglu
from kernels.matmul import lay_side_by_side_, linear, linears
from rollout.families import DecoderConfig
from rollout.rope import rotary_tables


class Attention(Protocol):
    """Causal attention of one layer, whatever the layout of keys and values."""

    def __call__(self, layer: int, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
        """Returns o_BTHC. Rotary embedding has been applied to q and k."""


# (hidden_BTD after the final norm, head_VD or, of a scalar model, head_1D) -> whatever the caller wants
Readout = Callable[[Tensor, Tensor], Any]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32 or better."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        """The norm of x + delta."""
        return self.add(x, delta)[1]

    def add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + delta, the norm of that), of x alone if delta is None."""
        if delta is None:
            return x, rms_norm(x, self.weight, self.eps)
        return add_rms_norm(x, delta, self.weight, self.eps)


class Linear(nn.Linear):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return linear(x_BTD, self.weight, self.bias)


def _products(x_BTD: Tensor, *layers: Linear) -> Sequence[Tensor]:
    """Of each layer; in one product wherever that can be, which takes less time than each for itself."""
    biases = None if layers[0].bias is None else [layer.bias for layer in layers]
    whole = linears(x_BTD, [layer.weight for layer in layers], biases)
    if whole is None:
        return [layer(x_BTD) for layer in layers]
    return whole.split([layer.out_features for layer in layers], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, C = config.hidden_size, config.head_dim
        self.layer, self.head_dim = layer, C
        has_bias = config.family.has_qkv_bias
        self.q_proj = Linear(D, config.num_attention_heads * C, bias=has_bias)
        self.k_proj = Linear(D, config.num_key_value_heads * C, bias=has_bias)
        self.v_proj = Linear(D, config.num_key_value_heads * C, bias=has_bias)
        self.o_proj = Linear(config.num_attention_heads * C, D, bias=False)
        self.has_qk_norm, self.eps = config.family.has_qk_norm, config.rms_norm_eps
        if self.has_qk_norm:
            self.q_norm, self.k_norm = RMSNorm(C, self.eps), RMSNorm(C, self.eps)

    def forward(self, x_BTD: Tensor, cos_BTC: Tensor, sin_BTC: Tensor, attend: Attention) -> Tensor:
        products = _products(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        q_BTHC, k_BTKC, v_BTKC = (y_BTN.unflatten(-1, (-1, self.head_dim)) for y_BTN in products)
        weights = (self.q_norm.weight, self.k_norm.weight) if self.has_qk_norm else (None, None)
        q_BTHC, k_BTKC = norm_rotary(q_BTHC, k_BTKC, *weights, self.eps, cos_BTC, sin_BTC)
        return self.o_proj(attend(self.layer, q_BTHC, k_BTKC, v_BTKC).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(swiglu(*_products(x_BTD, self.gate_proj, self.up_proj)))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, cos_BTC: Tensor, sin_BTC: Tensor, attend: Attention, delta_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(x, delta), whose sum is the output, of the input x + delta: who norms it next adds them in the same kernel.

        With gradients the sum is made here (delta is None), so that one tensor is kept between blocks, not two.
        """
        x_BTD, normed_BTD = self.input_layernorm.add(x_BTD, delta_BTD)
        x_BTD, normed_BTD = self.post_attention_layernorm.add(
            x_BTD, self.self_attn(normed_BTD, cos_BTC, sin_BTC, attend)
        )
        delta_BTD = self.mlp(normed_BTD)
        return (x_BTD + delta_BTD, None) if torch.is_grad_enabled() else (x_BTD, delta_BTD)


class Head(nn.Linear):
    """The last matrix, handed to a readout in place of being multiplied by.

    Its use is a call of this module because FSDP gathers a unit for the modules that are called.
    """

    def forward(self, hidden_BTD: Tensor, readout: Readout) -> Any:
        return readout(hidden_BTD, self.weight)


class Decoder(nn.Module):
    """Causal decoder with its head. Parameter names are those of Hugging Face less the `model.` prefix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.is_scalar:
            self.score = Head(config.hidden_size, 1, bias=False)
        else:
            self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self._tie_()

    @property
    def head(self) -> Head:
        return self.score if self.config.is_scalar else self.lm_head

    def _tie_(self) -> None:
        if self.config.tie_word_embeddings and not self.config.is_scalar:
            self.lm_head.weight = self.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        # `to_empty` and moves between devices give each module a parameter of its own: a tied head would part.
        super()._apply(fn, recurse)
        self._tie_()
        # A sharded decoder's slices lie where FSDP puts them, and to join them would gather them.
        if self.norm.weight.is_cuda and not isinstance(self.norm.weight, DTensor):
            self.lay_side_by_side_()
        return self

    def lay_side_by_side_(self) -> None:
        """Moves the weights of q, k and v, and of gate and up, next to one another."""
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for parts in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
                lay_side_by_side_([part.weight for part in parts])

    def forward(self, token_BT: Tensor, position_BT: Tensor, attend: Attention, readout: Readout) -> Any:
        """Runs the stack and hands (hidden_BTD, head_VD) to `readout`; a scalar model's head is head_1D.

        The readout runs inside `forward` so that a sharded model has its head gathered, and so that logits [B, T, V]
        exist only where somebody asks for them.

        Args:
            token_BT: int64 token ids.
            position_BT: int64 positions for the rotary embedding.
            attend: attention over these tokens and whatever came before them.
            readout: for example `last_logits`, or `kernels.linear_logprob` over the tokens of a loss.
        """
        x_BTD, delta_BTD = self.embed_tokens(token_BT), None
        config = self.config
        cos_BTC, sin_BTC = rotary_tables(position_BT, config.head_dim, config.rope_theta, config.rope_scaling)
        for layer in self.layers:
            x_BTD, delta_BTD = layer(x_BTD, cos_BTC, sin_BTC, attend, delta_BTD)
        return self.head(self.norm(x_BTD, delta_BTD), readout)


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
    """Draws every matrix from N(0, std²), residual outputs scaled by 1/√(2 layers) (GPT-2's rule).

    Norms are 1 and biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = std / (2 * decoder.config.num_hidden_layers) ** 0.5
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (residual_std if is_residual else std))
    return decoder
