"""Each fused kernel against its definition: to the bit where no sum is rounded, else within units of the last place.

A mean of squares of small whole numbers is exact in any order. So with such inputs all that is rounded is what the
definition rounds, and the interpreter has to give its bits: that is where each rounding is held to its place.

    R rows   B sequences   T positions   D model width   F feed-forward width   H query heads   K key/value heads
    C head width   N pages   P tokens of a page
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import kernels.fused as module
from kernels.fused import (
    add_rms_norm,
    add_rms_norm_ref,
    norm_rotary,
    norm_rotary_ref,
    rms_norm,
    rms_norm_ref,
    swiglu,
    swiglu_ref,
    write_pages,
    write_pages_ref,
)
from kernels.jit import INTERPRETED

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
few_examples = settings(max_examples=20)


def normal(seed: int, *shape: int, dtype=torch.float32, device="cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def whole(seed: int, *shape: int, dtype=torch.float32, device="cpu") -> Tensor:
    """Whole numbers from -8 to 8."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def tables(seed: int, B: int, T: int, C: int, device="cpu") -> tuple[Tensor, Tensor]:
    """cos and sin of random angles. The halves differ, as they never do in a decoder: each has to go to its place."""
    angle_BTC = 3 * normal(seed, B, T, C)
    return angle_BTC.cos().to(device), angle_BTC.sin().to(device)


def assert_close(ours: Tensor, right: Tensor, scale: Tensor | None = None, units: float = 1.0) -> None:
    """Within some units of the last place of `right`, or of what its terms may amount to, and mostly equal."""
    assert ours.dtype == right.dtype and ours.shape == right.shape
    info = torch.finfo(right.dtype)
    # On the host: a GPU's powers of two are not exact.
    ours, right, scale = ours.cpu(), right.cpu(), (right if scale is None else scale).cpu()
    scale = scale.double().abs().clamp(min=info.tiny)
    unit = info.eps * 2.0 ** scale.log2().floor()
    error = (ours.double() - right.double()).abs()
    assert (error <= units * unit).all(), (error / unit).max()
    if right.dtype != torch.float32 and right.numel() >= 1000:
        assert (error > 0).double().mean() < 0.02


def assert_same(ours: Tensor, right: Tensor) -> None:
    """To the bit under the interpreter; on a GPU a square root may be off by a last place before it is rounded."""
    if INTERPRETED:
        assert ours.dtype == right.dtype and torch.equal(ours, right)
    else:
        assert_close(ours, right, units=4 if right.dtype == torch.float32 else 2)


# 1: no sum; 6: less than a block; 64 and 1024: whole; 896: Qwen2.5-0.5B's; 1100: ragged, and several warps.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 6, 64, 896, 1024, 1100])
def test_norms_are_the_definition(triton_device, D, dtype):
    for make, check in ((whole, assert_same), (normal, partial(assert_close, units=4))):
        if make is whole and D & (D - 1):
            continue  # a mean of any other number is rounded, on a GPU in another way
        x, delta = (make(seed, 3, D, dtype=dtype, device=triton_device) for seed in (0, 1))
        weight_D = normal(2, D, dtype=dtype, device=triton_device)
        none, out = module._rms_norm_triton(x, None, weight_D, EPS)
        check(out, rms_norm_ref(x, weight_D, EPS))
        total, out = module._rms_norm_triton(x, delta, weight_D, EPS)
        right_total, right = add_rms_norm_ref(x, delta, weight_D, EPS)
        assert none is None and torch.equal(total, right_total)
        check(out, right)


def test_a_sum_is_rounded_before_it_is_normed(triton_device):
    """256 + 1 is 256 in bfloat16: the norm of the sum that was not rounded would be 1.0039."""
    x_1D, delta_1D = (torch.tensor([values], dtype=torch.bfloat16) for values in ([256.0, 256.0], [1.0, 0.0]))
    moved = [x.to(triton_device) for x in (x_1D, delta_1D, torch.ones(2, dtype=torch.bfloat16))]
    total, out = module._rms_norm_triton(*moved, 0.0)
    assert total.tolist() == [[256.0, 256.0]] and out.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 1024, 1500])
def test_swiglu_is_the_definition(triton_device, width, dtype):
    gate, up = (4 * normal(0, 2, 3, 2 * width, dtype=dtype, device=triton_device)).chunk(2, -1)
    out = module._swiglu_triton(gate, up)
    assert out.is_contiguous()
    # exp of a float32 errs with |x|; in 16 bits that shows as a silu, and so a product, next to the right one.
    assert_close(out, swiglu_ref(gate, up), units=2 if dtype != torch.float32 else 16)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # numpy's
def test_swiglu_far_out(triton_device):
    gate = torch.tensor([-torch.inf, -100.0, -80.0, -0.0, 0.0, 100.0, torch.inf, torch.nan], device=triton_device)
    for dtype in (torch.float32, torch.bfloat16):
        up = torch.full_like(gate, 2.0).to(dtype)
        ours, right = module._swiglu_triton(gate.to(dtype), up), swiglu_ref(gate.to(dtype), up)
        torch.testing.assert_close(ours, right, equal_nan=True, atol=1e-30, rtol=1e-5)


# Heads of Qwen3 and Qwen2.5, of a block and a bit, and of a width that is no power of two.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "K", "C"), [(32, 8, 128), (14, 2, 64), (9, 9, 16), (3, 1, 6), (2, 1, 2), (4, 2, 256)])
def test_rotary_alone_is_the_definition_to_the_bit(triton_device, H, K, C, dtype):
    q, k, _ = normal(0, 2, 3, H + 2 * K, C, dtype=dtype, device=triton_device).split((H, K, K), 2)
    cos, sin = tables(1, 2, 3, C, triton_device)
    for ours, right in zip(
        module._norm_rotary_triton(q, k, None, None, EPS, cos, sin),
        norm_rotary_ref(q, k, None, None, EPS, cos, sin),
        strict=True,
    ):
        assert ours.dtype == dtype and ours.is_contiguous() and torch.equal(ours, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "K", "C"), [(32, 8, 128), (9, 9, 16), (3, 1, 6), (2, 1, 256)])
def test_norm_and_rotary_are_the_definition(triton_device, H, K, C, dtype):
    for make in (whole, normal):
        q, k, _ = make(0, 1, 5, H + 2 * K, C, dtype=dtype, device=triton_device).split((H, K, K), 2)
        weights = [normal(seed, C, dtype=dtype, device=triton_device) for seed in (1, 2)]
        cos, sin = tables(3, 1, 5, C, triton_device)
        ours = module._norm_rotary_triton(q, k, *weights, EPS, cos, sin)
        right = norm_rotary_ref(q, k, *weights, EPS, cos, sin)
        for x, normed, weight_C, y in zip((q, k), ours, weights, right, strict=True):
            if make is whole and C & (C - 1) == 0 and INTERPRETED:
                assert torch.equal(normed, y)
            else:  # terms may cancel: units of the larger of the two that are added
                unit = rms_norm_ref(x, weight_C, EPS).abs()
                low, high = unit.chunk(2, -1)
                assert_close(normed, y, torch.maximum(unit, torch.cat((high, low), -1)), units=4)


@few_examples
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.sampled_from([2, 48, 64, 128]), st.integers(0, 99))
def test_on_a_cpu_heads_of_both_are_turned_as_one_to_the_bit(T, K, H, C, seed):
    q, k, _ = normal(seed, 2, T, H + 2 * K, C).split((H, K, K), 2)
    weights, (cos, sin) = [normal(i, C) for i in (1, 2)], tables(3, 2, T, C)
    ours, right = (form(q, k, *weights, EPS, cos, sin) for form in (norm_rotary, norm_rotary_ref))
    assert all(map(torch.equal, ours, right))


def test_one_norm_alone(triton_device):
    q, k = (whole(seed, 1, 3, 2, 8, device=triton_device).transpose(1, 2) for seed in (0, 1))  # heads apart, too
    weight_C, (cos, sin) = normal(2, 8, device=triton_device), tables(3, 1, 2, 8, triton_device)
    for weights in ((weight_C, None), (None, weight_C)):
        ours = module._norm_rotary_triton(q, k, *weights, EPS, cos, sin)
        for x, y in zip(ours, norm_rotary_ref(q, k, *weights, EPS, cos, sin), strict=True):
            torch.testing.assert_close(x, y)


def test_positions_of_one_row_serve_all_sequences(triton_device):
    q, k = (normal(seed, 3, 2, 2, 8, device=triton_device) for seed in (0, 1))
    cos, sin = tables(2, 1, 2, 8, triton_device)
    ours = module._norm_rotary_triton(q, k, None, None, EPS, cos, sin)
    for x, y in zip(ours, norm_rotary_ref(q, k, None, None, EPS, cos, sin), strict=True):
        assert torch.equal(x, y)


@few_examples
@given(st.integers(0, 9), st.integers(1, 12), st.sampled_from([1, 6, 16, 128, 200]), st.integers(0, 99), st.data())
def test_pages_are_written_where_the_definition_writes(triton_device, T, K, C, seed, data):
    """Into a slice of a cache [layers, 2, N, K, P, C], from parts of one product; nothing else changes."""
    dtype = data.draw(st.sampled_from(DTYPES))
    N, P = 5, 4
    place_T = torch.randperm(N * P, generator=torch.Generator().manual_seed(seed))[:T].to(triton_device)
    page_T, slot_T = place_T // P, place_T % P
    _, k_TKC, v_TKC = normal(seed, T, 3 * K, C, dtype=dtype, device=triton_device).chunk(3, 1)
    caches = [torch.full((3, 2, N, K, P, C), torch.nan, dtype=dtype, device=triton_device) for _ in range(2)]
    for cache, form in zip(caches, (module._write_pages_triton, write_pages_ref), strict=True):
        form(k_TKC, v_TKC, page_T, slot_T, *cache[1])
    assert torch.equal(*(cache.view(torch.int16 if dtype.itemsize == 2 else torch.int32) for cache in caches))
    # The other way round, tokens before heads, as strided views: the layout of kernels/paged_attention.
    turned = [torch.full((N, P, K, C), torch.nan, dtype=dtype, device=triton_device) for _ in range(2)]
    module._write_pages_triton(k_TKC, v_TKC, page_T, slot_T, *(pages.transpose(1, 2) for pages in turned))
    for pages, cache in zip(turned, caches[1][1], strict=True):
        torch.testing.assert_close(pages.transpose(1, 2), cache, rtol=0, atol=0, equal_nan=True)


def test_pages_beyond_31_bits_are_reached(triton_device):
    """2^31 elements from one page to the next but one, of memory that is never touched but there."""
    if INTERPRETED:
        pages_NKPC = torch.from_numpy(np.zeros(3 << 30, dtype=np.int16)).view(torch.bfloat16)
    else:
        pages_NKPC = torch.zeros(3 << 30, dtype=torch.bfloat16, device=triton_device)
    pages_NKPC = pages_NKPC.view(3, 1, 1 << 30, 1)
    k_TKC = normal(0, 2, 1, 1, dtype=torch.bfloat16, device=triton_device)
    page_T, slot_T = (torch.tensor(x, device=triton_device) for x in ([2, 0], [(1 << 30) - 1, 5]))
    module._write_pages_triton(k_TKC, k_TKC, page_T, slot_T, pages_NKPC, pages_NKPC)
    assert pages_NKPC[2, 0, -1, 0] == k_TKC[0, 0, 0] and pages_NKPC[0, 0, 5, 0] == k_TKC[1, 0, 0]


@few_examples
@given(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99))
def test_any_leading_dimensions_and_strides(triton_device, leading, seed):
    wide = normal(seed, *leading, 8, 2, device=triton_device)
    for x in (wide[..., 0], wide.transpose(-1, -2)[..., :8], wide.flatten(-2)[..., 3:11]):
        weight_D = wide.new_ones(16)[::2]
        apart = torch.cat((x, x), -1)[..., :8]  # rows as far apart as of no other
        for delta in (None, x, apart):
            total, out = module._rms_norm_triton(x, delta, weight_D, EPS)
            y = x if total is None else 2 * x
            assert out.shape == x.shape and (total is None or torch.equal(total, y))
            torch.testing.assert_close(out, rms_norm_ref(y, weight_D, EPS))
        torch.testing.assert_close(module._swiglu_triton(x, apart), swiglu_ref(x, x))


def test_a_row_does_not_depend_on_the_others(triton_device):
    x_TD, weight_D = normal(0, 33, 896, device=triton_device), normal(1, 896, device=triton_device)
    _, together_TD = module._rms_norm_triton(x_TD, None, weight_D, EPS)
    _, alone_1D = module._rms_norm_triton(x_TD[7:8], None, weight_D, EPS)
    assert torch.equal(together_TD[7:8], alone_1D)


def test_without_a_gpu_results_and_gradients_are_those_of_the_definitions():
    def run(norm, add, product, heads) -> list[Tensor]:
        x, delta, weight_D = (
            normal(seed, *shape).requires_grad_() for seed, shape in enumerate([(2, 3, 8)] * 2 + [(8,)])
        )
        total, out = add(x, delta, weight_D, EPS)
        q, k = heads(total[:, :, None], out[:, :, None], weight_D, weight_D, EPS, *tables(3, 2, 3, 8))
        result = product(q, k) + norm(x, weight_D, EPS)[:, :, None]
        return [result, *torch.autograd.grad(result.square().sum(), (x, delta, weight_D))]

    ours = run(rms_norm, add_rms_norm, swiglu, norm_rotary)
    assert all(map(torch.equal, ours, run(rms_norm_ref, add_rms_norm_ref, swiglu_ref, norm_rotary_ref)))


def test_the_definitions_are_plain_formulas_in_float64():
    x, weight_D = normal(0, 5, 8, dtype=torch.float64), normal(1, 8, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight_D, 0.5), x / ((x**2).mean(-1, keepdim=True) + 0.5) ** 0.5 * weight_D)
    torch.testing.assert_close(swiglu(x, x + 1), x / (1 + (-x).exp()) * (x + 1))
    q, angle_W = x[None, :, None], torch.linspace(0.0, 3.0, 4)
    cos, sin = (f(torch.cat((angle_W, angle_W))).expand(1, 5, 8) for f in (torch.cos, torch.sin))
    turned, _ = norm_rotary(q, q, None, None, EPS, cos, sin)
    plane = torch.complex(*q.chunk(2, -1)) * torch.complex(cos[..., None, :4], sin[..., None, :4]).to(torch.complex128)
    torch.testing.assert_close(turned, torch.cat((plane.real, plane.imag), -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: module._rms_norm_triton(x, None, x.new_ones(3), EPS), r"weight_D must .* \(4,\), got \(3,\)"),
        (lambda x: module._rms_norm_triton(x, x[:1], x[0], EPS), r"delta must have shape \(2, 4\), got \(1, 4\)"),
        (lambda x: module._swiglu_triton(x, x[:, :2]), r"up must have shape \(2, 4\), got \(2, 2\)"),
        (
            lambda x: module._norm_rotary_triton(
                x[None, :, None], x[None, :1, None], None, None, EPS, x[None], x[None]
            ),
            r"k must have shape \(1, 2, 1, 4\), got \(1, 1, 1, 4\)",
        ),
        (
            lambda x: module._norm_rotary_triton(x[None, :, None], x[None, :, None], x, None, EPS, x[None], x[None]),
            r"q_weight must have shape \(4,\), got \(2, 4\)",
        ),
        (
            lambda x: module._write_pages_triton(
                x[:, None], x[:, None], x[:1, 0].long(), x[:, 0].long(), *[x[None, None]] * 2
            ),
            r"page must have shape \(2,\), got \(1,\)",
        ),
        (
            lambda x: module._write_pages_triton(
                x[:, None], x[:, None], *[x[:, 0].long()] * 2, x[None, None], x.T.contiguous().T[None, None]
            ),
            "values must have the strides of keys",
        ),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 4))


def qwen3_8b(T: int, dtype=torch.bfloat16, device="cuda") -> dict[str, tuple]:
    """(function, definition, arguments) of a layer of Qwen3-8B."""
    x, delta = (normal(seed, 1, T, 4096, dtype=dtype, device=device) for seed in (0, 1))
    weight_D, *weights = (normal(2, n, dtype=dtype, device=device) for n in (4096, 128, 128))
    gate, up = normal(3, 1, T, 2 * 12_288, dtype=dtype, device=device).chunk(2, -1)
    q, k, _ = normal(4, 1, T, 48, 128, dtype=dtype, device=device).split((32, 8, 8), 2)
    angles = tables(5, 1, T, 128, device)
    return {
        "rms_norm": (rms_norm, rms_norm_ref, (x, weight_D, EPS)),
        "add_rms_norm": (add_rms_norm, add_rms_norm_ref, (x, delta, weight_D, EPS)),
        "swiglu": (swiglu, swiglu_ref, (gate, up)),
        "norm_rotary": (norm_rotary, norm_rotary_ref, (q, k, *weights, EPS, *angles)),
        "rotary": (norm_rotary, norm_rotary_ref, (q, k, None, None, EPS, *angles)),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 64, 300])
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu", "norm_rotary", "rotary"])
def test_on_a_gpu(name, T, dtype):
    function, definition, arguments = qwen3_8b(T, dtype)[name]
    with torch.no_grad():
        ours, right = function(*arguments), definition(*arguments)
    for i, (x, y) in enumerate(
        zip(*((one if isinstance(one, tuple) else (one,)) for one in (ours, right)), strict=True)
    ):
        if name == "rotary" or (name, i) == ("add_rms_norm", 0):
            assert torch.equal(x, y)
        elif name == "norm_rotary":
            unit = rms_norm_ref(arguments[i], arguments[2 + i], EPS).abs()
            assert_close(x, y, torch.maximum(unit, torch.cat(unit.chunk(2, -1)[::-1], -1)), units=8)
        else:
            assert_close(x, y, units=32 if dtype == torch.float32 else 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu", "norm_rotary", "rotary"])
def test_on_a_gpu_gradients_are_those_of_the_definition(name):
    for T in (3, 70, 300):  # one length, then any
        function, definition, arguments = qwen3_8b(T)[name]
        found = []
        for form, dtype in ((function, torch.bfloat16), (definition, torch.bfloat16), (definition, torch.float32)):
            inputs = [
                x.detach().to(dtype).requires_grad_() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
                for x in arguments
            ]
            outputs = form(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            ups = [normal(9 + i, *x.shape, device="cuda").to(dtype) for i, x in enumerate(outputs)]
            leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
            found.append([*outputs, *torch.autograd.grad(outputs, leaves, ups)])
        found = [[x.detach().float() for x in tensors] for tensors in found]
        for ours, plain, exact in zip(*found, strict=True):  # no further from the truth than plain torch
            error, most = (float((x - exact).norm()) for x in (ours, plain))
            assert error <= 1.1 * most + 1e-6 * float(exact.norm())


@pytest.mark.gpu
def test_on_a_gpu_a_graph_replays_them_without_waiting():
    cases = qwen3_8b(64)
    k_TKC, v_TKC = (normal(seed, 64, 8, 128, dtype=torch.bfloat16, device="cuda") for seed in (6, 7))
    page_T, slot_T = torch.arange(64, device="cuda") // 16, torch.arange(64, device="cuda") % 16
    pages_2NKPC = torch.zeros(2, 6, 8, 16, 128, dtype=torch.bfloat16, device="cuda")

    def run() -> list[Tensor]:
        write_pages(k_TKC, v_TKC, page_T, slot_T, *pages_2NKPC)
        results = [function(*arguments) for function, _, arguments in cases.values()]
        return [x for one in results for x in (one if isinstance(one, tuple) else (one,))]

    with torch.no_grad():
        right = run()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                recorded = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        pages_2NKPC.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert all(map(torch.equal, recorded, right))
    for pages_NKPC, x_TKC in zip(pages_2NKPC, (k_TKC, v_TKC), strict=True):
        assert torch.equal(pages_NKPC[page_T, :, slot_T], x_TKC) and not pages_NKPC[4:].any()


@pytest.mark.parametrize("width", [1, 4, 24, 36, 40, 50, 52, 64])
def test_swiglu_of_whole_loops_has_rows_that_do_not_depend_on_the_others(width):
    rows = module.rows_alike(width)
    generator = torch.Generator().manual_seed(width)
    num = max(40, 40_000 // (rows * width))  # enough for torch to share it between two threads, where there are two
    gate, up = (torch.randn(num * rows, width, generator=generator) for _ in range(2))
    whole = module.swiglu_ref(gate, up)
    for start, end in ((0, 1), (0, 3), (3, 4), (5, 12), (39, 40), *((0, end) for end in range(num - 8, num))):
        some = slice(start * rows, end * rows)
        assert torch.equal(module.swiglu_ref(gate[some].clone(), up[some].clone()), whole[some])


@pytest.mark.parametrize("width", [1, 4, 24, 36, 52, 64, 100])
def test_swiglu_of_halves_of_one_product_is_that_of_two_to_the_bit(width):
    gate, up = torch.randn(300, 2 * width, generator=torch.Generator().manual_seed(width)).chunk(2, dim=-1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))


def test_what_is_compiled_is_compiled_once_for_all_lengths(monkeypatch):
    """Without torch's code generator, which takes seconds for each of them."""
    counter, compiled = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda form, **_: compiled(form, fullgraph=True, backend=counter))
    module._compiled.cache_clear()
    for definition in (module.rms_norm_ref, module.add_rms_norm_ref, module.swiglu_ref, module.norm_rotary_ref):
        before = counter.frame_count
        for T in (160, 64, 2, 32):
            x_1TD, weight_D = torch.randn(1, T, 64, requires_grad=True) + 0, torch.ones(64, requires_grad=True)
            q_1THC, k_1TKC, _ = x_1TD.split((32, 16, 16), -1)
            q_1THC, k_1TKC = (y.unflatten(-1, (-1, 16)) for y in (q_1THC, k_1TKC))
            arguments = {
                "rms_norm_ref": (x_1TD, weight_D, 1e-6),
                "add_rms_norm_ref": (x_1TD, x_1TD * 2, weight_D, 1e-6),
                "swiglu_ref": (x_1TD, x_1TD * 2),
                "norm_rotary_ref": (
                    q_1THC,
                    k_1TKC,
                    weight_D[:16],
                    weight_D[:16],
                    1e-6,
                    *x_1TD[..., :16].split(16, -1) * 2,
                ),
            }[definition.__name__]
            torch.testing.assert_close(module._compiled(definition)(*arguments), definition(*arguments))
        assert counter.frame_count == before + 1, definition.__name__
    module._compiled.cache_clear()
