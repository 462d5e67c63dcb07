"""Attention over trees without a mask, and by tiles, against its definition by a mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import tree_attention, trunk_attention
from trainer.token_tree import Leaf, MicroBatch, Nodes, TokenTree
from trainer.tree_attention import dense_attention

CPU = torch.device("cpu")
H, K, C = 6, 2, 8


@st.composite
def layouts(draw, longest=40):
    """Of trees of random depth, some of them flat, with padding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_tokens, length = draw(st.integers(1, 3)), draw(st.integers(1, longest))
    trees = []
    for shares in draw(st.lists(st.booleans(), min_size=1, max_size=3)):
        paths = [rng.integers(0, num_tokens, rng.integers(1, length + 1)) for _ in range(draw(st.integers(1, 9)))]
        # Copies that part somewhere.
        paths += [np.append(path[: rng.integers(0, len(path) + 1)], path[:7]) for path in paths]
        trees.append(TokenTree.of([Leaf(path.tolist(), []) for path in paths], shares))
    return MicroBatch.of(trees, CPU).nodes


def inputs(nodes: Nodes, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v that need gradients, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    L = int(nodes.end_N[-1])
    x = [torch.randn(1, L, heads, C, generator=generator, dtype=torch.float64).to(dtype) for heads in (H, K, K, H)]
    return [*(y.requires_grad_() for y in x[:3]), x[3]]


def results(attend, q, k, v, do) -> list[torch.Tensor]:
    o = attend(0, q, k, v)
    return [o, *torch.autograd.grad((o * do).sum(), (q, k, v))]


def by_definition(nodes: Nodes) -> torch.Tensor:
    """Pair by pair: k's node is q's or above it, and k is not later."""
    node_of = np.repeat(np.arange(len(nodes)), nodes.end_N - nodes.start_N)
    return torch.tensor(
        [[bool(k in nodes.path(node_of[q])) and k <= q for k in range(len(node_of))] for q in range(len(node_of))]
    )


@settings(max_examples=20)
@given(layouts(longest=8))
def test_the_mask_is_the_definition(nodes):
    q, k, v, _ = inputs(nodes, torch.float64)
    is_seen_LL = by_definition(nodes)
    # Queries of nothing: all that is seen has the same weight.
    o = dense_attention(nodes, CPU)(0, torch.zeros_like(q), k, v)
    weight_LL = is_seen_LL.double() / is_seen_LL.sum(1, keepdim=True)
    for head in range(H):
        torch.testing.assert_close(o[0, :, head], weight_LL @ v[0, :, head // (H // K)], rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(layouts(), st.sampled_from([1, 4, 32]))
def test_trunks_and_tails_give_what_the_mask_gives(nodes, short):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk_attention, "_SHORT", short)
        attend = trunk_attention.trunk_attention(nodes)
    x = inputs(nodes, torch.float64)
    for found, expected in zip(results(attend, *x), results(dense_attention(nodes, CPU), *x), strict=True):
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)


@settings(max_examples=10)
@given(layouts(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_other_types_are_no_worse_than_with_a_mask(nodes, dtype):
    x = inputs(nodes, dtype)
    exact = results(dense_attention(nodes, CPU), *(y.detach().double().requires_grad_() for y in x))
    ours, masked = (
        results(attend, *x) for attend in (trunk_attention.trunk_attention(nodes), dense_attention(nodes, CPU))
    )
    for found, theirs, expected in zip(ours, masked, exact, strict=True):
        assert found.dtype == dtype
        error, their_error = ((y - expected).abs().max() for y in (found, theirs))
        assert error <= 2 * their_error + torch.finfo(dtype).eps * expected.abs().max()


def test_a_weight_that_would_overflow_is_no_weight():
    """Scores of thousands: a place that only fills up must not see what it may not."""
    trees = [TokenTree.of([Leaf([1] * 40 + [i] * (3 * i + 1), []) for i in range(6)])]
    nodes = MicroBatch.of(trees, CPU).nodes
    q, k, v, do = inputs(nodes, torch.float32)
    x = [(q.detach() * 30).requires_grad_(), (k.detach() * 30).requires_grad_(), v, do]
    for found, expected in zip(
        results(trunk_attention.trunk_attention(nodes), *x), results(dense_attention(nodes, CPU), *x)
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=10)
@given(layouts())
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
def test_a_gpu_takes_tiles_or_where_there_is_no_kernel_the_definition(triton_device, nodes):
    """q, k and v are parts of one product, as the decoder hands them over."""
    L = int(nodes.end_N[-1])
    torch.manual_seed(0)
    for heads, width, dtype in (((4, 2, 2), 16, torch.float32), ((4, 2, 2), 24, torch.float64)):
        parts = torch.randn(1, L, sum(heads), width, dtype=dtype, device=triton_device).split(heads, 2)
        x = [part.requires_grad_() for part in (y.detach() for y in parts)]
        do = torch.randn(1, L, 4, width, dtype=dtype, device=triton_device)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_attention, "has_kernel", lambda device, dtype, C: C == 16)
            found = results(tree_attention.tiled_attention(nodes, triton_device), *x, do)
        for ours, expected in zip(found, results(dense_attention(nodes, triton_device), *x, do), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_pair_is_read_by_few_calls():
    """A pair of n = 8: one per trunk, and causal ones of ends that are about as long."""
    prompt, sides = [1] * 300, ([2] * 200, [3] * 210)
    leaves = [Leaf(prompt + side, [4, *([i] * (80 + i))]) for side in sides for i in range(8)]
    trunks, tails = trunk_attention.plan(TokenTree.of(leaves).nodes)
    assert sorted(len(trunk.key_X) for trunk in trunks) == [201, 211, 300]
    assert [batch.num for batch in tails] == [1, 2, 16]
