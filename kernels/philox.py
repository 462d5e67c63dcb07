"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), vectorised in numpy.

A draw is a pure function of (key, counter), so it depends on nothing that happened before it: not on the batch, the
order or the rank. The same words come out of `tl.philox`.
"""

from __future__ import annotations

import hashlib

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # round multipliers
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # key increments (golden ratio, √3 - 1)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(
    key: tuple[np.ndarray, np.ndarray], counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four uint32 words per (key, counter); arguments are broadcast together, values below 2³²."""
    k0, k1 = (np.asarray(k, dtype=np.uint64) for k in key)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    words = np.broadcast_arrays(c0, c1, c2, c3)
    return tuple(word.astype(np.uint32) for word in words)


def open_uniform(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """float64 in the open interval (0, 1) from two uint32 words: (r + ½) / 2^52, so that neither 0 nor 1 can come out.

    32 bits would be too few: they cannot reach tokens less likely than 2^-32.
    """
    bits = (high.astype(np.uint64) << np.uint64(20)) | (low.astype(np.uint64) >> np.uint64(12))
    return (bits.astype(np.float64) + 0.5) / 2.0**52


def stream_seed(*parts: int | str) -> int:
    """A 64-bit Philox key from a name such as (run seed, step, context id): equal names, equal streams.

    Hashed, because sums such as seed + i collide across contexts and make groups share their noise.
    """
    name = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
