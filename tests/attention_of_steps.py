"""The attention of simulated steps, each token's output kept by the prefix that it ends.

Queries, keys and values depend on a token's prefix alone. So whatever else a step holds, wherever pages lie and however
often a token is computed again, its output is one vector: that of soft-max attention.

T tokens of a step   X positions up to a token   H query heads   K key/value heads   C head width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from rollout.decoder import Attention
from rollout.kv_cache import KvCache
from rollout.scheduler import Scheduler
from rollout.steps import Step
from tests.models import config
from tests.simulated_steps import Prefixes, Simulation, shared_context

LAYER = 1  # of two
MULTIPLE = 4  # steps are filled up to so many tokens, with some that write to page 0

# (cache, step, scheduler, page_T, slot_T) -> what attends in that step
MakeAttention = Callable[[KvCache, Step, Scheduler, Tensor, Tensor], Attention]


class AttentionOfSteps:
    """
    Args:
        scale: of the queries; of a large one, nearly all weight is one key's.
    """

    def __init__(
        self, heads: tuple[int, int], head_dim: int = 16, dtype: torch.dtype = torch.float32, scale: float = 1.0,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        (H, K), self.dtype, self.device = heads, dtype, torch.device(device)
        self.config = config(num_hidden_layers=2, num_attention_heads=H, num_key_value_heads=K, head_dim=head_dim)
        self.prefixes = Prefixes()
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1 << 13, num, head_dim, generator=generator) for num in (H, K, K))
        self.q, self.k, self.v = (q * scale).to(dtype), k.to(dtype), v.to(dtype)

    def outputs(
        self, scheduler: Scheduler, make: MakeAttention, *, seed: int = 0, num_requests: int = 8,
        max_length: int = 200, max_tokens: int = 12, look_ahead: bool = False,
    ) -> Iterator[tuple[list[int], Tensor]]:  # fmt: skip
        """(numbers of the prefixes up to it, o_HC) of each token of some requests, as often as it is computed."""
        cache = KvCache(self.config, scheduler.pool.num_pages, scheduler.pool.page_size, self.dtype, self.device)
        cache.acquire()
        for pages_NKPC in cache.layer(LAYER):
            pages_NKPC.fill_(1e4)  # whatever nobody wrote there has no weight
        found: list[tuple[list[int], Tensor]] = []

        def forward(step: Step, page_T: list[int], slot_T: list[int], past_T: list[list[int]]) -> None:
            if step.copies:
                cache.copy(step.copies)
            num_padding = -len(page_T) % MULTIPLE
            last_T = torch.tensor([past[-1] for past in past_T] + past_T[0][-1:] * num_padding)
            places = (torch.tensor([*x, *[0] * num_padding], device=self.device) for x in (page_T, slot_T))
            attend = make(cache, step, scheduler, *places)
            o_1THC = attend(LAYER, *(x[last_T][None].to(self.device) for x in (self.q, self.k, self.v)))
            found.extend(zip(past_T, o_1THC[0].cpu(), strict=False))

        run = Simulation(scheduler, self.prefixes, forward, look_ahead)
        rng = np.random.default_rng(seed)
        for request_seed in range(num_requests):
            context, n = shared_context(rng, max_length), int(rng.integers(1, 6))
            run.submit(context, n=n, max_tokens=int(rng.integers(1, max_tokens + 1)), seed=request_seed)
            for _ in range(rng.integers(0, 4)):
                run.step()
                yield from found
                found.clear()
        while scheduler.has_work:
            run.step()
            yield from found
            found.clear()
        self.events = run.events

    def by_definition(self, past_X: list[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """o_HC of the last of these prefixes: soft-max attention."""
        q_HC, k_XKC, v_XKC = self.q[past_X[-1]].to(dtype), self.k[past_X].to(dtype), self.v[past_X].to(dtype)
        num_queries = q_HC.shape[0] // k_XKC.shape[1]
        k_XHC, v_XHC = (x_XKC.repeat_interleave(num_queries, dim=1) for x_XKC in (k_XKC, v_XKC))
        weight_HX = (torch.einsum("hc,xhc->hx", q_HC, k_XHC) * q_HC.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("hx,xhc->hc", weight_HX, v_XHC)
