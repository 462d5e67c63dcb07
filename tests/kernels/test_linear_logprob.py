"""Chunked log-probabilities against their definition and against float64.

T tokens   D model width   V vocabulary
"""

import warnings

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import kernels.linear_logprob as module
from kernels.linear_logprob import linear_logprob, linear_logprob_ref


def problem(T, D, V, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(T, D, generator=generator, dtype=torch.float64) * scale
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64) / D**0.5
    token_T = torch.randint(0, V, (T,), generator=generator)
    return hidden_TD.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_(), token_T


def outputs_and_gradients(function, hidden_TD, weight_VD, token_T, *args):
    logprob_T, entropy_T = function(hidden_TD, weight_VD, token_T, *args)
    # Another weight for every token and for each of the two outputs.
    a_T = torch.linspace(-1, 2, len(token_T), dtype=logprob_T.dtype)
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
    for function, args in ((linear_logprob_ref, ()), (linear_logprob, (tokens_per_chunk * V,))):
        for ours, right in zip(outputs_and_gradients(function, *inputs, *args), expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    hidden_TD, weight_VD, token_T = problem(5, 3, 4)
    assert torch.autograd.gradcheck(lambda h, w: linear_logprob(h, w, token_T, 8), (hidden_TD, weight_VD))


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 30), st.floats(0.1, 30), st.integers(0, 2**20))
def test_logprobs_are_never_positive_and_entropy_is_in_range(T, V, D, scale, seed):
    hidden_TD, weight_VD, token_T = problem(T, D, V, torch.float32, seed, scale)
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, token_T, 4 * V)
    assert (logprob_T <= 0).all()
    assert (entropy_T >= -1e-6).all() and (entropy_T <= torch.tensor(float(V)).log() + 1e-5).all()


def exact(inputs):
    """Outputs and gradients of the definition in float64, for the same rounded inputs."""
    return outputs_and_gradients(
        linear_logprob_ref, *(x.detach().double().requires_grad_() for x in inputs[:2]), inputs[2]
    )


def rounded_logits(hidden_TD, weight_VD, token_T):
    """What torch makes of it with all logits at once, in the dtype of the inputs."""
    logprob_TV = torch.nn.functional.linear(hidden_TD, weight_VD).float().log_softmax(-1)
    return logprob_TV.gather(1, token_T[:, None])[:, 0], -(logprob_TV.exp() * logprob_TV).sum(-1)


def rms(x):
    return x.double().square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_torch(dtype):
    inputs = problem(64, 32, 700, dtype, scale=2.0)
    right = exact(inputs)
    theirs = outputs_and_gradients(rounded_logits, *inputs)
    ours = outputs_and_gradients(linear_logprob, *inputs, 10 * 700)
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
    ours = outputs_and_gradients(linear_logprob, *inputs, 20)[3]
    assert rms(ours - right) <= 1.1 * rms(right.bfloat16() - right)


def test_products_of_bfloat16_with_float32_sums(monkeypatch):
    """The arithmetic of a GPU: d-logits are rounded to bfloat16, sums are not."""
    monkeypatch.setattr(module, "_operand", lambda x: x)
    monkeypatch.setattr(module, "_mm", lambda a, b, out: out.copy_(a.float() @ b.float()))
    inputs = problem(64, 32, 700, torch.bfloat16, scale=2.0)
    right = exact(inputs)
    theirs = outputs_and_gradients(rounded_logits, *inputs)
    for our, their, x in zip(outputs_and_gradients(linear_logprob, *inputs, 10 * 700), theirs, right, strict=True):
        assert rms(our - x) <= 2 * rms(their - x) + 1e-7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype):
    inputs = problem(64, 32, 700, dtype, scale=2.0)
    right = exact(inputs)
    inputs = (*(x.detach().cuda().requires_grad_() for x in inputs[:2]), inputs[2].cuda())
    theirs = (x.cpu() for x in outputs_and_gradients(rounded_logits, *inputs))
    ours = (x.cpu() for x in outputs_and_gradients(linear_logprob, *inputs, 10 * 700))
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert rms(our - x) <= 2 * rms(their - x) + 1e-6


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["huge", "dominated", "ties", "offset"])
def test_hostile_logits(kind, dtype):
    inputs = hostile(kind, dtype)
    right = exact(inputs)
    theirs = outputs_and_gradients(linear_logprob_ref, *inputs)
    ours = outputs_and_gradients(linear_logprob, *inputs, 4 * 50)
    slack = 1e-10 if dtype == torch.float64 else 16 * torch.finfo(dtype).eps
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert our.isfinite().all()
        assert rms(our - x) <= 2 * rms(their - x) + slack * (1 + rms(x))
    assert (ours[0] <= 0).all() and (ours[1] >= 0).all()


def test_inputs_of_any_layout():
    hidden_TD, weight_VD, token_T = problem(12, 6, 10)
    expected = outputs_and_gradients(linear_logprob_ref, hidden_TD, weight_VD, token_T)
    hidden_TD = hidden_TD.detach().T.contiguous().T.requires_grad_()
    weight_VD = torch.stack([weight_VD.detach()] * 2, 1)[:, 1].requires_grad_()
    token_T = torch.stack([token_T] * 2, 1)[:, 0]
    assert not (hidden_TD.is_contiguous() or weight_VD.is_contiguous() or token_T.is_contiguous())
    for ours, right in zip(
        outputs_and_gradients(linear_logprob, hidden_TD, weight_VD, token_T, 50), expected, strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_and_one_trained_input(output, frozen):
    gradients = []
    for function in (linear_logprob_ref, lambda *x: linear_logprob(*x, 30)):
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

    def loss(function, *args):
        logprob_T, entropy_T = function(weight_VD[token_T].tanh(), weight_VD, token_T.flip(0), *args)
        return logprob_T.sum() + entropy_T.square().sum()

    (right,) = torch.autograd.grad(loss(linear_logprob_ref), weight_VD)
    for value in (loss(linear_logprob, 30), checkpoint(loss, linear_logprob, 30, use_reentrant=False)):
        torch.testing.assert_close(torch.autograd.grad(value, weight_VD)[0], right, rtol=1e-10, atol=1e-12)


class Head(torch.nn.Module):
    def __init__(self, weight_VD):
        super().__init__()
        self.weight = torch.nn.Parameter(weight_VD.detach().clone())

    def forward(self, hidden_TD, token_T):
        return linear_logprob(hidden_TD, self.weight, token_T, 30)


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
        outputs_and_gradients(linear_logprob, *problem(T, D, V, dtype), 10 * V)
    assert largest.num_elements == 10 * V
    with LargestTensor() as largest:
        outputs_and_gradients(linear_logprob_ref, *problem(T, D, V, dtype))
    assert largest.num_elements == T * V


@pytest.mark.parametrize("max_elements", [10, 100])
def test_outputs_are_no_views(max_elements):
    assert not any(x._is_view() for x in linear_logprob(*problem(5, 4, 9), max_elements))


def test_one_chunk_of_many_elements():
    """Too many logits for the definition, few enough for a single chunk by default."""
    inputs = problem(3000, 2, 701, torch.float32)
    for ours, right in zip(outputs_and_gradients(linear_logprob, *inputs), exact(inputs), strict=True):
        assert rms(ours - right) <= 1e-5 * (1 + rms(right))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t: (h[None], w, t), "expected hidden"),
        (lambda h, w, t: (h[:-1], w, t), "expected hidden"),
        (lambda h, w, t: (h[:, 1:], w, t), "expected hidden"),
        (lambda h, w, t: (h, w[:0], t), "V > 0"),
        (lambda h, w, t: (h, w.float(), t), "one floating dtype"),
        (lambda h, w, t: (h.long(), w.long(), t), "one floating dtype"),
        (lambda h, w, t: (h, w, t.int()), "int64"),
        (lambda h, w, t: (h, w, t + 9), r"lie in \[0, 9\)"),
        (lambda h, w, t: (h, w, t - 9), r"lie in \[0, 9\)"),
        (lambda h, w, t: (h, w, t, 0), "max_elements"),
    ],
)
def test_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        linear_logprob(*change(*problem(5, 4, 9)))


# Chunks; small enough for the definition.
@pytest.mark.parametrize("max_elements", [10, 100])
def test_no_tokens(max_elements):
    hidden_TD, weight_VD, token_T = problem(0, 4, 9)
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, token_T, max_elements)
    assert logprob_T.shape == entropy_T.shape == (0,)
    d_hidden_TD, d_weight_VD = torch.autograd.grad((logprob_T + entropy_T).sum(), (hidden_TD, weight_VD))
    assert d_hidden_TD.shape == (0, 4) and torch.equal(d_weight_VD, torch.zeros_like(weight_VD))


def test_works_without_gradients_and_keeps_no_logits():
    inputs = problem(30, 8, 100, torch.float32)
    with torch.inference_mode():
        logprob_T, _ = linear_logprob(*inputs, 500)
    torch.testing.assert_close(logprob_T, linear_logprob_ref(*inputs)[0])
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        linear_logprob(*inputs, 500)
    assert max(sizes, default=0) < 30 * 100
