"""The fused LM head and sampler against the sampler of its logits.

B rows   D model width   V vocabulary
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels.linear_sample as module
from kernels.draw import BLOCK, TILE
from kernels.linear_sample import (
    Config,
    _linear_sample_cpu,
    _linear_sample_triton,
    linear_sample,
    linear_sample_ref,
)
from kernels.sample import sample, sample_ref
from kernels.settings import Draw, Noise, Settings

# The interpreter is numpy, which warns where a GPU makes an inf or a nan on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

FIELDS = ("token_B", "logprob_B", "drawn_logprob_B", "lse_B", "entropy_B")
SMALL = Config(16, 16, 4, 2)


def exact_problem(B, D, V, dtype=torch.float32, seed=0):
    """Small multiples of 1/8: sums of their products are exact in any order, so logits are equal in every form."""
    generator = torch.Generator().manual_seed(seed)
    hidden_BD = torch.randint(-3, 4, (B, D), generator=generator).to(dtype)
    weight_VD = (torch.randint(-4, 5, (V, D), generator=generator) / 8).to(dtype)
    return hidden_BD, weight_VD


def random_problem(B, D, V, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden_BD = torch.randn(B, D, generator=generator) * 2
    return hidden_BD.to(dtype), (torch.randn(V, D, generator=generator) / D**0.5).to(dtype)


def words_of(B, seed=0):
    return np.full(B, seed, dtype=np.uint64), np.arange(B, dtype=np.uint64), np.full(B, 7, dtype=np.uint64)


def by_form(form, hidden_BD, weight_VD, words, temperature, device="cpu", **options) -> Draw:
    B = len(hidden_BD)
    noise = Noise.of(B, *words, torch.device(device))
    settings = Settings.of(B, temperature, 0, 1.0, 0.0)
    drawn = form(hidden_BD.to(device), weight_VD.to(device), noise, settings, **options)
    return Draw(*(getattr(drawn, name).cpu() for name in FIELDS))


def mixed(B):
    return np.resize(np.array([1.0, 0.0, 0.6, 1.9]), B)


def assert_same_draw(ours: Draw, right: Draw) -> None:
    """Equal tokens; float64's numbers to a few units in the last place of the sums behind them."""
    assert torch.equal(ours.token_B, right.token_B)
    for name in FIELDS[1:]:
        slack_B = 2e-7 * (getattr(right, name).abs() + 8)
        assert ((getattr(ours, name).double() - getattr(right, name)).abs() <= slack_B).all(), name
    assert (ours.logprob_B <= 0).all() and (ours.drawn_logprob_B <= 0).all() and (ours.entropy_B >= 0).all()


# 1: nothing to choose; 127 to 129: around a tile; 1000: eight tiles, the last one ragged.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [1, 5, TILE - 1, TILE, TILE + 1, 1000])
def test_the_cpu_forms_draw_what_the_definition_draws(V, dtype, monkeypatch):
    B = 40
    hidden_BD, weight_VD = exact_problem(B, 24, V, dtype)
    for seed in range(3):
        words = words_of(B, seed)
        right = linear_sample_ref(hidden_BD, weight_VD, *words, temperature=mixed(B))
        assert_same_draw(linear_sample(hidden_BD, weight_VD, *words, temperature=mixed(B)), right)
        for max_elements in (1, 32 * V, 1 << 22):  # 16 rows at a time, 32, all
            monkeypatch.setattr(module, "MAX_ELEMENTS", max_elements)
            assert_same_draw(by_form(_linear_sample_cpu, hidden_BD, weight_VD, words, mixed(B)), right)


# A block of rows and a bit; less than one; widths that are no multiple of a block.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("B, D, V", [(20, 24, 300), (5, 16, TILE), (3, 7, 1), (2, 17, BLOCK + 130)])
def test_the_triton_form_draws_what_the_definition_draws(B, D, V, dtype, triton_device):
    hidden_BD, weight_VD = exact_problem(B, D, V, dtype)
    words = words_of(B, 3)
    for temperature in (1.0, mixed(B)):
        right = linear_sample_ref(hidden_BD, weight_VD, *words, temperature=temperature)
        ours = by_form(_linear_sample_triton, hidden_BD, weight_VD, words, temperature, triton_device, config=SMALL)
        assert_same_draw(ours, right)


def test_shipped_blocks_draw_the_same(triton_device):
    hidden_BD, weight_VD = exact_problem(70, 40, 260, torch.bfloat16)
    words = words_of(70, 3)
    right = linear_sample_ref(hidden_BD, weight_VD, *words)
    for config in (None, *module.CONFIGS["sm_80"]):
        ours = by_form(_linear_sample_triton, hidden_BD, weight_VD, words, 1.0, triton_device, config=config)
        assert_same_draw(ours, right)


def errors(drawn: Draw, token_B, hidden_BD, weight_VD):
    """RMS error of (log-prob, entropy) against float64, at the given tokens."""
    logprob_BV = F.linear(hidden_BD.double(), weight_VD.double()).log_softmax(-1)
    right = logprob_BV.gather(1, token_B[:, None])[:, 0], -(logprob_BV.exp() * logprob_BV).sum(-1)
    return [(ours.double() - x).square().mean().sqrt() for ours, x in zip(drawn, right, strict=True)]


@pytest.mark.parametrize("form", [_linear_sample_cpu, _linear_sample_triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_torch(form, dtype, triton_device, monkeypatch):
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    hidden_BD, weight_VD = random_problem(32, 48, 700, dtype)
    device, options = ("cpu", {}) if form is _linear_sample_cpu else (triton_device, {"config": SMALL})
    ours = by_form(form, hidden_BD, weight_VD, words_of(32), 1.0, device, **options)
    rounded_BV = F.linear(hidden_BD, weight_VD).float().log_softmax(-1)
    theirs = rounded_BV.gather(1, ours.token_B[:, None])[:, 0], -(rounded_BV.exp() * rounded_BV).sum(-1)
    our_errors = errors((ours.logprob_B, ours.entropy_B), ours.token_B, hidden_BD, weight_VD)
    torch_errors = errors(theirs, ours.token_B, hidden_BD, weight_VD)
    for our, their in zip(our_errors, torch_errors, strict=True):
        assert our <= 2 * their + 2e-7
        if dtype == torch.bfloat16:  # logits that are not rounded
            assert our < 0.01 * their


@pytest.mark.parametrize("params", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2, "temperature": 0.7}])
def test_a_filter_hands_the_logits_to_the_sampler(params):
    hidden_BD, weight_VD = exact_problem(20, 24, 300)
    words = words_of(20)
    assert_same_draw(
        linear_sample(hidden_BD, weight_VD, *words, **params),
        sample_ref(F.linear(hidden_BD, weight_VD), *words, **params),
    )


class LargestTensor(TorchDispatchMode):
    num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.num_bytes = max([self.num_bytes, *made])
        return out


def test_no_form_holds_all_logits(triton_device, monkeypatch):
    B, D, V = 64, 8, 3000
    monkeypatch.setattr(module, "MAX_ELEMENTS", 16 * V)
    hidden_BD, weight_VD = random_problem(B, D, V)
    with LargestTensor() as largest:
        linear_sample(hidden_BD, weight_VD, *words_of(B))
    assert largest.num_bytes <= 16 * (V + TILE) * 8 < B * V * 4
    with LargestTensor() as largest:
        by_form(_linear_sample_triton, hidden_BD, weight_VD, words_of(B), 1.0, triton_device, config=SMALL)
    assert largest.num_bytes <= V * D * 4 < B * V * 4


@pytest.mark.parametrize("form", [_linear_sample_cpu, _linear_sample_triton])
def test_layout_does_not_matter(form, triton_device, monkeypatch):
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    device, options = ("cpu", {}) if form is _linear_sample_cpu else (triton_device, {"config": SMALL})
    hidden_BD, weight_VD = exact_problem(10, 24, 200)
    words = words_of(10)
    right = linear_sample_ref(hidden_BD, weight_VD, *words)
    for h, w in (
        (hidden_BD.T.contiguous().T, weight_VD.T.contiguous().T),
        (torch.cat((hidden_BD, hidden_BD), 1)[:, :24], torch.stack((weight_VD, weight_VD), 1)[:, 1]),
    ):
        assert_same_draw(by_form(form, h, w, words, 1.0, device, **options), right)


@pytest.mark.parametrize("form", [_linear_sample_cpu, _linear_sample_triton])
def test_a_row_without_a_distribution_never_draws(form, triton_device, monkeypatch):
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    device, options = ("cpu", {}) if form is _linear_sample_cpu else (triton_device, {"config": SMALL})
    good_BD, weight_VD = exact_problem(6, 24, 200)
    bad_BD = good_BD.clone()
    bad_BD[1, 3], bad_BD[2, 5] = math.nan, math.inf
    temperature = np.array([1.0, 1.0, 0.5, 0.0, 0.7, 1.0])
    right = linear_sample_ref(good_BD, weight_VD, *words_of(6), temperature=temperature)
    result = by_form(form, bad_BD, weight_VD, words_of(6), temperature, device, **options)
    for b in (1, 2):
        assert result.token_B[b] == -1 and not result.lse_B[b].isfinite()
        assert all(getattr(result, name)[b].isnan() for name in ("logprob_B", "drawn_logprob_B", "entropy_B"))
    others = [0, 3, 4, 5]
    assert_same_draw(*(Draw(*(getattr(some, name)[others] for name in FIELDS)) for some in (result, right)))
    with pytest.raises(ValueError, match=r"hidden_BD · weight_VD: row 1 has no distribution"):
        linear_sample(bad_BD, weight_VD, *words_of(6))


def test_huge_logits(triton_device):
    hidden_BD, weight_VD = exact_problem(12, 24, 300)
    hidden_BD = hidden_BD * 2048  # logits of some ±1e4, still exact
    right = linear_sample_ref(hidden_BD, weight_VD, *words_of(12))
    assert right.lse_B.abs().max() > 1e4
    assert_same_draw(by_form(_linear_sample_cpu, hidden_BD, weight_VD, words_of(12), 1.0), right)
    assert_same_draw(
        by_form(_linear_sample_triton, hidden_BD, weight_VD, words_of(12), 1.0, triton_device, config=SMALL), right
    )


@pytest.mark.parametrize("form", [_linear_sample_cpu, _linear_sample_triton])
def test_no_rows(form, triton_device):
    device = triton_device if form is _linear_sample_triton else "cpu"
    result = by_form(form, torch.zeros(0, 8), torch.zeros(9, 8), words_of(0), 1.0, device)
    assert all(getattr(result, name).shape == (0,) for name in FIELDS)


@pytest.mark.parametrize("V", [300, 70_000])
def test_a_row_does_not_depend_on_the_number_of_rows(V):
    """To the bit, for multiples of 16 rows, also where not all of them fit into MAX_ELEMENTS."""
    hidden_BD, weight_VD = random_problem(96, 32, V)
    words = words_of(96)
    whole = linear_sample(hidden_BD, weight_VD, *words)
    part = linear_sample(hidden_BD[32:64], weight_VD, *(word[32:64] for word in words))
    for name in FIELDS:
        assert torch.equal(getattr(whole, name)[32:64], getattr(part, name)), name


def test_float64_is_the_sampler_of_its_logits():
    """For tests of other parts, which compare in float64."""
    hidden_BD, weight_VD = random_problem(4, 8, 20, torch.float64)
    ours = linear_sample(hidden_BD, weight_VD, *words_of(4))
    assert torch.equal(ours.token_B, sample(F.linear(hidden_BD, weight_VD), *words_of(4)).token_B)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_BD": torch.zeros(3)}, r"hidden_BD must have dimensions \[B, D\]"),
        ({"weight_VD": torch.zeros(9, 5)}, r"weight_VD \[V, D\] has shape \(9, 5\), but D is 4 in hidden_BD"),
        ({"weight_VD": torch.zeros(9, 4, device="meta")}, "weight_VD is on meta, but hidden_BD on cpu"),
        ({"weight_VD": torch.zeros(9, 4).bfloat16()}, "weight_VD must be torch.float32, got torch.bfloat16"),
        ({"weight_VD": torch.zeros(0, 4)}, "weight_VD: the vocabulary must have 1 to"),
        ({"hidden_BD": torch.zeros(3, 4).int()}, "hidden_BD must be torch.float32 or"),
        ({"seed_B": np.zeros(3)}, "seed_B must be integers"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\]"),
        ({"temperature": -1}, r"temperature must be in \[0, 1e30\]"),
    ],
)
def test_a_wrong_argument_is_named(change, words):
    arguments = {
        "hidden_BD": torch.zeros(3, 4), "weight_VD": torch.zeros(9, 4),
        "seed_B": 0, "sample_B": np.arange(3), "position_B": 0,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=words):
        linear_sample(**arguments)
