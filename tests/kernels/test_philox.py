"""Philox against the published vectors, and what the sampler relies on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.philox import open_uniform, philox4x32, stream_seed

words32 = st.integers(0, 2**32 - 1)


# Known-answer vectors of the Random123 library, philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter, key, answer):
    words = philox4x32(key, counter)
    assert tuple(int(word) for word in words) == answer
    assert all(word.dtype == np.uint32 for word in words)


def by_definition(key, counter):
    """Ten rounds in Python integers, as in Salmon et al., fig. 2."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@given(st.tuples(words32, words32), st.lists(st.tuples(words32, words32, words32, words32), min_size=1, max_size=5))
def test_matches_the_definition_on_arrays(key, counters):
    words = philox4x32(key, tuple(np.array(column, dtype=np.uint64) for column in zip(*counters, strict=True)))
    assert list(zip(*(word.tolist() for word in words), strict=True)) == [by_definition(key, c) for c in counters]


def test_arguments_are_broadcast():
    keys, positions = np.arange(3, dtype=np.uint64)[:, None], np.arange(4, dtype=np.uint64)
    word, *_ = philox4x32((keys, np.uint64(7)), (positions, np.uint64(0), np.uint64(0), np.uint64(0)))
    assert word.shape == (3, 4)
    assert word[2, 1] == by_definition((2, 7), (1, 0, 0, 0))[0]
    assert len(np.unique(word)) == 12


def test_uniforms_are_strictly_inside_the_unit_interval():
    largest = 2**32 - 1
    high = np.array([0, 0, 0, 1, 2**31, largest, largest], dtype=np.uint32)
    low = np.array([0, 1 << 12, largest, 0, 5, 0, largest], dtype=np.uint32)
    u = open_uniform(high, low)
    assert (u > 0).all() and (u < 1).all()
    assert (np.diff(u) > 0).all()
    assert u[0] == 1 - u[-1] == 2.0**-53  # symmetric: no bias
    assert u[1] == 3 * 2.0**-53  # the low word counts


def test_uniforms_are_uniform():
    words = philox4x32((5, 6), (np.arange(100_000, dtype=np.uint64), 0, 0, 0))
    u, v = open_uniform(*words[:2]), open_uniform(*words[2:])
    # Five standard deviations of a mean, a variance (1/12, kurtosis 9/5) and a correlation.
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / 100_000) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / 100_000) ** 0.5
    assert abs(np.corrcoef(u, v)[0, 1]) < 5 / 100_000**0.5


def test_stream_seeds_are_distinct_where_sums_collide():
    seeds = {stream_seed(seed, step, context) for seed in range(20) for step in range(20) for context in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_stream_seed_tells_parts_apart():
    assert stream_seed("a", "bc") != stream_seed("ab", "c")
    assert stream_seed(1, 11) != stream_seed(11, 1) != stream_seed(111)


def test_stream_seed_never_changes():
    """Runs are resumed, and compared across versions."""
    assert stream_seed("run", 1, 2) == 1179496561879473912
