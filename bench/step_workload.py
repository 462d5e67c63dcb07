"""What a GRPO step is asked to do: pairs of contexts, and how long each of their n judgments gets.

Lengths are imposed, because a random model has no reason to stop, and known to nobody before they are reached. Means
are those of the design (P = R = 600, J = 700 tokens); around them they are log-normal:

    P  trunk: template head, rubrics, prompt    sigma 0.25: mostly instructions, which are the same for all
    R  response and template tail               sigma 0.231: RM-Bench's chat responses, median 335, 95th percentile 490
    J  judgment                                 sigma 0.732, as in `bench.rollout_workload`: the 95th percentile is 3.3
                                                medians (of RMB's responses it is 3.5)

The same pairs at every n: with n judgments of each context, those of fewer are the first of them.
"""

from __future__ import annotations

from math import exp
from random import Random

from bench.rollout_workload import Work

MEANS = {"prompt": 600, "response": 600, "judgment": 700}
SIGMAS = {"prompt": 0.25, "response": 0.231, "judgment": 0.732}
LEAST, MOST = 4, 4096  # tokens; of a judgment that is not shortened at most what table 8 allows


def pair_work(num_pairs: int, n: int, shorten: float, vocab_size: int, turn: int = 0) -> Work:
    """Contexts of both sides of each pair, chosen first, and the lengths of n judgments of each.

    Args:
        shorten: divides all lengths, for machines that are slow.
        turn: tokens are others in every turn, lengths are not. The last token of the vocabulary is in none.
    """
    contexts, lengths = [], []
    for pair in range(num_pairs):
        rng, tokens = Random(f"lengths {pair}"), Random(f"tokens {pair} {turn}")

        def drawn(part: str, rng: Random = rng) -> int:
            sigma = SIGMAS[part]
            length = MEANS[part] * exp(sigma * rng.gauss(0, 1) - sigma**2 / 2)
            return max(LEAST, round(min(length, MOST) / shorten))

        def written(length: int, tokens: Random = tokens) -> list[int]:
            return [tokens.randrange(vocab_size - 1) for _ in range(length)]

        trunk = written(drawn("prompt"))
        contexts += [trunk + written(drawn("response")) for _ in range(2)]
        sides = [Random(f"judgments {pair} {side}") for side in range(2)]
        lengths += [tuple(drawn("judgment", side) for _ in range(n)) for side in sides]
    return Work("step", contexts, lengths)
