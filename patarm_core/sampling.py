"""The order in which pairs are trained on, and seeded label noise.

The sampler printed in the paper (app. F, tab. 12) is not followed: it reads `num_samples` and `num_pairs`, which it
never defines; it raises on an odd count that its next method would have trimmed, and so drops a row; it shuffles with
the global generator instead of its own; with replacement it does not shuffle at all; and it knows nothing of ranks.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Collection, Iterator, Sequence

from patarm_core.pairs import Pair


class PairRandomSampler:
    """Deals shuffled pairs to steps and ranks; the two sides of a pair are never apart.

    An epoch is a permutation of all pairs that depends on (seed, epoch) alone. A step takes the next `pairs_per_step`
    of it, the last step of an epoch what is left; rank r of w takes every w-th pair of the step, from the r-th on. So
    shares differ by one pair at most, and a rank may have none.

    Iteration yields this rank's pair indices, one list per step, from the current position on. `state_dict` counts the
    steps handed out; a state can be loaded under another number of ranks.

    Args:
        num_pairs: size of the data set; indices run from 0 to num_pairs - 1.
        pairs_per_step: pairs of all ranks together; a batch of 256 contexts is 128 pairs.
        epochs: None to go on for ever.
    """

    def __init__(
        self,
        num_pairs: int,
        pairs_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
    ):
        for name, value in [("num_pairs", num_pairs), ("pairs_per_step", pairs_per_step), ("world_size", world_size)]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 … world_size - 1 = {world_size - 1}, got {rank}")
        if epochs is not None and epochs < 0:
            raise ValueError(f"epochs must not be negative, got {epochs}")
        self.num_pairs = num_pairs
        self.pairs_per_step = pairs_per_step
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epochs = epochs
        self.step = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])  # the last epoch asked for and its order

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_pairs // self.pairs_per_step)

    @property
    def num_steps(self) -> int | None:
        """Steps of all epochs; None if they never end."""
        return None if self.epochs is None else self.epochs * self.steps_per_epoch

    def global_step(self, step: int) -> list[int]:
        """Pair indices of a step over all ranks, a function of (num_pairs, pairs_per_step, seed, step) alone."""
        if step < 0 or (self.num_steps is not None and step >= self.num_steps):
            raise ValueError(f"there is no step {step}; steps run from 0 to num_steps = {self.num_steps}, exclusive")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            self._shuffled = (epoch, _permutation(self.num_pairs, self.seed, epoch))
        start = step_in_epoch * self.pairs_per_step
        return self._shuffled[1][start : start + self.pairs_per_step]

    def __iter__(self) -> Iterator[list[int]]:
        while self.num_steps is None or self.step < self.num_steps:
            share = self.global_step(self.step)[self.rank :: self.world_size]
            self.step += 1  # before the yield: a state saved while this step is worked on continues after it
            yield share

    def state_dict(self) -> dict[str, int]:
        return {
            "step": self.step,
            "seed": self.seed,
            "num_pairs": self.num_pairs,
            "pairs_per_step": self.pairs_per_step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where the state was saved; ValueError if that was another order of pairs."""
        _check_state(state, self.state_dict(), "step")
        self.step = state["step"]


class PairStream:
    """Deals the same permutations pair by pair, as many as are asked for: for steps that drop pairs and draw others.

    It goes on for ever, epoch after epoch; its state is the number of pairs that it has passed.
    """

    def __init__(self, num_pairs: int, seed: int):
        if num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, got {num_pairs}")
        self.num_pairs = num_pairs
        self.seed = seed
        self.position = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def take(self, count: int, seen: Collection[int] = ()) -> list[int]:
        """The next `count` pairs, all different and none of `seen`; fewer when there are no others.

        What is passed over, where one epoch ends and the next begins, does not come again in its epoch.
        """
        taken: dict[int, None] = {}
        most = min(count, self.num_pairs - len(set(seen)))
        while len(taken) < most:
            epoch, place = divmod(self.position, self.num_pairs)
            if self._shuffled[0] != epoch:
                self._shuffled = (epoch, _permutation(self.num_pairs, self.seed, epoch))
            self.position += 1
            pair = self._shuffled[1][place]
            if pair not in seen:
                taken[pair] = None
        return list(taken)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed, "num_pairs": self.num_pairs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where the state was saved; ValueError if that was another order of pairs."""
        _check_state(state, self.state_dict(), "position")
        self.position = state["position"]


def _check_state(state: dict[str, int], own: dict[str, int], place: str) -> None:
    """Raises ValueError unless the states differ in nothing but `place`, which is not negative."""
    if state.keys() != own.keys():
        raise ValueError(f"a sampler state has the keys {', '.join(own)}, got {', '.join(state) or 'none'}")
    for key in own:
        if key != place and state[key] != own[key]:
            raise ValueError(f"the sampler state was saved with {key}={state[key]}, but this run has {key}={own[key]}")
    if state[place] < 0:
        raise ValueError(f"the sampler state has {place}={state[place]}, which is negative")


def flip_sides(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[bool]]:
    """Label noise: exchanges the sides of exactly round(share · number of pairs) pairs (fig. 4).

    Which ones depends on the seed and on the pairs' (source, id), not on their order, so every method trained on the
    data sees the same flips; and a larger share flips a superset.

    Returns:
        The pairs in their order, and for each whether it was flipped.

    Raises:
        ValueError: share outside [0, 1], or a (source, id) that occurs twice.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of flipped pairs must lie in [0, 1], got {share}")
    keys = [(pair.source, pair.id) for pair in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"label noise needs distinct (source, id), but {twice} occurs twice")
    ranked = sorted(keys, key=lambda key: hashlib.sha256(json.dumps([seed, *key]).encode()).digest())
    noisy = set(ranked[: round(share * len(pairs))])
    flipped = [key in noisy for key in keys]
    return [_flip(pair) if is_flipped else pair for pair, is_flipped in zip(pairs, flipped, strict=True)], flipped


def _flip(pair: Pair) -> Pair:
    return dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    # Sorted by random() because that stream is the same in every Python version; shuffle() makes no such promise.
    generator = random.Random(f"{seed}/{epoch}")
    keys = [generator.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)
