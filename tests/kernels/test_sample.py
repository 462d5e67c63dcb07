"""The sampler against float64 and against slow definitions of each filter.

B rows   V vocabulary
"""

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.sample import TILE, _two_level_draw, sample

# 1: nothing to choose; 5: less than a tile; 4095 to 4097: around a tile; 9000: two tiles and a ragged one.
SIZES = [1, 5, TILE - 1, TILE, TILE + 1, 9000]
FILTERS = [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.8, "min_p": 0.02}]


def draw(logits_BV, seed=0, position=0, **params):
    """One draw per row; row b is sample b of one request."""
    B = len(logits_BV)
    return sample(
        logits_BV, np.full(B, seed, dtype=np.uint64), np.arange(B, dtype=np.uint64), np.uint64(position), **params
    )


def hostile_rows(V: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(V)
    normal = torch.randn(8, V, generator=generator) * 3
    rows = [*normal, normal[0] + 1e4, normal[0] - 1e4, normal[0] * 1e4, torch.zeros(V), torch.full((V,), -1e4)]
    for i in {0, V // 2, V - 1}:  # one finite logit
        rows.append(torch.full((V,), -math.inf).index_fill(0, torch.tensor(i), 3.0))
    rows.append(
        normal[1].masked_fill(torch.rand(V, generator=generator) < 0.5, -math.inf).index_fill(0, torch.tensor(0), 0)
    )
    rows.append(normal[2].round())  # ties
    rows.append(torch.arange(V).remainder(2).float() * 1e4)
    return torch.stack(rows)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", SIZES)
def test_logprobs_and_entropy_are_those_of_float64(V, dtype):
    logits_BV = hostile_rows(V).to(dtype)
    logprob_BV = logits_BV.double().log_softmax(-1)
    entropy_B = -torch.special.xlogy(logprob_BV.exp(), logprob_BV.exp()).sum(-1)
    torch_error_B = (logits_BV.float().log_softmax(-1).nan_to_num(neginf=0) - logprob_BV.nan_to_num(neginf=0)).abs()
    for params in ({}, {"temperature": 0.7}, {"temperature": 0}, *FILTERS[1:]):
        result = draw(logits_BV, **params)
        error_B = (result.logprob_B - logprob_BV.gather(1, result.token_B[:, None])[:, 0]).abs()
        assert (error_B <= 2 * torch_error_B.amax(-1) + 1e-6).all()
        assert (result.logprob_B <= 0).all() and (result.drawn_logprob_B <= 0).all()
        assert (result.entropy_B - entropy_B).abs().max() <= 1e-5
        assert result.logprob_B.dtype == result.drawn_logprob_B.dtype == result.entropy_B.dtype == torch.float32


@pytest.mark.parametrize("params", FILTERS + [{"temperature": 0.5, "top_k": 3}, {"temperature": 2.0, "top_p": 0.9}])
@pytest.mark.parametrize("V", SIZES)
def test_tokens_are_those_the_filter_allows(V, params):
    logits_BV = hostile_rows(V)
    sets = [allowed_tokens(row, **params) for row in logits_BV]
    for seed in range(5):
        result = draw(logits_BV, seed, **params)
        for row, token, drawn, (surely, perhaps) in zip(
            logits_BV, result.token_B.tolist(), result.drawn_logprob_B.tolist(), sets, strict=True
        ):
            assert row[token] > -math.inf
            assert token in perhaps
            z = row.double() / params.get("temperature", 1.0)
            drawn_among = [z[sorted(some)].logsumexp(0) for some in (surely, perhaps)]
            assert min(z[token] - total for total in drawn_among) - 1e-5 <= drawn
            assert drawn <= max(z[token] - total for total in drawn_among) + 1e-5


@pytest.mark.parametrize("top_k", [1, 2, 7, 100])
def test_top_k_one_is_greedy_and_large_k_is_everything(top_k):
    logits_BV = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    result = draw(logits_BV, top_k=top_k)
    if top_k == 1:
        assert torch.equal(result.token_B, logits_BV.argmax(-1))
        assert (result.drawn_logprob_B == 0).all()
    if top_k >= 7:
        assert torch.equal(result.token_B, draw(logits_BV).token_B)


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


# 12: one tile; 4100: a second tile of four tokens; 9000: three tiles, most mass in the last.
@pytest.mark.parametrize("params", [*FILTERS, {"temperature": 0.6}, {"temperature": 1.7, "top_p": 0.9}])
@pytest.mark.parametrize("V", [12, 4100, 9000])
def test_draws_follow_the_distribution(V, params):
    num_draws = 1000
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(V + 1))
    hot = torch.tensor([0, 1, V // 2, V - 4, V - 3, V - 2, V - 1])
    logits_V[hot] += torch.tensor([0.0, 2.0, 1.0, 2.5, 0.5, 1.5, 3.0]) + (math.log(V / 4) if V > 12 else 0)
    if V == 12:
        logits_V[5] = -math.inf
    result = draw(logits_V.expand(num_draws, V), seed=V, **params)
    allowed, _ = allowed_tokens(logits_V, **params)
    z_V = torch.full((V,), -math.inf, dtype=torch.float64)
    kept = torch.tensor(sorted(allowed))
    z_V[kept] = logits_V[kept].double() / params.get("temperature", 1.0)
    expected_V = z_V.softmax(-1) * num_draws
    counts_V = result.token_B.bincount(minlength=V)
    assert (counts_V[expected_V == 0] == 0).all()
    if len(allowed) > 1:
        cells = expected_V > 0
        assert chi_square_p(counts_V[cells].tolist(), expected_V[cells].tolist()) > 1e-4
        tiles = [
            (expected_V[i : i + TILE].sum().item(), counts_V[i : i + TILE].sum().item()) for i in range(0, V, TILE)
        ]
        tiles = [tile for tile in tiles if tile[0] > 0]
        if len(tiles) > 1:
            assert chi_square_p([c for _, c in tiles], [e for e, _ in tiles]) > 1e-4


@pytest.mark.parametrize("V", [7, TILE, TILE + 5, 9000])
def test_every_token_has_its_share_of_the_unit_square(V):
    """The middle of its tile's interval and of its own within the tile draw a token, be its mass 1 or 5e-8.

    A running sum in float32 has no room for the rare ones.
    """
    weight_V = torch.rand(V, generator=torch.Generator().manual_seed(V)) * 1e-7
    weight_V[0] = 1.0
    weight_V[V // 2] = 0.0
    tiles = [tile.double().numpy() for tile in weight_V.split(TILE)]
    tile_mass = np.array([tile.sum() for tile in tiles])
    u_tile = np.repeat((tile_mass.cumsum() - tile_mass / 2) / tile_mass.sum(), [len(tile) for tile in tiles])
    u_token = np.concatenate([(tile.cumsum() - tile / 2) / tile.sum() for tile in tiles])
    for start in range(0, V, 500):
        rows = slice(start, min(start + 500, V))
        drawn = _two_level_draw(weight_V.expand(rows.stop - start, V), u_tile[rows], u_token[rows])
        right = torch.arange(rows.start, rows.stop)
        assert (drawn == right)[weight_V[rows] > 0].all()
        assert (drawn != right)[weight_V[rows] == 0].all()


@pytest.mark.parametrize("name", ["seed", "sample", "position"])
def test_draws_are_independent_over(name):
    """Pairs of draws whose seed, sample index or position are neighbours fill a contingency table evenly."""
    num, V = 6000, 6
    logits_BV = torch.zeros(num, V)
    names = {"seed": np.zeros(num), "sample": np.zeros(num), "position": np.zeros(num)}
    names[name] = np.arange(num)
    token_B = sample(logits_BV, *(names[key].astype(np.uint64) for key in ("seed", "sample", "position"))).token_B
    counts = (token_B[:-1] * V + token_B[1:]).bincount(minlength=V * V)
    assert chi_square_p(counts.tolist(), [(num - 1) / V**2] * V**2) > 1e-4


def test_large_seeds_and_positions_count():
    """All 64 bits of the seed and any position change the draw."""
    logits_BV = torch.zeros(64, 4096)
    first = draw(logits_BV, seed=1)
    for other in (
        draw(logits_BV, seed=1 + (1 << 32)),
        draw(logits_BV, seed=1 + (1 << 63)),
        draw(logits_BV, 1, 1 << 20),
    ):
        assert (first.token_B == other.token_B).sum() < 5


@settings(max_examples=30)
@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 700, TILE, 5000]),
    st.sampled_from([{}, {"temperature": 0.8}, *FILTERS]),
    st.data(),
)
def test_a_row_does_not_depend_on_its_neighbours(generator_seed, V, params, data):
    generator = torch.Generator().manual_seed(generator_seed)
    logits_BV = torch.randn(40, V, generator=generator) * 4
    keys = [torch.randint(0, 2**31, (40,), generator=generator).numpy().astype(np.uint64) for _ in range(3)]
    whole = sample(logits_BV, *keys, **params)
    rows = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=12))
    part = sample(logits_BV[rows], *(key[rows] for key in keys), **params)
    for name in ("token_B", "logprob_B", "drawn_logprob_B", "entropy_B"):
        assert torch.equal(getattr(whole, name)[rows], getattr(part, name)), name


@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_p": 0.5}])
def test_layout_does_not_matter(params):
    logits_VB = torch.randn(5000, 6, generator=torch.Generator().manual_seed(1))
    strided, whole = draw(logits_VB.T, **params), draw(logits_VB.T.contiguous(), **params)
    assert torch.equal(strided.token_B, whole.token_B)
    assert torch.allclose(strided.logprob_B, whole.logprob_B, atol=1e-6)
    wide = draw(torch.cat((logits_VB.T, logits_VB.T), 1)[:, :5000], **params)
    assert torch.equal(wide.token_B, whole.token_B)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@example([0, 0, 0])
def test_greedy_takes_the_first_largest(logits):
    result = draw(torch.tensor([logits], dtype=torch.float32), temperature=0)
    assert result.token_B.item() == logits.index(max(logits))
    assert result.drawn_logprob_B.item() == 0
    assert result.logprob_B.item() == pytest.approx(-math.log(sum(math.exp(x - max(logits)) for x in logits)), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_extreme_temperatures(temperature):
    logits_BV = torch.randn(50, 300, generator=torch.Generator().manual_seed(3)) * 100
    result = draw(logits_BV, temperature=temperature)
    assert result.drawn_logprob_B.isfinite().all()
    if temperature < 1:
        assert torch.equal(result.token_B, logits_BV.argmax(-1))
    else:
        assert (result.drawn_logprob_B + math.log(300)).abs().max() < 1e-3


def test_inputs_are_left_alone():
    logits_BV = torch.randn(3, 10)
    before = logits_BV.clone()
    draw(logits_BV, top_k=2, top_p=0.5, temperature=0.5)
    assert torch.equal(logits_BV, before)
