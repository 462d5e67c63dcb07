"""Chunked log-probabilities against their definition and against float64.

T tokens   D model width   V vocabulary
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_torch(dtype):
    """The yardstick is what torch makes of the same rounded inputs with all logits at once."""
    inputs = problem(64, 32, 700, dtype, scale=2.0)
    exact = outputs_and_gradients(
        linear_logprob_ref, *(x.detach().double().requires_grad_() for x in inputs[:2]), inputs[2]
    )

    def torchs_own(hidden_TD, weight_VD, token_T):
        logprob_TV = torch.nn.functional.linear(hidden_TD, weight_VD).float().log_softmax(-1)
        return logprob_TV.gather(1, token_T[:, None])[:, 0], -(logprob_TV.exp() * logprob_TV).sum(-1)

    theirs = outputs_and_gradients(torchs_own, *inputs)
    ours = outputs_and_gradients(linear_logprob, *inputs, 10 * 700)
    for our, their, right in zip(ours, theirs, exact, strict=True):
        error, yardstick = ((x.double() - right).square().mean().sqrt() for x in (our, their))
        assert error <= 2 * yardstick + 1e-7
    assert ours[0].dtype == ours[1].dtype == torch.float32


def test_no_tokens():
    hidden_TD, weight_VD, token_T = problem(0, 4, 9)
    logprob_T, entropy_T = linear_logprob(hidden_TD, weight_VD, token_T)
    assert logprob_T.shape == entropy_T.shape == (0,)


def test_works_without_gradients_and_keeps_no_logits():
    inputs = problem(30, 8, 100, torch.float32)
    with torch.inference_mode():
        logprob_T, _ = linear_logprob(*inputs, 500)
    torch.testing.assert_close(logprob_T, linear_logprob_ref(*inputs)[0])
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        linear_logprob(*inputs, 500)
    assert max(sizes, default=0) < 30 * 100
