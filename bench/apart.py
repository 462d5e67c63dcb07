"""A rollout engine in a process of its own (`bench.remote`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.remote import EngineError, Remote, one_line
from bench.rollout_peers import CONTENDERS, Contender
from rollout.decoder import Decoder, DecoderConfig, init_weights_

__all__ = ["Apart", "EngineError", "contender", "one_line", "random_decoder"]


class Apart:
    """What `make` gives, in another process. A run blocks, so one engine computes at a time.

    Args:
        make: a function that can be pickled, or a partial of one.

    Raises:
        ImportError: the engine is not installed.
        EngineError: it cannot be made or, later, it cannot run.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._remote = Remote(_Engine, make)
        self.counts: dict[str, int] = {}  # of the latest run, of our engine
        self.settings: dict[str, dict[str, Any]] = self._remote.call("settings")

    def run(self, *args, **kwargs) -> Any:
        found, self.counts = self._remote.call("run", args, kwargs)
        return found

    def close(self) -> None:
        self._remote.close()


class _Engine:
    def __init__(self, make: Callable[[], Any]) -> None:
        self._engine = make()

    def settings(self) -> dict[str, dict[str, Any]]:
        return self._engine.settings

    def run(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, dict[str, int]]:
        return self._engine.run(*args, **kwargs), getattr(self._engine, "counts", {})


def contender(name: str, config: DecoderConfig, device: str) -> Contender:
    """One of CONTENDERS, with the random decoder of `config`."""
    return CONTENDERS[name](random_decoder(config).to(device))


@torch.no_grad()
def random_decoder(config: DecoderConfig) -> Decoder:
    """Its last token, which not every engine can draw, is nowhere the likeliest: its logit is 0."""
    decoder = init_weights_(Decoder(config), seed=0, std=0.05).eval()
    decoder.lm_head.weight[-1] = 0
    return decoder
