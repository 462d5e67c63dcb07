"""Keys and values of a wave: one copy per context, read by all of its samples, and one short tail per sample.

Attention of a decode step is one soft-max over [prefix | own tokens]; the prefix part is a matrix product in which the
n samples of a context read its keys once.

    P contexts   N samples of each   R = P·N rows   L prefix length (padded)   S own tokens so far
    H query heads   K key/value heads   G = H / K   C head width
"""

from __future__ import annotations

import torch
from torch import Tensor

from rollout.decoder import DecoderConfig, causal_attention


class WaveCache:
    """Holds prefix_KV [layers, 2, P, K, L, C] and tail_KV [layers, 2, R, K, max_tokens, C]."""

    def __init__(self, config: DecoderConfig, length_P: Tensor, padded_length: int, n: int, max_tokens: int,
                 dtype: torch.dtype) -> None:  # fmt: skip
        device = length_P.device
        layers, K, C = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        num_contexts = length_P.shape[0]
        self.n = n
        self.num_own = 0  # S, tokens in the tails
        self._prefix = torch.empty(layers, 2, num_contexts, K, padded_length, C, dtype=dtype, device=device)
        self._tail = torch.empty(layers, 2, num_contexts * n, K, max_tokens, C, dtype=dtype, device=device)
        self._is_padding_PL = torch.arange(padded_length, device=device) >= length_P[:, None]

    def prefill(self, layer: int, q_PLHC: Tensor, k_PLKC: Tensor, v_PLKC: Tensor) -> Tensor:
        self._prefix[layer, 0] = k_PLKC.transpose(1, 2)
        self._prefix[layer, 1] = v_PLKC.transpose(1, 2)
        return causal_attention(layer, q_PLHC, k_PLKC, v_PLKC)

    def decode(self, layer: int, q_R1HC: Tensor, k_R1KC: Tensor, v_R1KC: Tensor) -> Tensor:
        """Attention of one new token per row, which becomes tail position `num_own`."""
        S = self.num_own + 1
        R, _, H, C = q_R1HC.shape
        K = k_R1KC.shape[2]
        G, P, N = H // K, R // self.n, self.n
        self._tail[layer, 0, :, :, S - 1] = k_R1KC[:, 0]
        self._tail[layer, 1, :, :, S - 1] = v_R1KC[:, 0]
        k_PKLC, v_PKLC = self._prefix[layer]
        k_RKSC, v_RKSC = self._tail[layer, :, :, :, :S]
        q_RKGC = q_R1HC.view(R, K, G, C) * C**-0.5
        q_PKMC = q_RKGC.view(P, N, K, G, C).transpose(1, 2).reshape(P, K, N * G, C)  # M = N·G queries a context

        prefix_PKML = q_PKMC @ k_PKLC.transpose(-1, -2)
        prefix_PKML = prefix_PKML.masked_fill(self._is_padding_PL[:, None, None], -torch.inf)
        prefix_RKGL = prefix_PKML.view(P, K, N, G, -1).transpose(1, 2).reshape(R, K, G, -1)
        own_RKGS = q_RKGC @ k_RKSC.transpose(-1, -2)
        weight_RKGX = torch.cat((prefix_RKGL, own_RKGS), dim=-1).softmax(-1, dtype=torch.float32).to(q_R1HC.dtype)
        prefix_RKGL, own_RKGS = weight_RKGX.split((prefix_RKGL.shape[-1], S), dim=-1)

        prefix_PKML = prefix_RKGL.view(P, N, K, G, -1).transpose(1, 2).reshape(P, K, N * G, -1)
        o_RKGC = (prefix_PKML @ v_PKLC).view(P, K, N, G, C).transpose(1, 2).reshape(R, K, G, C)
        return (o_RKGC + own_RKGS @ v_RKSC).view(R, 1, H, C)

    def keep(self, context_P: Tensor) -> None:
        """Drops all contexts but these (int64 indices), with their samples."""
        rows_R = (context_P[:, None] * self.n + torch.arange(self.n, device=context_P.device)).flatten()
        self._prefix = self._prefix[:, :, context_P]
        self._tail = self._tail[:, :, rows_R]
        self._is_padding_PL = self._is_padding_PL[context_P]
