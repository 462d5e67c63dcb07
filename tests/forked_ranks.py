"""Ranks for tests, forked off one process: one import of torch serves them all, if no thread has been started yet."""

import os
import sys
import traceback
from collections.abc import Callable


def run_ranks(size: int, run: Callable[[int], None]) -> None:
    """`run(rank)` in a process each; waits for all, and fails if one has."""
    children = []
    for rank in range(size):
        if not (child := os.fork()):
            code = 1
            try:
                run(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
