"""The sampler's forms against the exact draw, float64, and each other.

B rows   V vocabulary
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernels.sample as module
from kernels.draw import BLOCK, TILE, scale_of, uniforms, weights
from kernels.sample import _sample_cpu, _sample_triton, sample, sample_ref
from kernels.settings import Draw, Noise, Settings

# The interpreter is numpy, which warns where a GPU makes an inf or a nan on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
]
FIELDS = ("logprob_B", "drawn_logprob_B", "lse_B", "entropy_B")


def words_of(B, seed=0, position=0):
    """Row b is sample b of one request."""
    return np.full(B, seed, dtype=np.uint64), np.arange(B, dtype=np.uint64), np.full(B, position, dtype=np.uint64)


def draw(logits_BV, seed=0, position=0, **params) -> Draw:
    return sample(logits_BV, *words_of(len(logits_BV), seed, position), **params)


def by_form(form, logits_BV, words, device="cpu", **params) -> Draw:
    """One of `_sample_cpu` and `_sample_triton`, its results on the CPU."""
    B = len(logits_BV)
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    logits_BV = logits_BV.to(device)
    drawn = form(logits_BV, Noise.of(B, *words, logits_BV.device), Settings.of(B, **defaults | params))
    return Draw(*(getattr(drawn, name).cpu() for name in ("token_B", *FIELDS)))


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


def assert_agrees(ours: Draw, right: Draw, logits_BV: torch.Tensor) -> None:
    """The same tokens; log-probabilities within twice torch's own float32 error of float64."""
    assert torch.equal(ours.token_B, right.token_B)
    z_BV = logits_BV.float()
    theirs = Draw(
        right.token_B,
        z_BV.log_softmax(-1).gather(1, right.token_B[:, None])[:, 0],
        right.drawn_logprob_B,
        z_BV.logsumexp(-1),
        -torch.special.xlogy(z_BV.softmax(-1), z_BV.softmax(-1)).sum(-1),
    )
    for name in FIELDS:
        error_B = (getattr(ours, name).double() - getattr(right, name)).abs()
        torch_error_B = (getattr(theirs, name).double() - getattr(right, name)).abs()
        # Where torch happens to be exact: a few units in the last place of the value, or of the sums behind it.
        slack_B = 2e-7 * (getattr(right, name).abs() + 4)
        assert (error_B <= 2 * torch_error_B + slack_B).all(), name
        assert getattr(ours, name).dtype == torch.float32
    assert (ours.logprob_B <= 0).all() and (ours.drawn_logprob_B <= 0).all() and (ours.entropy_B >= 0).all()


# 1: nothing to choose; 5: less than a tile; 127 to 129: around a tile; 4099: two blocks, the second of three tokens.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [1, 5, TILE - 1, TILE, TILE + 1, 4099])
@pytest.mark.parametrize("params", SETTINGS)
def test_the_cpu_form_is_the_definition(V, params, dtype):
    logits_BV = hostile_rows(V).to(dtype)
    for seed in range(3):
        words = words_of(len(logits_BV), seed)
        ours, right = by_form(_sample_cpu, logits_BV, words, **params), sample_ref(logits_BV, *words, **params)
        assert_agrees(ours, right, logits_BV)
        assert (logits_BV.gather(1, ours.token_B[:, None]) > -math.inf).all()


# As above, in fewer calls and without five of the eight plain rows: interpreted kernels are slow.
@pytest.mark.parametrize("V, dtype", [(1, torch.float32), (TILE + 1, torch.bfloat16), (4099, torch.float32)])
@pytest.mark.parametrize("params", SETTINGS)
def test_the_triton_form_is_the_definition(V, params, dtype, triton_device):
    logits_BV = hostile_rows(V)[5:].to(dtype)
    words = words_of(len(logits_BV), 1)
    ours = by_form(_sample_triton, logits_BV, words, triton_device, **params)
    assert_agrees(ours, sample_ref(logits_BV, *words, **params), logits_BV)


def mixed(B):
    """Another temperature and filter on every row."""
    b = np.arange(B)
    return {
        "temperature": np.select([b % 3 == 0, b % 3 == 1], [0.0, 1.0], 0.6),
        "top_k": np.where(b % 4 == 0, 0, b),
        "top_p": np.where(b % 5 == 0, 1.0, (b + 1) / (B + 1)),
        "min_p": np.where(b % 2 == 0, 0.0, 0.01),
    }


def test_every_row_has_its_own_setting(triton_device):
    logits_BV = hostile_rows(1000)
    B = len(logits_BV)
    words, params = words_of(B, 5, 17), mixed(B)
    right = sample_ref(logits_BV, *words, **params)
    assert_agrees(by_form(_sample_cpu, logits_BV, words, **params), right, logits_BV)
    assert_agrees(by_form(_sample_triton, logits_BV, words, triton_device, **params), right, logits_BV)
    for b in range(B):
        alone = {name: x[b] for name, x in params.items()}
        one = sample_ref(logits_BV[b : b + 1], *(word[b : b + 1] for word in words), **alone)
        assert one.token_B[0] == right.token_B[b]


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 130, 700]),
    st.floats(0.05, 3),
    st.one_of(st.just(0), st.integers(1, 40)),
    st.one_of(st.just(1.0), st.floats(0.05, 1)),
    st.one_of(st.just(0.0), st.floats(0, 1)),
    st.booleans(),
)
def test_any_setting_gives_the_tokens_of_the_definition(seed, V, temperature, top_k, top_p, min_p, has_ties):
    generator = torch.Generator().manual_seed(seed)
    logits_BV = torch.randn(64, V, generator=generator) * 4
    logits_BV = logits_BV.round() if has_ties else logits_BV
    words = [torch.randint(0, 2**31, (64,), generator=generator).numpy().astype(np.uint64) for _ in range(3)]
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    assert_agrees(sample(logits_BV, *words, **params), sample_ref(logits_BV, *words, **params), logits_BV)


def rows_at_a_boundary(V, words):
    """Two logits in each row, first and last, whose boundary is where u₀ (or, in one block, u₁) falls, to rounding."""
    u_B = uniforms(*words)[:, 0 if V > BLOCK else 1]
    logits_BV = torch.full((len(u_B), V), -math.inf)
    logits_BV[:, 0], logits_BV[:, -1] = torch.from_numpy(np.log(u_B)), torch.from_numpy(np.log1p(-u_B))
    return logits_BV


@pytest.mark.parametrize("form", [_sample_cpu, _sample_triton])
@pytest.mark.parametrize("V", [2 * TILE, BLOCK + 1])
def test_integers_decide_where_sums_cannot(form, V, monkeypatch, triton_device):
    """Whatever sums in floating point say there, the token is the definition's; by the sums some would differ."""
    device = triton_device if form is _sample_triton else "cpu"
    words = words_of(30, 3)
    logits_BV = rows_at_a_boundary(V, words)
    right = sample_ref(logits_BV, *words)
    assert 5 < (right.token_B == 0).sum() < 25
    assert torch.equal(by_form(form, logits_BV, words, device).token_B, right.token_B)
    if form is _sample_cpu or V > BLOCK:  # in a block, Triton has no sums in floating point
        monkeypatch.setattr(module, "UNSURE", 0.0)
        assert not torch.equal(by_form(form, logits_BV, words, device).token_B, right.token_B)


@pytest.mark.parametrize("form", [_sample_cpu, _sample_triton])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}, {"top_p": 0.6}])
def test_integers_alone_draw_the_same_tokens(form, params, monkeypatch, triton_device):
    logits_BV = hostile_rows(BLOCK + 700)[::2]
    words = words_of(len(logits_BV), 2)
    device = triton_device if form is _sample_triton else "cpu"
    sure = by_form(form, logits_BV, words, device, **params)
    monkeypatch.setattr(module, "UNSURE", 2.0)
    unsure = by_form(form, logits_BV, words, device, **params)
    for name in ("token_B", *FIELDS):
        assert torch.equal(getattr(sure, name), getattr(unsure, name)), name


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_sums_in_float32_are_surer_than_they_claim(temperature):
    """The bound UNSURE against the integers, at the vocabulary of Qwen3, for blocks as float32 sums them."""
    logits_BV = hostile_rows(151_936)
    logits_BV[0, 1000:] = -12.0  # half of the mass in a long tail
    scale = scale_of(temperature)
    for z_V in logits_BV:
        u_V = z_V - z_V.max()
        integer_V = torch.from_numpy(weights(u_V.numpy() * scale))
        weight_V = torch.exp2(u_V * torch.from_numpy(scale))
        starts = range(0, len(z_V), BLOCK)
        parts = torch.stack([weight_V[i : i + BLOCK].sum() for i in starts]).double()
        sums = torch.stack([integer_V[i : i + BLOCK].sum() for i in starts]).double()
        assert (parts.cumsum(0) / parts.sum() - sums.cumsum(0) / sums.sum()).abs().max() < module.UNSURE / 4


def test_rare_masks_are_no_mass(triton_device):
    """A vocabulary masked with the lowest float, as some models do, has the entropy of what is left."""
    logits_BV = torch.randn(3, 9000, generator=torch.Generator().manual_seed(0))
    logits_BV[:, 256:] = torch.finfo(torch.float32).min
    right = sample_ref(logits_BV, *words_of(3))
    assert (right.entropy_B > 4).all()
    assert_agrees(by_form(_sample_cpu, logits_BV, words_of(3)), right, logits_BV)
    assert_agrees(by_form(_sample_triton, logits_BV, words_of(3), triton_device), right, logits_BV)


def test_a_vocabulary_of_262144(triton_device):
    """Flat: every block has the largest mass there is."""
    logits_BV = torch.zeros(2, 262_144)
    words = words_of(2, 1)
    right = sample_ref(logits_BV, *words)
    for params in ({}, {"top_k": 262_143}):
        assert_agrees(by_form(_sample_cpu, logits_BV, words, **params), right, logits_BV)
        assert_agrees(by_form(_sample_triton, logits_BV, words, triton_device, **params), right, logits_BV)


def test_a_filter_on_one_row_changes_no_other(triton_device):
    logits_BV = hostile_rows(BLOCK + 100)
    B = len(logits_BV)
    temperature, top_k = np.resize([1.0, 0.7, 0.0], B), np.where(np.arange(B) % 4 == 0, 5, 0)
    for form, device in ((_sample_cpu, "cpu"), (_sample_triton, triton_device)):
        alone = by_form(form, logits_BV, words_of(B), device, temperature=temperature)
        mixed = by_form(form, logits_BV, words_of(B), device, temperature=temperature, top_k=top_k)
        for name in ("token_B", *FIELDS):
            assert torch.equal(getattr(alone, name)[top_k == 0], getattr(mixed, name)[top_k == 0]), name


@pytest.mark.parametrize("top_k", [1, 2, 7, 100])
def test_top_k_one_is_greedy_and_large_k_is_everything(top_k):
    logits_BV = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    result = draw(logits_BV, top_k=top_k)
    if top_k == 1:
        assert torch.equal(result.token_B, logits_BV.argmax(-1))
        assert (result.drawn_logprob_B == 0).all()
    if top_k >= 7:
        assert torch.equal(result.token_B, draw(logits_BV).token_B)


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


def test_words_may_be_tensors_or_one_number():
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    seed = (1 << 63) + 5
    arrays = sample(logits_BV, np.full(6, seed, dtype=np.uint64), np.arange(6), 3)
    bits_B = torch.from_numpy(np.full(6, seed, dtype=np.uint64).view(np.int64))
    tensors = sample(logits_BV, bits_B, torch.arange(6), torch.full((6,), 3))
    assert torch.equal(arrays.token_B, tensors.token_B)


def test_words_reach_the_device_as_the_same_bits():
    """Equal entries are filled in there, others are copied; tensors that are there already are left there."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    for seed, sample_index in ((np.full(3, (1 << 64) - 5, dtype=np.uint64), 2**32 - 1), (np.arange(3) + (1 << 62), 7)):
        noise = Noise.of(3, seed, sample_index, np.arange(3), cpu)
        seed_B, sample_B, position_B = noise.tensors(3, cpu)
        assert np.array_equal(seed_B.numpy().view(np.uint64), noise.seed_B)
        assert (seed_B.dtype, sample_B.dtype, position_B.dtype) == (torch.int64, torch.int32, torch.int32)
        assert np.array_equal(sample_B.numpy().view(np.uint32), noise.sample_B) and position_B.tolist() == [0, 1, 2]
    far = Noise.of(3, torch.zeros(3, dtype=torch.int64, device="meta"), torch.zeros((), device="meta").int(), 5, meta)
    assert [(x.device.type, tuple(x.shape)) for x in far.tensors(3, meta)] == [("meta", (3,))] * 3
    with pytest.raises(ValueError, match="seed_B must be integers"):
        Noise.of(3, torch.zeros(3, device="meta"), 0, 0, meta)
    with pytest.raises(ValueError, match="seed_B is on meta, but the rows to draw on cpu"):
        Noise.of(3, torch.zeros(3, device="meta").int(), 0, 0, cpu)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 700, 5000]),
    st.sampled_from(SETTINGS),
    st.data(),
)
def test_a_row_does_not_depend_on_its_neighbours(generator_seed, V, params, data):
    generator = torch.Generator().manual_seed(generator_seed)
    logits_BV = torch.randn(40, V, generator=generator) * 4
    keys = [torch.randint(0, 2**31, (40,), generator=generator).numpy().astype(np.uint64) for _ in range(3)]
    whole = sample(logits_BV, *keys, **params)
    rows = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=12))
    part = sample(logits_BV[rows], *(key[rows] for key in keys), **params)
    for name in ("token_B", *FIELDS):
        assert torch.equal(getattr(whole, name)[rows], getattr(part, name)), name


@pytest.mark.parametrize("form", [_sample_cpu, _sample_triton])
@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_p": 0.5}])
def test_layout_does_not_matter(form, params, triton_device):
    device = triton_device if form is _sample_triton else "cpu"
    logits_VB = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    words = words_of(6)
    whole = by_form(form, logits_VB.T.contiguous(), words, device, **params)
    for strided in (logits_VB.T, torch.cat((logits_VB.T, logits_VB.T), 1)[:, :500], logits_VB.T[:, None].squeeze(1)):
        ours = by_form(form, strided, words, device, **params)
        assert torch.equal(ours.token_B, whole.token_B)
        assert torch.allclose(ours.logprob_B, whole.logprob_B, atol=1e-6)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@example([0, 0, 0])
def test_greedy_takes_the_first_largest(logits):
    result = draw(torch.tensor([logits], dtype=torch.float32), temperature=0)
    assert result.token_B.item() == logits.index(max(logits))
    assert result.drawn_logprob_B.item() == 0
    assert result.logprob_B.item() == pytest.approx(-math.log(sum(math.exp(x - max(logits)) for x in logits)), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_extreme_temperatures(temperature, triton_device):
    logits_BV = torch.randn(20, 300, generator=torch.Generator().manual_seed(3)) * 100
    logits_BV[0, 5:] = -math.inf
    for result in (
        draw(logits_BV, temperature=temperature),
        by_form(_sample_triton, logits_BV, words_of(20), triton_device, temperature=temperature),
    ):
        assert result.drawn_logprob_B.isfinite().all()
        assert result.token_B[0] < 5
        if temperature < 1:
            assert torch.equal(result.token_B, logits_BV.argmax(-1))
        else:
            assert (result.drawn_logprob_B[1:] + math.log(300)).abs().max() < 1e-3


def test_settings_may_be_tensors_and_logits_may_want_gradients():
    logits_BV = torch.randn(3, 10, requires_grad=True)
    half_B = torch.full((3,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    ours, right = draw(logits_BV, temperature=half_B, top_k=torch.tensor(4)), draw(logits_BV, temperature=0.5, top_k=4)
    assert torch.equal(ours.token_B, right.token_B) and not ours.logprob_B.requires_grad


def test_inputs_are_left_alone():
    logits_BV = torch.randn(3, 10)
    before = logits_BV.clone()
    draw(logits_BV, top_k=2, top_p=0.5, temperature=0.5)
    assert torch.equal(logits_BV, before)


@pytest.mark.parametrize("form", [_sample_cpu, _sample_triton])
@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"temperature": 0}])
def test_no_rows(form, params, triton_device):
    device = triton_device if form is _sample_triton else "cpu"
    result = by_form(form, torch.zeros(0, 9), words_of(0), device, **params)
    assert all(getattr(result, name).shape == (0,) for name in ("token_B", *FIELDS))


@pytest.mark.parametrize("form", [_sample_cpu, _sample_triton])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.5}, {"temperature": 0}])
def test_a_row_without_a_distribution_never_draws(form, params, triton_device):
    """Its neighbours do, as if it were not there."""
    device = triton_device if form is _sample_triton else "cpu"
    good_BV = torch.randn(6, 300, generator=torch.Generator().manual_seed(5))
    bad_BV = good_BV.clone()
    bad_BV[1, 7], bad_BV[2, 299], bad_BV[3] = math.nan, math.inf, -math.inf
    words = words_of(6)
    right, result = (by_form(form, x_BV, words, device, **params) for x_BV in (good_BV, bad_BV))
    for b in (1, 2, 3):
        assert result.token_B[b] == -1
        assert all(getattr(result, name)[b].isnan() for name in ("logprob_B", "drawn_logprob_B", "entropy_B"))
        assert not result.lse_B[b].isfinite()
    for name in ("token_B", *FIELDS):
        assert torch.equal(getattr(result, name)[[0, 4, 5]], getattr(right, name)[[0, 4, 5]])
    with pytest.raises(ValueError, match=r"logits_BV: row 1 has no distribution"):
        draw(bad_BV, **params)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"logits_BV": torch.zeros(4)}, r"logits_BV must have dimensions \[B, V\], got shape \(4,\)"),
        ({"logits_BV": torch.zeros(3, 0)}, "logits_BV: the vocabulary must have 1 to 4194304 tokens, got V = 0"),
        ({"logits_BV": torch.zeros(3, 5, device="meta")}, "logits_BV must be on a CPU or a CUDA device, got meta"),
        ({"logits_BV": torch.zeros(1, 1).expand(3, (1 << 22) + 1)}, "the vocabulary must have 1 to 4194304 tokens"),
        ({"logits_BV": torch.zeros(3, 5, dtype=torch.int64)}, "logits_BV must be torch.float32 or"),
        ({"logits_BV": [[0.0]]}, "logits_BV must be a tensor"),
        ({"seed_B": np.zeros(4, dtype=np.uint64)}, "seed_B must be integers, one or 3, got uint64 of shape"),
        ({"sample_B": np.zeros(3)}, "sample_B must be integers, one or 3, got float64"),
        ({"position_B": 1 << 32}, r"position_B must lie in \[0, 2\^32\)"),
        ({"seed_B": 1 << 64}, r"seed_B must lie in \[0, 2\^64\), got 18446744073709551616"),
        ({"seed_B": -1}, r"seed_B must lie in \[0, 2\^64\), got -1"),
        ({"temperature": None}, "temperature must be one number or 3 of them, got None"),
        ({"top_p": torch.ones(3, device="meta")}, "top_p must be on a CPU or a CUDA device, got meta"),
        ({"temperature": -1.0}, r"temperature must be in \[0, 1e30\]"),
        ({"temperature": math.nan}, r"temperature must be in \[0, 1e30\]"),
        ({"temperature": np.ones(2)}, "temperature must be one number or 3"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": 2.5}, "top_k must be one integer or 3 of them, got float64"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_p": math.nan}, r"top_p must be in \(0, 1\]"),
        ({"min_p": np.array([0.1, 2.0, 0.0])}, r"min_p must be in \[0, 1\]"),
    ],
)
def test_a_wrong_argument_is_named(change, words):
    arguments = {"logits_BV": torch.zeros(3, 5), "seed_B": 0, "sample_B": np.arange(3), "position_B": 0} | change
    with pytest.raises((ValueError, TypeError), match=words):
        sample(**arguments)
