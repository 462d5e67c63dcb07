"""Tiles of a layout against its mask, and attention by tiles against the definition, forward and backward."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.tree_attention as module
from kernels.tree_attention import (
    CONFIGS,
    Config,
    Configs,
    Tiles,
    d_keys,
    d_queries,
    forward,
    has_kernel,
    tile_kinds,
    tree_attention,
    tree_attention_ref,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

H, K, C = 4, 2, 16


@st.composite
def subtree_ends(draw, longest=70):
    """Where the subtree of each token's node ends, of random trees side by side."""
    L = draw(st.integers(1, longest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    end_L = np.zeros(L, dtype=np.int64)

    def fill(start: int, stop: int) -> None:
        while start < stop:
            end = int(rng.integers(start, stop)) + 1
            own = int(rng.integers(start, end)) + 1
            end_L[start:own] = end
            fill(own, end)
            start = end

    fill(0, L)
    return end_L


def mask(end_L: np.ndarray) -> np.ndarray:
    """Pair by pair."""
    L = len(end_L)
    return np.array([[k <= q < end_L[k] for k in range(L)] for q in range(L)])


def inputs(L: int, dtype: torch.dtype, device: torch.device, seed: int = 0, heads=(H, K), width=C):
    """q, k, v that need gradients, parts of one product, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    sizes = heads[0], heads[1], heads[1]
    x, do = (torch.randn(L, n, width, generator=generator).to(dtype).to(device) for n in (sum(sizes), heads[0]))
    return [*(part.detach().requires_grad_() for part in x.split(sizes, 1)), do]


def results(form, q, k, v, do) -> list[torch.Tensor]:
    o = form(q, k, v)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), do)]


def exact(end_L, q, k, v, do) -> list[torch.Tensor]:
    """The definition in float64."""
    x = [y.detach().double().requires_grad_() for y in (q, k, v)]
    end_L = torch.from_numpy(end_L).to(q.device)
    return results(lambda q, k, v: tree_attention_ref(q, k, v, end_L), *x, do.double())


@settings(max_examples=20)
@given(subtree_ends(longest=20))
def test_the_definition_sees_what_it_should(end_L):
    q, k, v, _ = inputs(len(end_L), torch.float64, torch.device("cpu"))
    # Queries of nothing: all that is seen has the same weight.
    o = tree_attention_ref(torch.zeros_like(q), k, v, torch.from_numpy(end_L))
    is_seen_LL = torch.from_numpy(mask(end_L)).double()
    weight_LL = is_seen_LL / is_seen_LL.sum(1, keepdim=True)
    for head in range(H):
        torch.testing.assert_close(o[:, head], weight_LL @ v[:, head // (H // K)], rtol=1e-12, atol=1e-12)


@given(subtree_ends(), st.sampled_from([1, 4, 16, 32]), st.sampled_from([1, 8, 16, 64]))
def test_tiles_are_whole_or_in_part_what_the_mask_says(end_L, queries, keys):
    """Of a tile beyond the layout the mask says no: it is never whole."""
    L = len(end_L)
    is_seen = np.pad(mask(end_L), ((0, -L % queries), (0, -L % keys)))
    is_seen = is_seen.reshape(len(is_seen) // queries, queries, -1, keys)
    is_whole, is_part = tile_kinds(end_L, queries, keys)
    assert np.array_equal(is_whole, is_seen.all((1, 3)))
    assert np.array_equal(is_part, is_seen.any((1, 3)) & ~is_whole)


@given(subtree_ends(), st.booleans())
def test_each_tile_lists_those_that_it_meets_and_the_busiest_come_first(end_L, by_keys):
    met = Tiles(end_L, torch.device("cpu")).met(16, 8, by_keys)
    numbers = 0
    for kind, first_X, others in zip(
        tile_kinds(end_L, 16, 8), (met.whole_first_X, met.part_first_X), (met.whole, met.part), strict=True
    ):
        is_XY = kind.T if by_keys else kind
        for x in range(len(is_XY)):
            assert others[first_X[x] : first_X[x + 1]].tolist() == np.flatnonzero(is_XY[x]).tolist()
        numbers = numbers + is_XY.sum(1)
        assert len(others) > first_X[-1]  # one is read ahead
    order_X = met.order_X[: len(numbers)]
    assert sorted(order_X.tolist()) == list(range(len(numbers)))
    assert (np.diff(numbers[order_X.numpy()]) <= 0).all()
    assert all(x.storage_offset() * x.itemsize % 16 == 0 for x in met.tensors)  # or kernels would be compiled anew


@pytest.mark.parametrize("tma", [False, True])
@settings(max_examples=12)
@given(end_L=subtree_ends(), seed=st.integers(0, 2**20))
def test_kernels_give_what_the_definition_gives(triton_device, tma, end_L, seed):
    """Tiles of other sizes in each pass, the last ones ragged; in float32, where nothing is rounded."""
    sizes = ((16, 32), (32, 16), (16, 64))
    configs = [Config(queries=m, keys=n, num_warps=4, num_stages=2, tma=tma) for m, n in sizes]
    x = inputs(len(end_L), torch.float32, triton_device, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FLOAT32", Configs(*configs))
        found = results(lambda q, k, v: tree_attention(q, k, v, Tiles(end_L, triton_device)), *x)
    for ours, expected in zip(found, exact(end_L, *x), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 2), (5, 1)])
def test_any_number_of_heads_share_keys(triton_device, heads):
    end_L = np.array([50] * 9 + [30] * 21 + [50] * 20)
    x = inputs(len(end_L), torch.float32, triton_device, heads=heads)
    found = results(lambda q, k, v: tree_attention(q, k, v, Tiles(end_L, triton_device)), *x)
    for ours, expected in zip(found, exact(end_L, *x), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=5)
@given(end_L=subtree_ends())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_16_bits_the_error_is_that_of_rounding(triton_device, dtype, end_L):
    configs = Config(queries=32, keys=16, num_warps=4, num_stages=2, tma=False)
    x = inputs(len(end_L), dtype, triton_device)
    with pytest.MonkeyPatch.context() as patch:
        for arch in CONFIGS:
            patch.setitem(CONFIGS, arch, Configs(*[configs] * 3))
        found = results(lambda q, k, v: tree_attention(q, k, v, Tiles(end_L, triton_device)), *x)
    for ours, expected in zip(found, exact(end_L, *x), strict=True):
        assert ours.dtype == dtype
        # The interpreter truncates where it should round to bfloat16.
        assert (ours.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * (1 + expected.abs().max())


def test_scores_of_thousands_hide_nothing_and_overflow_nowhere(triton_device):
    end_L = np.array([40] * 5 + [20] * 15 + [40] * 20)
    q, k, v, do = inputs(40, torch.float32, triton_device)
    x = [(q.detach() * 60).requires_grad_(), (k.detach() * 60).requires_grad_(), v, do]
    found = results(lambda q, k, v: tree_attention(q, k, v, Tiles(end_L, triton_device)), *x)
    for ours, expected in zip(found, exact(end_L, *x), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("L", [1, 33])
def test_a_layout_that_is_not_contiguous_is_taken(triton_device, L):
    """Heads before tokens, as `transpose` leaves them."""
    end_L = np.full(L, L)
    x = [y.detach().transpose(0, 1).contiguous().transpose(0, 1) for y in inputs(L, torch.float32, triton_device)]
    x = [*(y.requires_grad_() for y in x[:3]), x[3]]
    assert L == 1 or not (x[0].is_contiguous() or x[3].is_contiguous())
    found = results(lambda q, k, v: tree_attention(q, k, v, Tiles(end_L, triton_device)), *x)
    for ours, expected in zip(found, exact(end_L, *x), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("shapes", "dtype", "told"),
    [
        (((8, 4, 16), (8, 2, 16), (9, 2, 16)), torch.float32, "v"),
        (((8, 4, 16), (8, 3, 16), (8, 3, 16)), torch.float32, "4 query heads cannot share 3"),
        (((8, 4, 24), (8, 2, 24), (8, 2, 24)), torch.float32, "width of 16, 32, 64, 128, 256, got 24"),
        (((9, 4, 16), (9, 2, 16), (9, 2, 16)), torch.float32, "tiles are of 8 tokens, q has 9"),
        (((8, 4, 16), (8, 2, 16), (8, 2, 16)), torch.float64, "q must be"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, dtype, told):
    tiles = Tiles(np.full(8, 8), torch.device("cpu"))
    with pytest.raises(ValueError, match=told):
        tree_attention(*(torch.zeros(shape, dtype=dtype) for shape in shapes), tiles)


@pytest.mark.skipif(module.triton is None, reason="needs Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_on_a_gpu_every_dtype_that_a_run_may_have_has_a_kernel(dtype):
    """float32 is what a recipe has that says nothing; the definition would keep weights [H, L, L] of every layer."""
    on_gpu = {C: has_kernel(torch.device("cuda", 0), dtype, C) for C in (16, 24, 64, 128, 256)}
    is_known = dtype != torch.float64
    assert on_gpu == {16: is_known, 24: False, 64: is_known, 128: is_known, 256: is_known and dtype != torch.float32}
    assert not has_kernel(torch.device("cpu"), dtype, 64)


# Of a training step: a prompt, two responses, four judgments of each; and padding.
def step_ends(lengths=(700, 600, 500)) -> np.ndarray:
    prompt, response, judgment = lengths
    side = [response + 4 * judgment] * response
    for i in range(4):
        side += [response + (i + 1) * judgment] * judgment
    sides = np.concatenate([side, np.array(side) + len(side)]) + prompt
    end_L = np.concatenate([[prompt + 2 * len(side)] * prompt, sides])
    return np.concatenate([end_L, [len(end_L) + 9] * 9])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "width", "dtype"),
    [
        ((16, 8), 128, torch.bfloat16),
        ((14, 2), 64, torch.float16),
        ((8, 8), 256, torch.bfloat16),
        ((4, 2), 32, torch.float32),
        ((8, 4), 128, torch.float32),
    ],
)
def test_shipped_tiles_on_a_gpu(heads, width, dtype):
    """Against float64, no worse than torch's attention in these bits; and the same bits in every run."""
    end_L, device = step_ends(), torch.device("cuda")
    x = inputs(len(end_L), dtype, device, heads=heads, width=width)
    tiles, end = Tiles(end_L, device), torch.from_numpy(end_L).to(device)
    found, again = (results(lambda q, k, v: tree_attention(q, k, v, tiles), *x) for _ in range(2))
    theirs = results(lambda q, k, v: tree_attention_ref(q, k, v, end), *x)
    for ours, repeated, rounded, expected in zip(found, again, theirs, exact(end_L, *x), strict=True):
        assert torch.equal(ours, repeated)
        error, their_error = ((y.double() - expected).norm() / expected.norm() for y in (ours, rounded))
        assert error <= 1.5 * their_error + 1e-4


@pytest.mark.gpu
def test_backward_may_be_the_first_thing_that_a_thread_does():
    """Autograd's own, for example; a descriptor needs a context, which a new thread has none of."""
    device, failed = torch.device("cuda"), []
    tiles = Tiles(np.full(256, 256), device)
    q, k, v, do = inputs(256, torch.bfloat16, device, heads=(4, 2), width=128)
    o, lse = forward(q, k, v, tiles)

    def alone() -> None:
        try:
            dq, delta = d_queries(q, k, v, o, do, lse, tiles)
            d_keys(q, k, v, do, lse, delta, tiles)
            torch.cuda.synchronize()
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert not failed
