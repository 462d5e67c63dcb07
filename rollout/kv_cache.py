"""Keys and values in pages: [layers, 2, N, K, P, C] in one tensor.

    N pages   K key/value heads   P tokens of a page   C head width   T tokens of a step
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.decoder import DecoderConfig

_FIRST_PAGES = 64  # room to begin with where it can grow


def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


class KvCache:
    """On a CPU, room for pages is made as they are first used; on a GPU at once, since graphs remember addresses.

    Memory that was never written holds zeros: a masked key has weight 0, but 0 times nan would be nan.
    """

    def __init__(
        self, config: DecoderConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._shape = config.num_hidden_layers, 2, 0, config.num_key_value_heads, page_size, config.head_dim
        self._dtype, self._device = dtype, device
        self._pages_L2NKPC: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self._pages_L2NKPC is None else self._pages_L2NKPC.nbytes

    def make_room(self, last_page: int) -> None:
        """Sees to it that pages up to this one have memory."""
        num_pages = 0 if self._pages_L2NKPC is None else self._pages_L2NKPC.shape[2]
        if last_page < num_pages:
            return
        wanted = self.num_pages
        if self._device.type == "cpu":
            wanted = min(wanted, max(_FIRST_PAGES, 2 * num_pages, last_page + 1))
        shape = list(self._shape)
        shape[2] = wanted
        pages_L2NKPC = torch.zeros(shape, dtype=self._dtype, device=self._device)
        if num_pages:
            pages_L2NKPC[:, :, :num_pages] = self._pages_L2NKPC
        self._pages_L2NKPC = pages_L2NKPC

    def release(self) -> None:
        """Gives the memory back; what was in it is lost."""
        self._pages_L2NKPC = None

    def copy(self, pages: Sequence[tuple[int, int]]) -> None:
        """Copies whole pages, (from, to), all of them read before any is written."""
        source, target = torch.tensor(pages, device=self._device).T
        self._pages_L2NKPC[:, :, target] = self._pages_L2NKPC[:, :, source]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values), each [N, K, P, C]."""
        pages_2NKPC = self._pages_L2NKPC[layer]
        return pages_2NKPC[0], pages_2NKPC[1]

    def write(self, layer: int, page_T: Tensor, slot_T: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> None:
        for pages_NKPC, x_TKC in zip(self.layer(layer), (k_TKC, v_TKC), strict=True):
            pages_NKPC[page_T, :, slot_T] = x_TKC
