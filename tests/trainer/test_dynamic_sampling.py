"""Steps that drop pairs without an advantage, and draw others: whole pairs, numbered anew."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.pair_accuracy import read_strictly
from patarm_core.pairs import Pair
from patarm_core.sampling import PairStream
from rollout.params import Completion
from tests.strategies import judgment_text
from trainer.config import GrpoConfig
from trainer.distributed import World
from trainer.grpo import roll_out_until_full
from trainer.rewards import PairRollout

ALONE = World(0, 1, torch.device("cpu"), None)


def rollout(index: int, number: int, is_varied: bool) -> PairRollout:
    """Of pair `number`, with n = 2; only one side varies."""
    texts = [judgment_text("5"), judgment_text("5")]
    sides = [[Completion([0], text, None, None, None, "stop") for text in texts] for _ in range(2)]
    judged = read_strictly(Pair("?", "a", "b", "chat", "here", str(number)), sides, "adaptive")
    par = [0.0, 0.0, 1.2, 0.0] if is_varied else [1.2] * 4
    return PairRollout(index, judged, ([1], [2]), sides[0] + sides[1], {"par": par, "format": [0.0] * 4})


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.sets(st.integers(0, 11)))
def test_whole_pairs_are_kept_or_dropped_and_the_batch_is_numbered_anew(num_pairs, size, refill_rounds, varied):
    config = GrpoConfig(pairs_per_step=size, refill_rounds=refill_rounds)
    stream, asked = PairStream(num_pairs, seed=3), []

    def draw(pairs):
        asked.append(pairs)
        # A rank has its share in any order.
        mine = [rollout(i, number, number in varied) for i, number in enumerate(pairs)][::-1]
        return mine, {"pairs_by_rank": [len(pairs)], "rollout_idle_share": 0.5}

    found = roll_out_until_full(stream, draw, config, ALONE)
    drawn = [number for pairs in asked for number in pairs]
    kept = [number for number in drawn if number in varied]
    by_place = sorted(found.trained, key=lambda r: r.index)
    assert [r.index for r in by_place] == list(range(len(by_place)))
    assert all(len(r.completions) == 4 for r in by_place)  # never half a pair
    if kept:
        assert [int(r.judged.pair.id) for r in by_place] == kept
    else:  # nothing teaches: the first round, for the KL penalty
        assert [int(r.judged.pair.id) for r in by_place] == asked[0]
    assert sorted(int(r.judged.pair.id) for r in found.drawn) == sorted(drawn)
    assert found.metrics == {
        "pairs_by_rank": [len(drawn)], "rollout_idle_share": 0.5, "pairs_drawn": len(drawn),
        "pairs_dropped": len(drawn) - len(kept), "rollout_rounds": len(asked),
    }  # fmt: skip
    assert len(asked) <= 1 + refill_rounds and len(kept) <= size
