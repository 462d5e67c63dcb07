"""What is unpacked is what was packed, to the bit."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollout.packing import PackedCompletions
from rollout.params import Completion

completions = st.lists(
    st.tuples(
        st.lists(st.integers(0, 200_000), min_size=1, max_size=6), st.text(), st.sampled_from(["stop", "length"])
    ),
    min_size=1,
    max_size=5,
)


@given(completions, st.integers(0, 99))
def test_packing_loses_nothing(rows, seed):
    rng = np.random.default_rng(seed)
    given_ = [
        Completion(tokens, text, *rng.normal(size=(3, len(tokens))).astype(np.float32), reason)
        for tokens, text, reason in rows
    ]
    found = pickle.loads(pickle.dumps(PackedCompletions.of(given_))).unpack()
    assert [(c.token_ids, c.text, c.finish_reason) for c in found] == [
        (c.token_ids, c.text, c.finish_reason) for c in given_
    ]
    for name in ("logprobs", "drawn_logprobs", "entropies"):
        for a, b in zip(found, given_, strict=True):
            assert getattr(a, name).dtype == np.float32
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
