"""How a run is asked to end (SIGTERM, SIGINT), and how it leaves: with a checkpoint, within a stated time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Leaving(Exception):
    """The run ends because it was asked to. Its one line is no error's; the exit status is 128 + the signal."""

    def __init__(self, signal_number: int, line: str) -> None:
        super().__init__(line)
        self.status = 128 + signal_number


class Stop:
    """Whether this process has been asked to end, and what to do at a pause.

    `on_pause` is set while a step has changed no weights (trainer/stage.py): until then a checkpoint made in the midst
    of the step is one of its beginning, and nothing but the step is lost. So it is while dev pairs are measured, of
    which nothing but the measurement is lost.
    """

    def __init__(self) -> None:
        self.signal = 0  # that asked; 0: none
        self.on_pause: Callable[[], None] | None = None
        self._num_interrupts = 0

    @contextmanager
    def paused_by(self, leave: Callable[[], None]) -> Iterator[None]:
        """Within, `World.pause` calls it."""
        self.on_pause = leave
        try:
            yield
        finally:
            self.on_pause = None

    @property
    def is_requested(self) -> bool:
        return bool(self.signal)

    def leaving(self, where: str) -> Leaving:
        """What to raise once all is saved."""
        name = signal.Signals(self.signal or signal.SIGTERM).name  # of a rank that was not asked itself
        return Leaving(signal.Signals[name], f"{name}: left; with resume=true the run goes on: {where}")

    @contextmanager
    def on_signals(self, within_s: float, is_told: bool = True) -> Iterator[None]:
        """SIGTERM and a first SIGINT ask to end; a second SIGINT interrupts at once.

        A thread hears of the signal even while the main one waits in a collective. A process that is still there
        `within_s` seconds later leaves as it is: its last complete checkpoint is what a resumed run goes on from.

        Args:
            is_told: one process of many tells the user that it has heard.
        """
        if threading.current_thread() is not threading.main_thread():  # Python lets no other one handle signals
            yield
            return
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        is_over = threading.Event()
        before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(theirs.fileno())
        thread = threading.Thread(target=self._watch, args=(ours, within_s, is_told, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            theirs.close()  # ends the thread's wait
            thread.join()
            ours.close()

    def _heard(self, number: int, frame: object) -> None:
        """In the main thread, when it next runs Python."""
        self.signal = self.signal or number
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt

    def _watch(self, wakeup: socket.socket, within_s: float, is_told: bool, is_over: threading.Event) -> None:
        while number := wakeup.recv(1):
            if number[0] in _SIGNALS:
                break
        else:
            return
        self.signal = self.signal or number[0]
        name = signal.Signals(self.signal).name
        if is_told:  # on a line of its own, below a progress bar
            print(f"\n{name}: saving a checkpoint, then leaving (within {within_s:g} s)", file=sys.stderr, flush=True)
        if not is_over.wait(within_s):
            told = f"{name}: no place to stop within {within_s:g} s; left; resume=true goes on from the last checkpoint"
            print(f"\n{told}", file=sys.stderr, flush=True)
            os._exit(128 + self.signal)
