"""Requests come and go at random while others run; memory is given back and weights are written in between."""

from collections.abc import Callable, Sequence

import numpy as np

from rollout.engine import Engine
from rollout.params import Completion, SamplingParams

EVENTS = ("submit", "cancel", "release", "write", "step")


def through_events(
    engine: Engine,
    work: Sequence[tuple[list[int], SamplingParams]],
    rng: np.random.Generator,
    chances: Sequence[float],
    before: Callable[[str], None] = lambda event: None,
) -> list[tuple[int, list[Completion]]]:
    """(number of the request, completions) of those that were not cancelled, as they were finished.

    Args:
        chances: of EVENTS.
        before: hears of each event before it happens.
    """
    to_come, number_of, finished = rng.permutation(len(work)).tolist(), {}, []
    while to_come or engine.has_work:
        event = rng.choice(EVENTS, p=chances)
        before(event)
        if event == "submit" and to_come:
            number = to_come.pop()
            number_of[engine.submit(*work[number])] = number
        elif event == "cancel" and number_of:
            cancelled = list(number_of)[rng.integers(len(number_of))]
            del number_of[cancelled]
            engine.cancel(cancelled)
        elif event == "release":
            engine.release_memory()
        elif event == "write":
            engine.update_weights([("norm.weight", engine.decoder.norm.weight.clone())])
        else:
            finished += [(number_of.pop(request), request.completions) for request in engine.step()]
    assert not number_of
    return finished
