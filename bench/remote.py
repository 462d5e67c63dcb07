"""An object in a process of its own, so that it is measured as if it were alone on the machine.

In one process engines slow each other down while they wait: OpenMP spins less as soon as there are more threads than
cores, and every engine that has run keeps its own. (Ours gave 1,780 tokens/s, and 1,040 once CTranslate2 had run.)
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from transformers.utils import logging

_PATIENCE_S = 5.0


class EngineError(RuntimeError):
    """What went wrong in the other process, on one line."""


class Remote:
    """The object that `make(*arguments)` gives there. A call blocks, so that one object computes at a time.

    Raises:
        ImportError: something that it needs is not installed.
        EngineError: it cannot be made or, later, a call failed.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.begin(make, *arguments)
        self.answer()

    @classmethod
    def begun(cls, make: Callable[..., Any], *arguments: Any) -> Remote:
        """Is being made; its first answer is None. For objects that wait for one another while they are made."""
        remote = cls.__new__(cls)
        remote.begin(make, *arguments)
        return remote

    def begin(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any, **options: Any) -> None:
        """Begins a call, whose result is the next answer."""
        try:
            self._pipe.send((method, arguments, options))
        except OSError:  # of a pipe that is broken, or closed here
            raise EngineError("its process has ended") from None

    def answer(self) -> Any:
        try:
            error, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise EngineError("its process has ended") from None
        if error is not None:
            raise error(answer)
        return answer

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        self.ask(method, *arguments, **options)
        return self.answer()

    def close(self) -> None:
        self._pipe.close()  # it ends when nobody asks, and tidies up (semaphores of tqdm's) as a kill would not
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    logging.set_verbosity_error()  # transformers would advise
    logging.disable_progress_bar()
    try:
        served = make(*arguments)
        pipe.send((None, None))
        while True:
            method, arguments, options = pipe.recv()
            try:
                pipe.send((None, getattr(served, method)(*arguments, **options)))
            except Exception as error:
                pipe.send((EngineError, one_line(error)))
    except EOFError:
        pass  # nobody asks any more
    except Exception as error:
        pipe.send((ImportError if isinstance(error, ImportError) else EngineError, one_line(error)))


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, EngineError) else f"{type(error).__name__}: {text}"
