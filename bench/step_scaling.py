"""The same step by one process and by two, a thread each: what it costs to be two."""

from __future__ import annotations

import socket
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.remote import Remote
from bench.step_ours import OurStep, Setup

_N = 8


def measure(folder: str, options: Any, vocab_size: int) -> dict[str, Any]:
    """Seconds of a step at n = 8 by phase, medians over turns; of two processes those of the slower one.

    `overhead` is 2 x seconds of two / seconds of one - 1: what the halves take more than half. Weights are copied and
    gradients reduced between the two, and their pairs are not quite equal.
    """
    one = [Remote(OurStep, Setup(folder=folder, threads=1))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setups = [Setup(folder=folder, threads=1, rank=rank, num_processes=2, port=port) for rank in range(2)]
    two = [Remote.begun(OurStep, setup) for setup in setups]
    try:
        for remote in two:
            remote.answer()
        turns: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
        for turn in tqdm(range(options.steps + 1), desc="1 and 2 processes", unit="turn"):
            work = options.work(_N, turn, vocab_size)
            contenders = [("one", one), ("two", two)]
            for name, processes in contenders if turn % 2 else contenders[::-1]:
                turns[name].append(
                    _together(processes, "roll_out", work, turn) | _together(processes, "learn", work, turn)
                )
    finally:
        for remote in (*one, *two):
            remote.close()
    phases = ("sync_s", "rollout_s", "reward_s", "update_s")
    found: dict[str, Any] = {"num_rollouts": _N}
    for name, of_turns in turns.items():
        timed = of_turns[1:]
        found[name] = {phase: median(turn[phase] for turn in timed) for phase in phases}
        found[name]["step_s"] = median(sum(turn[phase] for phase in phases) for turn in timed)
    found["overhead"] = {
        name: 2 * found["two"][name] / found["one"][name] - 1 for name in ("rollout_s", "update_s", "step_s")
    }
    return found


def _together(processes: list[Remote], method: str, *arguments: Any) -> dict[str, float]:
    """Seconds of the slowest process, by phase."""
    for remote in processes:
        remote.ask(method, *arguments)
    answers = [remote.answer() for remote in processes]
    return {name: max(answer[name] for answer in answers) for name in answers[0] if name.endswith("_s")}
