"""Keys and values of a wave: one copy per context, read by all of its samples, and one short tail per sample.

Attention of a decode step is one soft-max over [prefix | own tokens]. The prefix part is a matrix product in which the
samples of a context stand side by side and read its keys once; a sample that has ended leaves its place empty, so that
the shape of that product, and with it the rounding, is the same to the end.

C and L must be multiples of 16 for that (all published models' C are): then every matrix of keys, values and queries
begins at a multiple of 64 bytes. Off these, a CPU product may round in another way, and rows would differ by where
they stand.

    P contexts   N samples of each   R rows: the samples still decoded   L prefix length (padded)   S own tokens so far
    H query heads   K key/value heads   G = H / K   C head width   M = N·G   X = L + S
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rollout.decoder import causal_attention

_FIRST_ROOM = 64  # tokens; the room of the tails doubles from here


class WaveCache:
    """Row r is at `place_R[r]` of the P·N places, context-major; at first every place is taken."""

    def __init__(self, length_P: Tensor, padded_length: int, n: int) -> None:
        self.num_own = 0  # own tokens before the step in progress
        self._n = n
        self._place_R = torch.arange(len(length_P) * n, device=length_P.device)
        is_padding_PL = torch.arange(padded_length, device=length_P.device) >= length_P[:, None]
        self._bias_P1L = torch.zeros_like(is_padding_PL, dtype=torch.float32).masked_fill(is_padding_PL, -torch.inf)
        self._bias_P1L = self._bias_P1L[:, None]
        self._prefix: list[list[Tensor]] = []  # per layer [k_KPLC, v_KPLC]
        self._tail: list[list[Tensor]] = []  # per layer [k_KRSC, v_KRSC], with room for more tokens

    def prefill(self, start: int) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Attention over the contexts from number `start` on, whose keys and values it keeps."""

        def attend(layer: int, q_PLHC: Tensor, k_PLKC: Tensor, v_PLKC: Tensor) -> Tensor:
            if layer == len(self._prefix):
                _, L, K, C = k_PLKC.shape
                self._prefix.append([k_PLKC.new_empty(K, len(self._bias_P1L), L, C) for _ in range(2)])
            for x_KPLC, x_PLKC in zip(self._prefix[layer], (k_PLKC, v_PLKC), strict=True):
                x_KPLC[:, start : start + len(x_PLKC)] = x_PLKC.permute(2, 0, 1, 3)
            return causal_attention(layer, q_PLHC, k_PLKC, v_PLKC)

        return attend

    def decode(self, layer: int, q_R1HC: Tensor, k_R1KC: Tensor, v_R1KC: Tensor) -> Tensor:
        """Attention of one new token per row, which becomes tail position `num_own`."""
        S = self.num_own + 1
        k_KRSC, v_KRSC = (x_KRSC[:, :, :S] for x_KRSC in self._tail_with_room(layer, k_R1KC))
        k_KRSC[:, :, -1], v_KRSC[:, :, -1] = k_R1KC[:, 0].transpose(0, 1), v_R1KC[:, 0].transpose(0, 1)
        k_KPLC, v_KPLC = self._prefix[layer]
        K, P, L, C = k_KPLC.shape
        q_KRGC = (q_R1HC * C**-0.5).unflatten(2, (K, -1))[:, 0].transpose(0, 1).contiguous()

        prefix_KPML = (self._spread(q_KRGC).view(K, P, -1, C) @ k_KPLC.transpose(-1, -2)).add_(self._bias_P1L)
        prefix_KRGL = self._gather(prefix_KPML.view(K, P * self._n, -1, L))
        own_KRGS = q_KRGC @ k_KRSC.transpose(-1, -2)
        softmax_dtype = torch.promote_types(q_R1HC.dtype, torch.float32)
        weight_KRGX = torch.cat((prefix_KRGL, own_KRGS), -1).softmax(-1, dtype=softmax_dtype).to(q_R1HC.dtype)
        prefix_KRGL, own_KRGS = weight_KRGX.split((L, S), -1)

        o_KPMC = self._spread(prefix_KRGL).view(K, P, -1, L) @ v_KPLC
        o_KRGC = self._gather(o_KPMC.view(K, P * self._n, -1, C)) + own_KRGS @ v_KRSC
        return o_KRGC.transpose(0, 1).reshape(q_R1HC.shape)

    def keep(self, row_R: Tensor) -> None:
        """Drops all rows but these (increasing int64 indices), and the contexts left without a row."""
        place_R = self._place_R[row_R]
        context_P, which_R = torch.unique(place_R // self._n, return_inverse=True)
        self._place_R = which_R * self._n + place_R % self._n
        if len(context_P) < len(self._bias_P1L):
            self._bias_P1L = self._bias_P1L[context_P]
            for layer in self._prefix:
                layer[:] = [x_KPLC.index_select(1, context_P) for x_KPLC in layer]
        for layer in self._tail:
            layer[:] = [
                _with_room(x_KRSC[:, :, : self.num_own].index_select(1, row_R), x_KRSC.shape[2]) for x_KRSC in layer
            ]

    def _tail_with_room(self, layer: int, k_R1KC: Tensor) -> list[Tensor]:
        if layer == len(self._tail):
            R, _, K, C = k_R1KC.shape
            self._tail.append([k_R1KC.new_empty(K, R, _FIRST_ROOM, C) for _ in range(2)])
        room = self._tail[layer][0].shape[2]
        if self.num_own == room:
            self._tail[layer] = [_with_room(x_KRSC, 2 * room) for x_KRSC in self._tail[layer]]
        return self._tail[layer]

    def _spread(self, x_KRGY: Tensor) -> Tensor:
        """Rows at their places, zeros at the others."""
        num_places = len(self._bias_P1L) * self._n
        if len(self._place_R) == num_places:
            return x_KRGY
        K, _, G, Y = x_KRGY.shape
        return x_KRGY.new_zeros(K, num_places, G, Y).index_copy_(1, self._place_R, x_KRGY)

    def _gather(self, x_KZGY: Tensor) -> Tensor:
        """Rows from their places."""
        return x_KZGY if len(self._place_R) == x_KZGY.shape[1] else x_KZGY.index_select(1, self._place_R)


def _with_room(x_KRSC: Tensor, room: int) -> Tensor:
    K, R, S, C = x_KRSC.shape
    roomy_KRSC = x_KRSC.new_empty(K, R, room, C)
    roomy_KRSC[:, :, :S] = x_KRSC
    return roomy_KRSC
