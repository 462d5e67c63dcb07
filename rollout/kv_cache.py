"""Keys and values in pages: [layers, 2, N, K, P, C] in one tensor.

N pages   K key/value heads   P tokens of a page   C head width   T tokens of a step
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from kernels.fused import write_pages
from rollout.decoder import DecoderConfig

_ALIGNMENT = 64  # bytes; matrices that begin elsewhere may be multiplied by other code


def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def longest_sample(kv_gib: float, num_new: int, page_size: int, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Tokens of the longest context and `num_new` more that `Scheduler.submit` takes in so much memory; 0: none."""
    num_pages = int(kv_gib * 2**30 / (page_size * bytes_per_token(config, dtype)))
    # Without page 0, which is for padding, and one that may be needed twice.
    of_context = num_pages - 2 - -(-num_new // page_size)
    return of_context * page_size + 1 + num_new if of_context > 0 else 0


class KvCache:
    """The memory of all pages, zero at first: a masked key has weight 0, but 0 times nan would be nan.

    On a CPU it is the system's until it is written to, so a large cache that is never full costs nothing.
    """

    def __init__(
        self, config: DecoderConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        heads = config.num_key_value_heads, page_size, config.head_dim
        self._shape = (config.num_hidden_layers, 2, num_pages, *heads)
        self._dtype, self._device = dtype, device
        self._pages_L2NKPC: Tensor | None = None

    def acquire(self) -> None:
        """Takes the memory, if it is not there."""
        if self._pages_L2NKPC is not None:
            return
        if self._device.type != "cpu":
            self._pages_L2NKPC = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
            return
        num_bytes = prod(self._shape) * self._dtype.itemsize
        memory = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)  # by calloc, which touches nothing
        start = -memory.ctypes.data % _ALIGNMENT
        self._pages_L2NKPC = torch.from_numpy(memory[start : start + num_bytes]).view(self._dtype).view(self._shape)

    def release(self) -> None:
        """Gives the memory back; what was in it is lost."""
        self._pages_L2NKPC = None

    @property
    def is_acquired(self) -> bool:
        return self._pages_L2NKPC is not None

    def copy(self, source_of: Mapping[int, int]) -> None:
        """Copies whole pages, all of them read before any is written."""
        target, source = torch.tensor(list(source_of.items()), device=self._device).T
        self._pages_L2NKPC[:, :, target] = self._pages_L2NKPC[:, :, source]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values), each [N, K, P, C]."""
        pages_2NKPC = self._pages_L2NKPC[layer]
        return pages_2NKPC[0], pages_2NKPC[1]

    def write(self, layer: int, page_T: Tensor, slot_T: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> None:
        write_pages(k_TKC, v_TKC, page_T, slot_T, *self.layer(layer))
