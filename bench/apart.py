"""An engine in a process of its own, so that it is measured as if it were alone on the machine.

In one process engines slow each other down while they wait: OpenMP spins less as soon as there are more threads than
cores, and every engine that has run keeps its own. (Ours gave 1,780 tokens/s, and 1,040 once CTranslate2 had run.)
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers.utils import logging

from bench.rollout_peers import CONTENDERS, Contender
from rollout.decoder import Decoder, DecoderConfig, init_weights_


class EngineError(RuntimeError):
    """What went wrong in the engine's process, on one line."""


class Apart:
    """What `make` gives, in another process. A run blocks, so one engine computes at a time.

    Args:
        make: a function that can be pickled, or a partial of one.

    Raises:
        ImportError: the engine is not installed.
        EngineError: it cannot be made or, later, it cannot run.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self.counts: dict[str, int] = {}  # of the latest run, of our engine
        self.settings: dict[str, dict[str, Any]] = self._answer()

    def run(self, *args, **kwargs) -> Any:
        self._pipe.send((args, kwargs))
        found, self.counts = self._answer()
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            error, answer = self._pipe.recv()
        except EOFError:
            raise EngineError("its process has ended") from None
        if error is not None:
            raise error(answer)
        return answer


def contender(name: str, config: DecoderConfig, device: str) -> Contender:
    """One of CONTENDERS, with the random decoder of `config`."""
    return CONTENDERS[name](random_decoder(config).to(device))


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    logging.set_verbosity_error()  # transformers would advise
    logging.disable_progress_bar()
    try:
        engine = make()
        pipe.send((None, engine.settings))
        while True:
            args, kwargs = pipe.recv()
            try:
                pipe.send((None, (engine.run(*args, **kwargs), getattr(engine, "counts", {}))))
            except Exception as error:
                pipe.send((EngineError, one_line(error)))
    except EOFError:
        pass  # nobody asks any more
    except Exception as error:
        pipe.send((ImportError if isinstance(error, ImportError) else EngineError, one_line(error)))


@torch.no_grad()
def random_decoder(config: DecoderConfig) -> Decoder:
    """Its last token, which not every engine can draw, is nowhere the likeliest: its logit is 0."""
    decoder = init_weights_(Decoder(config), seed=0, std=0.05).eval()
    decoder.lm_head.weight[-1] = 0
    return decoder


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, EngineError) else f"{type(error).__name__}: {text}"
