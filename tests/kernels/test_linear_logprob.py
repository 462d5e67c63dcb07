"""Log-probabilities by torch over chunks and by Triton, against their definition and against float64.

T tokens   D model width   V vocabulary
"""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from kernels.jit import cdiv
from kernels.linear_logprob import (
    CONFIGS,
    Config,
    _chunks,
    _linear_logprob_triton,
    _LinearLogprob,
    _rows_per_chunk,
    _whole_blocks,
    linear_logprob,
    linear_logprob_ref,
)
from kernels.linear_sample import linear_sample

# The interpreter warns where nan and overflow are what a test is about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

# So that inputs of tests are several splits, the last one ragged, of several tiles each.
SMALL = dict(block_t=16, block_v=32, block_d=16, split_v=64, num_warps=4, num_stages=2)
POINTERS, TMA = Config(**SMALL, tma=False), Config(**SMALL, tma=True)


def problem(T, D, V, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(T, D, generator=generator, dtype=torch.float64) * scale
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64) / D**0.5
    token_T = torch.randint(0, V, (T,), generator=generator)
    return hidden_TD.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_(), token_T


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes inputs of tests several blocks, tiles and splits."""
    monkeypatch.setitem(CONFIGS, "sm_80", POINTERS)
    monkeypatch.setitem(CONFIGS, "sm_90", TMA)


def by_torch(hidden_TD, weight_VD, token_T, temperature=1.0, max_elements=1 << 23):
    """The chunked form, however small the input."""
    return _LinearLogprob.apply(hidden_TD, weight_VD, token_T, temperature, max_elements, False)


def by_triton(hidden_TD, weight_VD, token_T, temperature=1.0, max_elements=1 << 28):
    """What CUDA tensors of 16 bits take, whatever the device and the dtype."""
    return _LinearLogprob.apply(hidden_TD, weight_VD, token_T, temperature, max_elements, True)


def to(device, inputs):
    hidden_TD, weight_VD, token_T = inputs
    moved = (x.detach().to(device).requires_grad_() for x in (hidden_TD, weight_VD))
    return *moved, token_T.to(device)


def outputs_and_gradients(function, hidden_TD, weight_VD, token_T, *args, **options):
    logprob_T, entropy_T = function(hidden_TD, weight_VD, token_T, *args, **options)
    # Another weight for every token and for each of the two outputs.
    a_T = torch.linspace(-1, 2, len(token_T), dtype=logprob_T.dtype, device=logprob_T.device)
    loss = (a_T * logprob_T + a_T.flip(0) * entropy_T).sum()
    return logprob_T.detach(), entropy_T.detach(), *torch.autograd.grad(loss, (hidden_TD, weight_VD))


def by_formula(hidden_TD, weight_VD, token_T):
    """One token at a time: log p = z - log Σ exp z, H = -Σ p log p."""
    logprobs, entropies = [], []
    for hidden_D, token in zip(hidden_TD, token_T, strict=True):
        z_V = weight_VD @ hidden_D
        p_V = z_V.exp() / z_V.exp().sum()
        logprobs.append(p_V[token].log())
        entropies.append(-(p_V * p_V.log()).sum())
    return torch.stack(logprobs), torch.stack(entropies)


# One token; a chunk that divides T; one that does not; more room than needed.
@pytest.mark.parametrize("tokens_per_chunk", [1, 4, 5, 100])
@pytest.mark.parametrize("V", [1, 7, 50])
def test_chunks_change_nothing(V, tokens_per_chunk):
    inputs = problem(12, 6, V)
    expected = outputs_and_gradients(by_formula, *inputs)
    for function, options in ((linear_logprob_ref, {}), (linear_logprob, {"max_elements": tokens_per_chunk * V})):
        for ours, right in zip(outputs_and_gradients(function, *inputs, **options), expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    hidden_TD, weight_VD, token_T = problem(5, 3, 4)
    for temperature in (1.0, 0.6):
        assert torch.autograd.gradcheck(
            lambda h, w, temperature=temperature: linear_logprob(h, w, token_T, temperature, max_elements=8),
            (hidden_TD, weight_VD),
        )


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 30), st.floats(0.1, 30), st.integers(0, 2**20))
def test_logprobs_are_never_positive_and_entropy_is_in_range(T, V, D, scale, seed):
    hidden_TD, weight_VD, token_T = problem(T, D, V, torch.float32, seed, scale)
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, token_T, max_elements=4 * V)
    assert (logprob_T <= 0).all()
    assert (entropy_T >= -1e-6).all() and (entropy_T <= torch.tensor(float(V)).log() + 1e-5).all()


def exact(inputs, temperature=1.0):
    """Outputs and gradients of the definition in float64, for the same rounded inputs."""
    return outputs_and_gradients(
        linear_logprob_ref, *(x.detach().double().requires_grad_() for x in inputs[:2]), inputs[2], temperature
    )


def rounded_logits(hidden_TD, weight_VD, token_T, temperature=1.0):
    """What torch makes of it with all logits at once, in the dtype of the inputs."""
    logprob_TV = (torch.nn.functional.linear(hidden_TD, weight_VD).float() / temperature).log_softmax(-1)
    return logprob_TV.gather(1, token_T[:, None])[:, 0], -(logprob_TV.exp() * logprob_TV).sum(-1)


def rms(x):
    return x.double().square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_torch(dtype):
    inputs = problem(64, 32, 700, dtype, scale=2.0)
    right = exact(inputs)
    theirs = outputs_and_gradients(rounded_logits, *inputs)
    ours = outputs_and_gradients(linear_logprob, *inputs, max_elements=10 * 700)
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert rms(our - x) <= 2 * rms(their - x) + 1e-7
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert (ours[2].dtype, ours[3].dtype) == (dtype, dtype)
    if dtype == torch.bfloat16:  # logits that are not rounded
        for our, their, x in zip(ours[:2], theirs, right):
            assert rms(our - x) < 0.01 * rms(their - x)


def test_weight_gradients_are_summed_in_float32():
    """300 chunks of one token: a bfloat16 sum would stall."""
    inputs = problem(300, 8, 20, torch.bfloat16)
    right = exact(inputs)[3]
    ours = outputs_and_gradients(linear_logprob, *inputs, max_elements=20)[3]
    assert rms(ours - right) <= 1.1 * rms(right.bfloat16() - right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [POINTERS, TMA, *CONFIGS.values()], ids=["pointers", "tma", *CONFIGS])
def test_triton_forward_is_no_less_accurate_than_torch(config, dtype, triton_device):
    if triton_device.type == "cuda" and config in CONFIGS.values() and dtype == torch.float32:
        pytest.skip("float32 blocks of that size do not fit; they are not shipped")
    inputs = problem(35, 40, 333, dtype, scale=2.0)
    right = exact(inputs, 0.7)[:2]
    with torch.no_grad():
        theirs = rounded_logits(*inputs, 0.7)
        logprob_T, entropy_T, max_T, logsum_T = _linear_logprob_triton(*to(triton_device, inputs), 0.7, config)
        z_TV = inputs[0].double() @ inputs[1].double().T / 0.7
    for our, their, x in zip((logprob_T, entropy_T), theirs, right, strict=True):
        assert our.dtype == torch.float32
        assert rms(our.cpu() - x) <= (2 if dtype == torch.float32 else 0.01) * rms(their - x) + 1e-6
    torch.testing.assert_close(max_T.cpu().double(), z_TV.amax(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((max_T + logsum_T).cpu().double(), z_TV.logsumexp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_gradients_are_no_less_accurate_than_torch(dtype, triton_device, small_blocks):
    """d-logits are rounded to 16 bits, sums are not. Chunks of 10 tokens."""
    if triton_device.type == "cuda" and dtype == torch.float32:
        pytest.skip("float32 goes to torch on CUDA")
    inputs = problem(35, 40, 333, dtype, scale=2.0)
    right = exact(inputs, 0.7)
    theirs = outputs_and_gradients(rounded_logits, *inputs, 0.7)
    ours = outputs_and_gradients(by_triton, *to(triton_device, inputs), 0.7, 10 * 333)
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert rms(our.cpu() - x) <= 2 * rms(their - x) + 1e-6
    assert (ours[2].dtype, ours[3].dtype) == (dtype, dtype)


def test_triton_sums_weight_gradients_in_float32(triton_device):
    """200 chunks of one token. d-logits are rounded before the sum, so it is 2 where a bfloat16 sum has 8."""
    inputs = problem(200, 8, 20, torch.bfloat16)
    right = exact(inputs)[3]
    ours = outputs_and_gradients(by_triton, *to(triton_device, inputs), 1.0, 20)[3].cpu()
    assert rms(ours - right) <= 3 * rms(right.bfloat16() - right)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype):
    """The public function, at a size with several shipped blocks in every direction."""
    inputs = problem(2200, 192, 2500, dtype, scale=2.0)  # more than 16 blocks of 128 tokens: a second group
    right = exact(inputs, 0.7)
    inputs = to("cuda", inputs)
    theirs = (x.cpu() for x in outputs_and_gradients(rounded_logits, *inputs, 0.7))
    ours = (x.cpu() for x in outputs_and_gradients(linear_logprob, *inputs, 0.7, max_elements=500 * 2500))
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert rms(our - x) <= 2 * rms(their - x) + 1e-6


# 1: less than a block; 16, 33: whole blocks, one more. 1: one-token vocabulary; 64, 65: whole splits, one more.
@pytest.mark.parametrize("config", [POINTERS, TMA], ids=["pointers", "tma"])
@pytest.mark.parametrize(("T", "D", "V"), [(1, 1, 1), (16, 16, 64), (33, 17, 65)])
def test_triton_at_the_edges_of_blocks(T, D, V, config, triton_device):
    inputs = problem(T, D, V, torch.float32)
    for token in (0, V - 1):
        inputs[2].fill_(token)
        ours = _linear_logprob_triton(*to(triton_device, inputs), 1.0, config)[:2]
        for our, x in zip(ours, exact(inputs)[:2], strict=True):
            torch.testing.assert_close(our.cpu().double(), x, rtol=1e-5, atol=1e-6)


def test_triton_splits_change_nothing(triton_device):
    inputs = to(triton_device, problem(35, 40, 333, torch.float32))
    expected = linear_logprob_ref(*inputs)
    for split_v in (32, 96, 512):
        config = Config(**SMALL | {"split_v": split_v}, tma=False)
        for ours, right in zip(_linear_logprob_triton(*inputs, 1.0, config)[:2], expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


@pytest.fixture
def nan_memory():
    """Memory that nobody has written to holds nan, not the results of an earlier run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("config", [POINTERS, TMA], ids=["pointers", "tma"])
def test_triton_takes_every_block_of_every_group(config, triton_device, nan_memory):
    """Two whole groups of 16 blocks of tokens and one of a single block; two splits."""
    inputs = problem(16 * 16 * 2 + 5, 16, 70, torch.float16)
    ours = _linear_logprob_triton(*to(triton_device, inputs), 1.0, config)[:2]
    for our, right in zip(ours, exact(inputs)[:2], strict=True):
        torch.testing.assert_close(our.cpu().double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [POINTERS, TMA], ids=["pointers", "tma"])
# 32-bit offsets reach from the first to the last row of any block; not in a block of 32 rows, which is copied.
@pytest.mark.parametrize("far", [1 << 26, 1 << 27])
def test_triton_with_rows_far_apart(far, config, triton_device):
    """2^31 elements from the first row to the last; memory between rows is reserved and never touched."""
    X = (1 << 31) // far + 1
    inputs = to(triton_device, problem(X, 16, X, torch.float16))
    memory = torch.empty((X - 1) * far + 32, dtype=torch.float16, device=triton_device)
    views = [memory.as_strided((X, 16), (far, 1), start) for start in (0, 16)]
    for view, x in zip(views, inputs, strict=False):
        view.copy_(x.detach())
    ours = _linear_logprob_triton(*views, inputs[2], 1.0, config)
    expected = _linear_logprob_triton(*inputs, 1.0, config)
    assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))


@pytest.mark.parametrize(
    ("x_XD", "is_taken"),
    [
        (torch.ones(20, 32), True),
        (torch.ones(20, 64)[:, 32:], True),
        (torch.ones(20, 32)[3:], True),
        (torch.ones(20, 40)[:, 1:33], False),
        (torch.ones(20, 36)[:, :32], False),
        (torch.ones(20, 31), False),
        (torch.ones(32, 20).T, False),
        (torch.ones(20, 64)[:, ::2], False),
        (torch.ones(32).expand(20, 32), False),
        (torch.ones(512).as_strided((20, 32), (16, 1)), False),
        (torch.empty_strided((20, 32), (1 << 27, 1), device="meta"), True),
        (torch.empty_strided((20, 32), (1 << 28, 1), device="meta"), False),
    ],
)
def test_rows_are_taken_as_they_are_or_copied(x_XD, is_taken):
    blocks_XD = _whole_blocks(x_XD, 16, 16)
    assert (blocks_XD is x_XD) == is_taken
    assert blocks_XD.shape == (len(x_XD), 32)
    if not is_taken:
        assert blocks_XD.is_contiguous()
        assert x_XD.is_meta or torch.equal(blocks_XD[:, : x_XD.shape[1]], x_XD)


@pytest.mark.parametrize("config", [POINTERS, TMA], ids=["pointers", "tma"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:33],
        lambda x: x.as_strided((20, 32), (36, 1)),
        lambda x: x[:1, :32].expand(20, -1),
        lambda x: x[:, :32:2],
    ],
    ids=["off a boundary", "rows off a boundary", "one row", "columns apart"],
)
def test_triton_with_views(view, config, triton_device):
    generator = torch.Generator().manual_seed(0)
    both_2XY = torch.randn(2, 20, 40, generator=generator).to(triton_device, torch.float16)
    hidden_TD, weight_VD = view(both_2XY[0]), view(both_2XY[1].clone())
    token_T = torch.arange(20, device=triton_device)
    ours = _linear_logprob_triton(hidden_TD, weight_VD, token_T, 1.0, config)
    expected = _linear_logprob_triton(hidden_TD.clone(), weight_VD.clone(), token_T, 1.0, config)
    assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))


def test_triton_gives_a_token_the_same_bits_in_any_batch(triton_device):
    hidden_TD, weight_VD, token_T = to(triton_device, problem(50, 32, 333, torch.float16))
    together = _linear_logprob_triton(hidden_TD, weight_VD, token_T, 1.0, POINTERS)
    for rows in (slice(0, 20), slice(32, 50)):
        alone = _linear_logprob_triton(hidden_TD[rows], weight_VD, token_T[rows], 1.0, POINTERS)
        assert all(torch.equal(x[rows], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("form", [by_torch, by_triton])
def test_triton_and_torch_do_the_same_twice(form, triton_device):
    inputs = to(triton_device if form is by_triton else "cpu", problem(35, 40, 333, torch.bfloat16))
    first, second = (outputs_and_gradients(form, *inputs, 0.7, 10 * 333) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@settings(max_examples=20)
@given(st.floats(0.05, 20), st.integers(0, 2**20))
def test_a_temperature_divides_hidden_states(temperature, seed):
    inputs = problem(7, 5, 11, seed=seed)
    divided = outputs_and_gradients(lambda h, *x: linear_logprob_ref(h / temperature, *x), *inputs)
    for function in (linear_logprob_ref, lambda *x: by_torch(*x, 33)):
        for ours, right in zip(outputs_and_gradients(function, *inputs, temperature), divided, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", [by_torch, by_triton])
def test_a_temperature_of_a_power_of_two_divides_to_the_bit(form, triton_device):
    hidden_TD, weight_VD, token_T = to(triton_device if form is by_triton else "cpu", problem(9, 16, 70, torch.float16))
    for temperature in (0.5, 4.0):
        tempered = outputs_and_gradients(form, hidden_TD, weight_VD, token_T, temperature)
        divided = outputs_and_gradients(lambda h, *x, t=temperature: form(h / t, *x), hidden_TD, weight_VD, token_T)
        assert all(torch.equal(x, y) for x, y in zip(tempered[:2], divided[:2], strict=True))
        for ours, right in zip(tempered[2:], divided[2:], strict=True):
            torch.testing.assert_close(ours, right, rtol=2e-3, atol=1e-5)


def hostile(kind, dtype):
    hidden_TD, weight_VD, token_T = problem(13, 6, 50, dtype)
    with torch.no_grad():
        if kind == "huge":  # logits of some ±1e4
            hidden_TD.mul_(5e3)
        elif kind == "dominated":  # one token has all the mass; the others are asked for too
            hidden_TD[:, 0], weight_VD[7, 0] = 30.0, 30.0
            token_T[::2] = 7
        elif kind == "ties":
            weight_VD[:] = weight_VD[:1]
        elif kind == "offset":  # the same large number on every logit: differences must survive
            hidden_TD[:, 0], weight_VD[:, 0] = 128.0, 64.0
    return hidden_TD, weight_VD, token_T


def d_logits_slack(hidden_TD, weight_VD, token_T, eps_d_logit):
    """What the rounding of d-logits, and logits that forward and backward sum in another order, may do to gradients.

    Two float32 sums of a logit are some eps |z| apart, so p is off by as much, relatively.
    """
    hidden_TD, weight_VD = (x.detach().double() for x in (hidden_TD, weight_VD))
    z_TV = (hidden_TD @ weight_VD.T).requires_grad_()
    a_T = torch.linspace(-1, 2, len(token_T), dtype=torch.float64)
    logprob_TV = z_TV.log_softmax(-1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    loss = (a_T * logprob_TV.gather(1, token_T[:, None])[:, 0] + a_T.flip(0) * entropy_T).sum()
    (dz_TV,) = torch.autograd.grad(loss, z_TV)
    with torch.no_grad():
        a_T1, b_T1 = a_T[:, None], a_T.flip(0)[:, None]
        slope_TV = logprob_TV.exp() * ((a_T1 + b_T1 * (logprob_TV + entropy_T[:, None])).abs() + b_T1.abs())
        off_TV = eps_d_logit * dz_TV.abs() + torch.finfo(torch.float32).eps * z_TV.abs().amax(-1)[:, None] * slope_TV
        return rms(off_TV @ weight_VD.abs()), rms(off_TV.T @ hidden_TD.abs())


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(by_torch, torch.float64), (by_torch, torch.float32), (by_triton, torch.float32), (by_triton, torch.bfloat16)],
)
@pytest.mark.parametrize("kind", ["huge", "dominated", "ties", "offset"])
def test_hostile_logits(kind, form, dtype, triton_device, small_blocks):
    device = triton_device if form is by_triton else torch.device("cpu")
    if device.type == "cuda" and dtype == torch.float32:
        pytest.skip("float32 goes to torch on CUDA")
    inputs = hostile(kind, dtype)
    right = exact(inputs)
    theirs = outputs_and_gradients(linear_logprob_ref, *inputs)
    ours = [x.cpu() for x in outputs_and_gradients(form, *to(device, inputs), 1.0, 4 * 50)]
    eps = 1e-11 if dtype == torch.float64 else torch.finfo(torch.float32).eps
    slack = [0, 0, *(d_logits_slack(*inputs, torch.finfo(dtype).eps / 2) if form is by_triton else (0, 0))]
    for our, their, x, more in zip(ours, theirs, right, slack, strict=True):
        assert our.isfinite().all()
        assert rms(our - x) <= 2 * rms(their - x) + 16 * eps * (1 + rms(x)) + more
    assert (ours[0] <= 0).all() and (ours[1] >= 0).all()


FORMS = [linear_logprob_ref, by_torch, by_triton]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["nan", "inf", "all -inf", "nan weight"])
def test_no_number_for_logits_that_have_none(kind, form, triton_device, small_blocks):
    inputs = problem(20, 8, 150, torch.float16)
    expected = linear_logprob_ref(*(x.detach() for x in inputs))
    is_bad_T = torch.zeros(20, dtype=torch.bool)
    with torch.no_grad():
        if kind == "nan weight":  # of a token that nobody asks for
            inputs[1][100] = torch.nan
            inputs[2][:] = 7
            is_bad_T[:] = True
        else:
            inputs[0][5, 0] = {"nan": torch.nan, "inf": torch.inf, "all -inf": -torch.inf}[kind]
            inputs[1][:, 0] = inputs[1][:, 0].abs() + 0.1 if kind == "all -inf" else inputs[1][:, 0]
            expected = linear_logprob_ref(*inputs)
            is_bad_T[5] = True
    outputs = outputs_and_gradients(form, *to(triton_device if form is by_triton else "cpu", inputs))
    for ours, right in zip(outputs[:2], expected, strict=True):
        assert torch.equal(ours.cpu().isnan(), is_bad_T)
        torch.testing.assert_close(ours.cpu()[~is_bad_T], right[~is_bad_T], rtol=1e-5, atol=1e-5)
    assert outputs[2][is_bad_T.to(outputs[2].device)].isnan().all() and outputs[3].isnan().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_without_mass", [3, 149])  # 149: tiles and splits with nothing else, one token with all
def test_logits_of_minus_infinity_have_no_mass(num_without_mass, form, triton_device, small_blocks):
    """They come of finite operands: 1e30 · -1e30 overflows in float32, but not in float64."""
    hidden_TD, weight_VD, token_T = problem(20, 8, 150, torch.bfloat16)
    with torch.no_grad():
        hidden_TD[:, 0], weight_VD[:, 0] = 1e30, 0
        weight_VD[:num_without_mass, 0] = -1e30
    token_T = token_T.clamp(min=num_without_mass)
    inputs = hidden_TD, weight_VD, token_T
    outputs = outputs_and_gradients(form, *to(triton_device if form is by_triton else "cpu", inputs))
    for i, (ours, right) in enumerate(zip(outputs, exact(inputs), strict=True)):
        ours, right = ours.cpu().double(), right.double()
        if i == 3:  # the first column is 1e30 times the others
            ours, right = ours / torch.tensor([1e30] + [1] * 7), right / torch.tensor([1e30] + [1] * 7)
        assert rms(ours - right) <= (1e-6 if i < 2 else torch.finfo(torch.bfloat16).eps) * (1 + rms(right))
    token_T[:] = 0
    with torch.no_grad():
        logprob_T, entropy_T = form(*to(triton_device if form is by_triton else "cpu", inputs))
    assert (logprob_T == -torch.inf).all() and entropy_T.isfinite().all()


@pytest.mark.parametrize("max_elements", [30, 100])  # chunks; small enough for the definition
def test_unchecked_ids_out_of_range(max_elements):
    hidden_TD, weight_VD, token_T = problem(6, 4, 10)
    a_T = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    wrong_T = token_T.clone()
    wrong_T[1], wrong_T[4] = -100, 10
    is_right_T = token_T == wrong_T
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, wrong_T, max_elements=max_elements, check=False)
    assert torch.equal(logprob_T.isnan(), ~is_right_T)
    expected, expected_entropy = linear_logprob_ref(hidden_TD, weight_VD, token_T)
    torch.testing.assert_close(logprob_T[is_right_T], expected[is_right_T])
    torch.testing.assert_close(entropy_T, expected_entropy)
    # No gradient through them, whatever comes down.
    ours = torch.autograd.grad((a_T * logprob_T).sum(), (hidden_TD, weight_VD))
    right = torch.autograd.grad((a_T * expected)[is_right_T].sum(), (hidden_TD, weight_VD))
    for our, x in zip(ours, right, strict=True):
        torch.testing.assert_close(our, x)


def test_inputs_of_any_layout():
    hidden_TD, weight_VD, token_T = problem(12, 6, 10)
    expected = outputs_and_gradients(linear_logprob_ref, hidden_TD, weight_VD, token_T)
    hidden_TD = hidden_TD.detach().T.contiguous().T.requires_grad_()
    weight_VD = torch.stack([weight_VD.detach()] * 2, 1)[:, 1].requires_grad_()
    token_T = torch.stack([token_T] * 2, 1)[:, 0]
    assert not (hidden_TD.is_contiguous() or weight_VD.is_contiguous() or token_T.is_contiguous())
    for ours, right in zip(
        outputs_and_gradients(linear_logprob, hidden_TD, weight_VD, token_T, max_elements=50), expected, strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_and_one_trained_input(output, frozen):
    gradients = []
    for function in (linear_logprob_ref, lambda *x: linear_logprob(*x, max_elements=30)):
        hidden_TD, weight_VD, token_T = problem(7, 4, 10)
        (hidden_TD if frozen == "hidden" else weight_VD).requires_grad_(False)
        function(hidden_TD, weight_VD, token_T)[output].cumsum(0).sum().backward()
        gradients.append((hidden_TD.grad, weight_VD.grad))
    assert [g is None for g in gradients[0]] == [g is None for g in gradients[1]]
    for ours, right in zip(gradients[1], gradients[0], strict=True):
        if right is not None:
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


def test_tied_weights_and_activation_checkpointing():
    _, weight_VD, token_T = problem(9, 4, 10)

    def loss(function, **options):
        logprob_T, entropy_T = function(weight_VD[token_T].tanh(), weight_VD, token_T.flip(0), **options)
        return logprob_T.sum() + entropy_T.square().sum()

    (right,) = torch.autograd.grad(loss(linear_logprob_ref), weight_VD)
    for value in (
        loss(linear_logprob, max_elements=30),
        checkpoint(loss, linear_logprob, use_reentrant=False, max_elements=30),
    ):
        torch.testing.assert_close(torch.autograd.grad(value, weight_VD)[0], right, rtol=1e-10, atol=1e-12)


class Head(torch.nn.Module):
    def __init__(self, weight_VD):
        super().__init__()
        self.weight = torch.nn.Parameter(weight_VD.detach().clone())

    def forward(self, hidden_TD, token_T):
        return linear_logprob(hidden_TD, self.weight, token_T, max_elements=30)


def test_inside_a_sharded_module():
    hidden_TD, weight_VD, token_T = problem(9, 4, 10)
    right = outputs_and_gradients(linear_logprob_ref, hidden_TD, weight_VD, token_T)[3]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        head = fully_shard(Head(weight_VD), mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*view.*")
            outputs_T = head(hidden_TD, token_T)
        a_T = torch.linspace(-1, 2, 9, dtype=torch.float64)
        (a_T * outputs_T[0] + a_T.flip(0) * outputs_T[1]).sum().backward()
        torch.testing.assert_close(head.weight.grad.full_tensor(), right, rtol=1e-10, atol=1e-12)
    finally:
        dist.destroy_process_group()


class LargestTensor(TorchDispatchMode):
    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_makes_all_logits(dtype):
    T, D, V = 64, 8, 300
    with LargestTensor() as largest:
        outputs_and_gradients(linear_logprob, *problem(T, D, V, dtype), max_elements=10 * V)
    assert largest.num_elements == 10 * V
    with LargestTensor() as largest:
        outputs_and_gradients(linear_logprob_ref, *problem(T, D, V, dtype))
    assert largest.num_elements == T * V


@pytest.mark.parametrize("max_elements", [10, 100])
def test_outputs_are_no_views(max_elements):
    assert not any(x._is_view() for x in linear_logprob(*problem(5, 4, 9), max_elements=max_elements))


def test_one_chunk_of_many_elements():
    """Too many logits for the definition, few enough for a single chunk by default."""
    inputs = problem(3000, 2, 701, torch.float32)
    for ours, right in zip(outputs_and_gradients(linear_logprob, *inputs), exact(inputs), strict=True):
        assert rms(ours - right) <= 1e-5 * (1 + rms(right))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t: (h[None], w, t), "hidden must have dimensions"),
        (lambda h, w, t: (h[:-1], w, t), "T is 4 in hidden"),
        (lambda h, w, t: (h[:, 1:], w, t), "D is 3 in hidden"),
        (lambda h, w, t: (h, w[:0], t), "V > 0"),
        (lambda h, w, t: (h, w.to("meta"), t), "weight is on meta"),
        (lambda h, w, t: (h, w.float(), t), "weight must be torch.float64, got torch.float32"),
        (lambda h, w, t: (h.long(), w.long(), t), "hidden must be torch.float32 or torch.bfloat16 or"),
        (
            lambda h, w, t: (h.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn), t),
            "or torch.float64, got torch.float8",
        ),
        (lambda h, w, t: (h, w, t.int()), "token must be torch.int64"),
        (lambda h, w, t: (h, w, t + 9), r"token must lie in \[0, 9\)"),
        (lambda h, w, t: (h, w, t - 9), r"token must lie in \[0, 9\)"),
        (lambda h, w, t: (h, w, t, 0), "temperature must be positive and finite, in float32 its inverse too, got 0"),
        (lambda h, w, t: (h, w, t, 1e-39), "temperature must .* got 1e-39"),
        (lambda h, w, t: (h, w, t, "0.7"), "temperature must .* got '0.7'"),
        (lambda h, w, t: (h, w, t, None), "temperature must .* got None"),
        (lambda h, w, t: (h, w, t, torch.tensor(0.7)), "temperature must .* got tensor"),
        (lambda h, w, t: (h, w, t, -1.0), "temperature"),
        (lambda h, w, t: (h, w, t, float("inf")), "temperature"),
        (lambda h, w, t: (h, w, t, float("nan")), "temperature"),
    ],
)
def test_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        linear_logprob(*change(*problem(5, 4, 9)))


def test_says_what_is_wrong_with_options():
    inputs = problem(5, 4, 9)
    for max_elements in (0, -5, 1e1, 8.5, "9"):
        with pytest.raises(ValueError, match=f"max_elements must be an int of at least 1, got {max_elements!r}"):
            linear_logprob(*inputs, max_elements=max_elements)
    with pytest.raises(ValueError, match=r"token must be torch\.int64"):
        linear_logprob(*inputs[:2], inputs[2].int(), check=False)
    with pytest.raises(TypeError, match="token must be a tensor"):
        linear_logprob(*inputs[:2], inputs[2].tolist())


@pytest.mark.parametrize("max_elements", [20, 100])
def test_a_temperature_is_any_real_number(max_elements):
    inputs = problem(5, 4, 9)
    expected = linear_logprob(*inputs, 0.5, max_elements=max_elements)
    for temperature in (Fraction(1, 2), np.float32(0.5)):
        outputs_T = linear_logprob(*inputs, temperature, max_elements=max_elements)
        assert all(torch.equal(x, y) for x, y in zip(outputs_T, expected, strict=True))


def test_splits_are_whole_tiles():
    with pytest.raises(AssertionError, match="a tile would reach into the next split"):
        Config(**SMALL | {"split_v": 48}, tma=False)


@pytest.mark.parametrize("max_elements", [40, 4000])  # chunks; small enough for the definition
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_no_logits(dtype, max_elements):
    inputs = problem(8, 32, 40, dtype, scale=2.0)
    for function in (linear_logprob_ref, lambda *x: linear_logprob(*x, max_elements=max_elements)):
        expected = outputs_and_gradients(function, *inputs)
        for cast_to in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=cast_to):
                outputs_T = function(*inputs)
            for ours, right in zip(outputs_T, expected[:2], strict=True):
                assert torch.equal(ours, right)


@pytest.mark.gpu
def test_on_the_device_of_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    inputs = problem(40, 32, 300, torch.bfloat16)
    first, second = (outputs_and_gradients(linear_logprob, *to(f"cuda:{i}", inputs)) for i in range(2))
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("T", "most", "sizes"),
    [
        (2048, 1766, [1024, 1024]),
        (4096, 1766, [1408, 1408, 1280]),  # 1366 would be no multiple of 128
        (3000, 1000, [1000, 1000, 1000]),  # nor is this, but there is no room for more
        (60, 55, [30, 30]),
        (13, 5, [5, 5, 3]),
        (7, 100, [7]),
        (3, 1, [1, 1, 1]),
        (0, 5, []),
    ],
)
def test_chunks_are_equal(T, most, sizes):
    found = list(_chunks(torch.empty(T, 2), 3, most * 3 + 2, torch.float32, torch.bfloat16))
    assert [len(z_NV) for _, z_NV, _ in found] == sizes
    assert all(z_NV.shape == dz_NV.shape == (rows.stop - rows.start, 3) for rows, z_NV, dz_NV in found)
    assert torch.equal(torch.cat([torch.arange(T)[rows] for rows, _, _ in found] or [torch.arange(0)]), torch.arange(T))


@given(st.integers(0, 5000), st.integers(1, 3000))
def test_chunks_are_as_few_as_can_be(T, most):
    num_rows = _rows_per_chunk(T, most)
    assert num_rows <= min(T, most)
    assert cdiv(T, num_rows or 1) <= cdiv(T, most)


@pytest.mark.parametrize("form", [by_torch, by_triton])
@pytest.mark.parametrize("tokens_per_chunk", [9, 4])
def test_no_memory_is_read_before_it_is_written(tokens_per_chunk, form, triton_device, nan_memory):
    inputs = problem(9, 16, 50, torch.float32 if form is by_torch else torch.float16)
    outputs = outputs_and_gradients(
        form, *to("cpu" if form is by_torch else triton_device, inputs), 1.0, tokens_per_chunk * 50
    )
    assert all(x.isfinite().all() for x in outputs)


# Chunks; small enough for the definition.
@pytest.mark.parametrize("max_elements", [10, 100])
def test_no_tokens(max_elements):
    hidden_TD, weight_VD, token_T = problem(0, 4, 9)
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, token_T, max_elements=max_elements)
    assert logprob_T.shape == entropy_T.shape == (0,)
    d_hidden_TD, d_weight_VD = torch.autograd.grad((logprob_T + entropy_T).sum(), (hidden_TD, weight_VD))
    assert d_hidden_TD.shape == (0, 4) and torch.equal(d_weight_VD, torch.zeros_like(weight_VD))


def test_triton_without_tokens_and_without_contiguity(triton_device):
    for T in (0, 12):
        hidden_TD, weight_VD, token_T = to(triton_device, problem(T, 32, 50, torch.bfloat16))
        expected = outputs_and_gradients(by_triton, hidden_TD, weight_VD, token_T)
        hidden_TD = hidden_TD.detach().T.contiguous().T.requires_grad_()
        weight_VD = torch.stack([weight_VD.detach()] * 2, 2)[:, :, 0].requires_grad_()
        token_T = torch.stack([token_T] * 2, 1)[:, 0]
        for ours, right in zip(outputs_and_gradients(by_triton, hidden_TD, weight_VD, token_T), expected, strict=True):
            assert torch.equal(ours, right)


@pytest.mark.parametrize("output", [0, 1])
def test_triton_with_one_output_and_one_trained_input(output, triton_device):
    inputs = to(triton_device, problem(7, 16, 50, torch.float16))
    right = torch.autograd.grad(linear_logprob_ref(*inputs)[output].sum(), inputs[:2])  # sum: strides of 0 come down
    for i in range(2):
        (gradient,) = torch.autograd.grad(by_triton(*inputs)[output].sum(), inputs[i])
        torch.testing.assert_close(gradient, right[i], rtol=2e-3, atol=2e-3)


def test_works_without_gradients_and_keeps_no_logits():
    inputs = problem(30, 8, 100, torch.float32)
    with torch.inference_mode():
        logprob_T, _ = linear_logprob(*inputs, max_elements=500)
    torch.testing.assert_close(logprob_T, linear_logprob_ref(*inputs)[0])
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        linear_logprob(*inputs, max_elements=500)
    assert max(sizes, default=0) < 30 * 100


@pytest.mark.parametrize("V", [7, 128, 300, 4096, 5000])  # less than a tile, one, a remainder, one block, two
def test_like_sample_gives_the_bits_that_linear_sample_records(V):
    """For each token, whatever the number of rows; gradients are the usual ones."""
    generator = torch.Generator().manual_seed(V)
    hidden_TD, weight_VD = (torch.randn(X, 24, generator=generator) for X in (48, V))
    drawn = linear_sample(hidden_TD, weight_VD, 3, torch.arange(48), 0)
    for rows in (slice(0, 48), slice(5, 6), slice(10, 31)):
        operands = hidden_TD[rows].clone().requires_grad_(), weight_VD.clone().requires_grad_()
        outputs = linear_logprob(*operands, drawn.token_B[rows], like_sample=True)
        assert torch.equal(outputs[0], drawn.logprob_B[rows])
        assert torch.equal(outputs[1], drawn.entropy_B[rows])
        gradients = torch.autograd.grad(sum(x_T.sum() for x_T in outputs), operands)
        plain = linear_logprob_ref(*operands, drawn.token_B[rows])
        for found, right in zip(gradients, torch.autograd.grad(sum(x_T.sum() for x_T in plain), operands), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_like_sample_is_for_float32_on_a_cpu():
    hidden_TD, weight_VD, token_T = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^like_sample needs float32 on a CPU and temperature 1, got torch\.float64"):
        linear_logprob(hidden_TD.double(), weight_VD.double(), token_T, like_sample=True)
    with pytest.raises(ValueError, match=r"got torch\.float32 on cpu and 0\.5$"):
        linear_logprob(hidden_TD, weight_VD, token_T, 0.5, like_sample=True)
