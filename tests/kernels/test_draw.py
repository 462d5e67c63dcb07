"""The exact draw: integer weights, what the filters keep, the distribution, and its Triton twin.

B rows   V vocabulary
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import draw as exact
from kernels.draw import (
    BLOCK,
    MAX_VOCABULARY,
    TILE,
    draw,
    first_above,
    least_kept,
    scale_of,
    uniforms,
    weights,
    weights_kernel,
)
from kernels.jit import jit, tl

FILTERS = [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.8, "min_p": 0.02}]
float32s = st.floats(-64, 0, width=32)


def test_weights_are_powers_of_two():
    x = np.concatenate((-np.random.default_rng(0).random(100_000) * 40, np.arange(-40, 1))).astype(np.float32)
    right = np.exp2(x.astype(np.float64)) * 2.0**40
    assert (np.abs(weights(x) - right) <= 1.2e-7 * right + 1).all()
    assert weights(np.float32([0, -1, -40, -41, -64, -65, -np.inf])).tolist() == [1 << 40, 1 << 39, 1, 0, 0, 0, 0]


def test_a_subnormal_weighs_as_much_as_zero():
    """A GPU takes it for 0, numpy does not: its floor is -1 here, and the polynomial at 1 has to make up for it."""
    tiny = np.float32([-1e-45, -1e-40, np.nextafter(np.float32(0), np.float32(-1)), -1e-38])
    assert weights(tiny).tolist() == [1 << 40] * 4


@given(st.lists(float32s, min_size=2, max_size=50))
def test_a_larger_logit_never_weighs_much_less(x):
    """Rounding may turn neighbours around, by the error of float32."""
    weight = weights(np.sort(np.float32(x)))
    assert (np.diff(weight) >= -1.2e-7 * weight[:-1] - 1).all()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_inverse_of_the_cumulated_weights(weight, u):
    if not any(weight):
        weight[0] = 1
    index = int(first_above(np.array([weight]), np.array([u]))[0])
    assert weight[index] > 0
    below, at_most = sum(weight[:index]), sum(weight[: index + 1])
    assert below <= u * sum(weight) * (1 + 1e-15) and u * sum(weight) < at_most * (1 + 1e-15) + 1


def one_by_one(logits, scale, floor, u_block, u_tile, u_token):
    """One row in Python integers: nested lists of blocks, tiles and tokens."""

    def weigh(x):
        return weights(np.float32(x)).tolist()

    def scaled(z, largest):
        return np.float32((z - largest) * scale) if z > -math.inf else -math.inf

    def part(weight, x):
        return int(float(weight) * float(weigh([x])[0]) / 2**40)

    def pick(some, u):
        target, total = int(u * float(sum(some))), 0
        for i, x in enumerate(some):
            total += x
            if total > target:
                return i
        raise AssertionError("u < 1")

    def tiles_of(block):
        tiles = [block[i : i + TILE] for i in range(0, len(block), TILE)]
        tokens = [weigh([scaled(z if z >= floor else -math.inf, max(tile)) for z in tile]) for tile in tiles]
        parts = [part(sum(w), scaled(max(t), max(block))) for t, w in zip(tiles, tokens, strict=True)]
        return tokens, parts

    blocks = [logits[i : i + BLOCK] for i in range(0, len(logits), BLOCK)]
    mass = [part(sum(tiles_of(block)[1]), scaled(max(block), max(logits))) for block in blocks]
    block = pick(mass, u_block)
    tokens, parts = tiles_of(blocks[block])
    tile = pick(parts, u_tile)
    return block * BLOCK + tile * TILE + pick(tokens[tile], u_token)


def some_words(rng, B):
    return rng.integers(0, 2**63, B, dtype=np.uint64), *(rng.integers(0, 2**32, B, dtype=np.uint64) for _ in range(2))


# 1: nothing to choose; 127 to 129: around a tile; 300: two tiles and a ragged one; 4,095 to 4,200: around a block.
@pytest.mark.parametrize("V", [1, 5, TILE - 1, TILE, TILE + 1, 300, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 104])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.8])
def test_matches_a_slow_definition(V, temperature):
    rng = np.random.default_rng(V)
    B = 40 if V < 1000 else 8
    logits_BV = rng.normal(size=(B, V)).astype(np.float32) * 4
    logits_BV[::4] = np.where(rng.random((B // 4, V)) < 0.5, -np.inf, logits_BV[::4])
    logits_BV[::4, V // 2] = 0
    logits_BV[1, : V // 2] = -np.inf
    scale_B = np.broadcast_to(scale_of(temperature), (B,))
    floor_B = np.where(np.arange(B) % 3 == 0, np.median(logits_BV, -1), -np.inf).astype(np.float32)
    u_B3 = uniforms(*some_words(rng, B))
    u_B3[2:4] = [[1e-9, 1e-9, 1e-9], [1 - 1e-9] * 3]
    token_B, _ = draw(logits_BV, scale_B, floor_B, u_B3)
    right = [one_by_one(z_V, c, f, *u_3) for z_V, c, f, u_3 in zip(logits_BV, scale_B, floor_B, u_B3, strict=True)]
    assert token_B.tolist() == right


def test_the_mass_is_the_sum_of_the_exponentials():
    logits_BV = np.random.default_rng(1).normal(size=(40, 1000)).astype(np.float32) * 5
    _, mass_B = draw(
        logits_BV, np.full(40, scale_of(0.8)), np.full(40, -np.inf, dtype=np.float32), np.full((40, 3), 0.5)
    )
    z_BV = logits_BV.astype(np.float64) / 0.8
    right_B = np.exp(z_BV - z_BV.max(-1, keepdims=True)).sum(-1)
    assert (np.abs(mass_B / 2.0**40 / right_B - 1) < 1e-6).all()


def test_the_largest_vocabulary_does_not_overflow():
    flat_1V = np.zeros((1, MAX_VOCABULARY), dtype=np.float32)
    for u in (2.0**-53, 0.25, 1 - 2.0**-53):
        token_1, mass_1 = draw(
            flat_1V, np.full(1, scale_of(1)), np.full(1, -np.inf, dtype=np.float32), np.full((1, 3), u)
        )
        assert mass_1[0] == MAX_VOCABULARY << 40
        # u picks the block, the tile in it and the token in that.
        assert token_1[0] == int(u * 1024) * BLOCK + int(u * 32) * TILE + int(u * 128)


def allowed_tokens(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """(surely, perhaps) the sets of one row, from the words of the docstring; they differ by rounding at a boundary."""
    z = [x / temperature for x in logits.double().tolist()]
    largest = max(z)
    weight = [math.exp(x - largest) for x in z]
    kth = sorted(z, reverse=True)[min(top_k or len(z), len(z)) - 1]
    total = math.fsum(w for x, w in zip(z, weight, strict=True) if x >= kth)
    surely, perhaps = set(), set()
    better = 0.0  # mass of strictly larger logits
    for value, ties in groupby(sorted(range(len(z)), key=lambda i: -z[i]), key=lambda i: z[i]):
        ties = list(ties)
        for tolerance, allowed in ((1e-6, surely), (-1e-6, perhaps)):
            in_nucleus = value == largest or top_p == 1 or better / total < top_p - tolerance
            if value >= kth and in_nucleus and weight[ties[0]] >= min_p * (1 + tolerance):
                allowed.update(ties)
        better += weight[ties[0]] * len(ties)
    return {i for i in surely if weight[i] > 0}, {i for i in perhaps if z[i] > -math.inf}


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.integers(-3, 3), st.floats(-20, 20, width=16), st.just(-math.inf)), min_size=1, max_size=20),
    st.integers(0, 25),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.2, 3),
)
def test_the_filters_keep_what_their_words_say(logits, top_k, top_p, min_p, temperature):
    if max(logits) == -math.inf:
        logits[0] = 0.0
    row_V = torch.tensor(logits, dtype=torch.float32)
    floor = least_kept(
        row_V[None].numpy(), scale_of([temperature]), np.array([top_k]), np.array([top_p]), np.array([min_p])
    )[0]
    surely, perhaps = allowed_tokens(row_V, temperature, top_k, top_p, min_p)
    kept = {i for i, z in enumerate(row_V.tolist()) if z >= floor}
    assert surely <= kept
    assert {i for i in kept if row_V[i] > -math.inf and weights(np.float32(row_V[i] - row_V.max()))} <= perhaps


def chi_square_p(counts, expected):
    """p-value of counts against expected counts, cells below 8 pooled; Wilson-Hilferty approximation."""
    pairs = sorted(zip(expected, counts, strict=True))
    cells, pooled = [], [0.0, 0]
    for e, c in pairs:
        if e >= 8 and (pooled[0] >= 8 or pooled[0] == 0):
            cells.append((e, c))
        else:
            pooled = [pooled[0] + e, pooled[1] + c]
    if pooled[0] > 0:
        cells.append(tuple(pooled))
    statistic = sum((c - e) ** 2 / e for e, c in cells)
    k = len(cells) - 1
    z = ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_the_p_value_is_a_p_value():
    """Known quantiles of chi-square: 18.307 at 10 degrees of freedom is 5 %, 23.209 is 1 %."""
    for statistic, p in ((18.307, 0.05), (23.209, 0.01)):
        step = math.sqrt(statistic / 11 * 100)
        counts = [100 + (step if i % 2 else -step) for i in range(11)]
        exact = sum((c - 100) ** 2 / 100 for c in counts)
        assert chi_square_p(counts, [100.0] * 11) == pytest.approx(p, rel=0.05) and exact == pytest.approx(statistic)


# 12: one tile; 132: a second tile of four tokens; 300: three tiles, most mass in the last; 4,200: two blocks.
@pytest.mark.parametrize("params", [*FILTERS, {"temperature": 0.6}, {"temperature": 1.7, "top_p": 0.9}])
@pytest.mark.parametrize("V", [12, 132, 300, 4200])
def test_draws_follow_the_distribution(V, params):
    num_draws = 20_000 if V < 1000 else 3000
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(V + 1))
    hot = torch.tensor([0, 1, V // 2, V - 4, V - 3, V - 2, V - 1])
    logits_V[hot] += torch.tensor([0.0, 2.0, 1.0, 2.5, 0.5, 1.5, 3.0]) + (math.log(V / 4) if V > 12 else 0)
    if V == 12:
        logits_V[5] = -math.inf
    temperature = params.get("temperature", 1.0)
    filters = [np.array([params.get(name, off)]) for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))]
    floor = least_kept(logits_V[None].numpy(), scale_of([temperature]), *filters)
    index = np.arange(num_draws, dtype=np.uint64)
    tokens = []
    for some in np.split(index, -(-num_draws * V // 6_000_000)):
        token_B, _ = draw(
            np.broadcast_to(logits_V.numpy(), (len(some), V)),
            np.broadcast_to(scale_of(temperature), (len(some),)),
            np.broadcast_to(floor, (len(some),)),
            uniforms(np.full(len(some), V, dtype=np.uint64), some % 100, some // 100),
        )
        tokens.append(token_B)
    token_B = np.concatenate(tokens)
    allowed, _ = allowed_tokens(logits_V, **params)
    kept_V = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor(sorted(allowed)), True)
    expected_V = (logits_V.double() / temperature).where(kept_V, -math.inf).softmax(-1) * num_draws
    counts_V = torch.from_numpy(token_B).bincount(minlength=V)
    assert (counts_V[expected_V == 0] == 0).all()
    assert chi_square_p(counts_V[kept_V].tolist(), expected_V[kept_V].tolist()) > 1e-4
    tiles = [(expected_V[i : i + TILE].sum().item(), counts_V[i : i + TILE].sum().item()) for i in range(0, V, TILE)]
    if len(tiles) > 1 and min(e for e, _ in tiles) > 0:
        assert chi_square_p([c for _, c in tiles], [e for e, _ in tiles]) > 1e-4


@pytest.mark.parametrize("V", [7, TILE, TILE + 5, 500, BLOCK + 200])
def test_every_token_has_its_share_of_the_unit_cube(V):
    """The middle of its block's interval, of its tile's and of its own draw a token, be its mass 1 or 1e-9.

    A running sum in float32 has no room for the rare ones.
    """
    weight_V = torch.rand(V, generator=torch.Generator().manual_seed(V)).double() * 1e-8 + 1e-9
    weight_V[0], weight_V[V // 2] = 1.0, 0.0
    logits_V = weight_V.log().float()
    exp_V = logits_V.double().exp().numpy()

    def middles(size, parts_of):
        """Of every token, the middle of the interval that its part of `size` tokens has among the parts around it."""
        sums = [exp_V[i : i + size].sum() for i in range(0, V, size)]
        u_V = np.empty(V)
        for start in range(0, len(sums), parts_of):
            some = np.array(sums[start : start + parts_of])
            u = (some.cumsum() - some / 2) / some.sum()
            u_V[start * size : (start + parts_of) * size] = np.repeat(u, size)[: V - start * size]
        return u_V

    u_V3 = np.stack([middles(BLOCK, V), middles(TILE, BLOCK // TILE), middles(1, TILE)], -1)
    some = np.arange(V) if V < 1000 else np.r_[0:40, V // 2, TILE, BLOCK - 1, BLOCK, V - 60 : V]
    logits_BV = np.broadcast_to(logits_V.numpy(), (len(some), V))
    lowest_B = np.full(len(some), -np.inf, dtype=np.float32)
    token_B, _ = draw(logits_BV, np.full(len(some), scale_of(1)), lowest_B, u_V3[some])
    is_possible = some != V // 2
    assert (token_B[is_possible] == some[is_possible]).all()
    assert (token_B != V // 2).all()


@pytest.mark.parametrize("name", ["seed", "sample", "position"])
def test_draws_are_independent_over(name):
    """Pairs of draws whose seed, sample index or position are neighbours fill a contingency table evenly."""
    num, V = 6000, 6
    names = {"seed": np.zeros(num), "sample": np.zeros(num), "position": np.zeros(num)}
    names[name] = np.arange(num)
    words = (names[key].astype(np.uint64) for key in ("seed", "sample", "position"))
    flat_BV, floor_B = np.zeros((num, V), dtype=np.float32), np.full(num, -np.inf, dtype=np.float32)
    token_B, _ = draw(flat_BV, np.full(num, scale_of(1)), floor_B, uniforms(*words))
    counts = np.bincount(token_B[:-1] * V + token_B[1:], minlength=V * V)
    assert chi_square_p(counts.tolist(), [(num - 1) / V**2] * V**2) > 1e-4


def test_the_levels_have_independent_noise():
    num = 5000
    seed_B, zero_B = np.arange(num, dtype=np.uint64), np.zeros(num, dtype=np.uint64)
    correlation = np.corrcoef(uniforms(seed_B, zero_B, zero_B).T) - np.eye(3)
    assert (np.abs(correlation) < 5 / num**0.5).all()


@jit
def _twin_kernel(x_ptr, weight_ptr, seed_ptr, sample_ptr, position_ptr, u_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(weight_ptr + n, weights_kernel(tl.load(x_ptr + n)))
    seed_N, sample_N, position_N = tl.load(seed_ptr + n), tl.load(sample_ptr + n), tl.load(position_ptr + n)
    u_block_N, u_tile_N = exact.uniforms_kernel(seed_N, sample_N, position_N)
    tl.store(u_ptr + 3 * n, u_block_N)
    tl.store(u_ptr + 3 * n + 1, u_tile_N)
    tl.store(u_ptr + 3 * n + 2, exact.token_uniform_kernel(seed_N, sample_N, position_N))


def test_the_triton_twin_has_the_same_bits(triton_device):
    N = 1 << 15
    rng = np.random.default_rng(0)
    x = (-70 * rng.random(N) * rng.random(N) ** 3).astype(np.float32)
    x[:9] = [0, -0.0, -1e-9, -64, -1, -np.inf, -1e-45, -1e-40, -1e-38]
    words = [rng.integers(0, 2**64, N, dtype=np.uint64)] + [
        rng.integers(0, 2**32, N, dtype=np.uint64) for _ in range(2)
    ]
    weight = torch.zeros(N, dtype=torch.int64, device=triton_device)
    u = torch.zeros(N, 3, dtype=torch.float64, device=triton_device)
    bits = [torch.from_numpy(words[0].view(np.int64)).to(triton_device)]
    bits += [torch.from_numpy(word.astype(np.uint32).view(np.int32)).to(triton_device) for word in words[1:]]
    _twin_kernel[1,](torch.from_numpy(x).to(triton_device), weight, *bits, u, N=N, enable_fp_fusion=False)
    assert np.array_equal(weight.cpu().numpy(), weights(x))
    assert np.array_equal(u.cpu().numpy(), uniforms(*words))
