"""An engine that is slow and obviously right, and what it is compared by.

V vocabulary   T tokens
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from kernels.sample import sample
from rollout.decoder import all_logits, causal_attention
from rollout.params import SamplingParams
from rollout.vocabulary import special_token_ids
from tests.models import config, random_decoder, tokenizer

V = 340
ENDS = special_token_ids(tokenizer())
SOME_TOKENS = tuple(range(20))  # as stop tokens they end a completion after about 17 tokens, each at another length


def decoder(seed=0, dtype=torch.float32, std=0.15, **changes):
    return random_decoder(config(vocab_size=V, tie_word_embeddings=True, **changes), seed, std).to(dtype)


def context(length, seed=0):
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(1000 * seed + length)).tolist()


# (context, params) of a few requests.
requests = st.lists(
    st.tuples(
        st.integers(1, 70).map(context),
        st.builds(
            SamplingParams,
            n=st.integers(1, 5),
            max_tokens=st.sampled_from([1, 2, 9, 14]),
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_k=st.sampled_from([0, 0, 30]),
            top_p=st.sampled_from([1.0, 1.0, 0.8]),
            min_p=st.sampled_from([0.0, 0.0, 0.05]),
            stop=st.sampled_from([(), (), ("e",), ("th", ">"), (" ", "zzz")]),
            stop_token_ids=st.sampled_from([(), SOME_TOKENS]),
            seed=st.integers(0, 2**64 - 1),
        ),
    ),
    min_size=1,
    max_size=4,
)


def slow_completions(model, context, params):
    """(token_ids, text, reason, logprobs, drawn_logprobs, entropies) of each sample: no cache, one token at a time."""
    results = []
    for index in range(params.n):
        token_ids, numbers, text, reason = [], [], None, "length"
        while len(token_ids) < params.max_tokens and reason == "length":
            token_1T = torch.tensor([context + token_ids])
            with torch.no_grad():
                logits_1TV = model(token_1T, torch.arange(token_1T.shape[1])[None], causal_attention, all_logits)
            seed, position = np.array([params.seed], dtype=np.uint64), np.uint64(len(token_ids))
            draw = sample(
                logits_1TV[:, -1], seed, np.array([index], dtype=np.uint64), position,
                params.temperature, params.top_k, params.top_p, params.min_p,
            )  # fmt: skip
            token_ids.append(draw.token_B.item())
            numbers.append([draw.logprob_B.item(), draw.drawn_logprob_B.item(), draw.entropy_B.item()])
            so_far = tokenizer().decode(token_ids, skip_special_tokens=True)
            found = [so_far.find(string) + len(string) for string in params.stop if string in so_far]
            if token_ids[-1] in (*ENDS, *params.stop_token_ids):
                reason = "stop"
            elif found:
                text, reason = so_far[: min(found)], "stop"
        results.append((token_ids, so_far if text is None else text, reason, *np.array(numbers, dtype=np.float32).T))
    return results


def assert_same(completions, right, tolerance=1e-5):
    for completion, (token_ids, text, reason, *numbers) in zip(completions, right, strict=True):
        assert completion.token_ids == token_ids
        assert completion.text == text
        assert completion.finish_reason == reason
        for found, wanted in zip(
            (completion.logprobs, completion.drawn_logprobs, completion.entropies), numbers, strict=True
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


def assert_identical(one, other):
    """Tokens, texts, and every bit of the numbers."""
    for completions, others in zip(one, other, strict=True):
        for a, b in zip(completions, others, strict=True):
            assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
            for name in ("logprobs", "drawn_logprobs", "entropies"):
                assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
