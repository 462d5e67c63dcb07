"""The shared-context layout computes what separate sequences compute, however a step is cut into micro-batches."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.decoder import Decoder, DecoderConfig, RMSNorm, all_logits, causal_attention, init_weights_
from trainer.batches import Group, collate, masked_attention, micro_batches, token_logprobs

CPU = torch.device("cpu")
VOCAB = 13
TOKENS = st.integers(0, VOCAB - 1)


@st.composite
def groups_of_tokens(draw, max_groups=4):
    """Random groups; `index` numbers all completion tokens, `weight` and `bonus` are a loss."""
    groups, index = [], 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(1, max_groups))):
        context = draw(st.lists(TOKENS, min_size=1, max_size=7))
        completions = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=4))
        values = {"index": [], "weight": [], "bonus": []}
        for completion in completions:
            values["index"].append(np.arange(index, index + len(completion), dtype=np.float32))
            values["weight"].append(rng.normal(size=len(completion)).astype(np.float32))
            values["bonus"].append(rng.normal(size=len(completion)).astype(np.float32))
            index += len(completion)
        groups.append(Group(context, completions, values))
    return groups


@pytest.fixture(scope="module")
def decoder():
    """float64 throughout, the norms included, so that only a difference in meaning can show."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RMSNorm, "forward", forward)
        config = DecoderConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, rope_theta=100.0, tie_word_embeddings=True,
        )  # fmt: skip
        decoder = init_weights_(Decoder(config), seed=0, std=0.5).double()
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        yield decoder


def by_separate_sequences(decoder, groups):
    """Per completion token, in order: (logprob, entropy); and the gradients of Σ weight logprob + bonus entropy."""
    decoder.zero_grad()
    logprobs, entropies = [], []
    for group in groups:
        for i, completion in enumerate(group.completions):
            token_1T = torch.tensor([group.context + completion])
            position_1T = torch.arange(token_1T.shape[1])[None]
            logits_TV = decoder(token_1T, position_1T, causal_attention, all_logits)[0]
            logprob_TV = F.log_softmax(logits_TV[len(group.context) - 1 : -1], -1)
            logprob_T = logprob_TV[torch.arange(len(completion)), torch.tensor(completion)]
            entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
            weight_T, bonus_T = (torch.from_numpy(group.values[name][i]) for name in ("weight", "bonus"))
            (weight_T * logprob_T + bonus_T * entropy_T).sum().backward()
            logprobs += logprob_T.tolist()
            entropies += entropy_T.tolist()
    return logprobs, entropies, gradients(decoder)


def by_micro_batches(decoder, groups, max_tokens):
    decoder.zero_grad()
    logprobs, entropies = {}, {}
    for batch in micro_batches(groups, max_tokens):
        micro = collate(batch, CPU)
        logprob_T, entropy_T = token_logprobs(decoder, micro)
        (micro.values_T["weight"] * logprob_T + micro.values_T["bonus"] * entropy_T).sum().backward()
        index = micro.values_T["index"].int().tolist()
        logprobs |= dict(zip(index, logprob_T.tolist(), strict=True))
        entropies |= dict(zip(index, entropy_T.tolist(), strict=True))
    in_order = range(len(logprobs))
    return [logprobs[i] for i in in_order], [entropies[i] for i in in_order], gradients(decoder)


def gradients(decoder):
    return {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-11)
    assert found[1] == pytest.approx(expected[1], abs=1e-11)
    for name, gradient in expected[2].items():
        error = (found[2][name] - gradient).abs().max() / (1 + gradient.abs().max())
        assert error < 1e-11, (name, float(error))


def least_budget(groups):
    return max(len(group.context) + len(completion) for group in groups for completion in group.completions)


@settings(max_examples=60)
@given(groups_of_tokens())
def test_one_layout_of_groups_equals_separate_sequences(decoder, groups):
    assert_same(by_micro_batches(decoder, groups, 10_000), by_separate_sequences(decoder, groups))


@settings(max_examples=40)
@given(groups_of_tokens(), st.data())
def test_neither_the_budget_nor_the_order_of_groups_changes_anything(decoder, groups, data):
    expected = by_micro_batches(decoder, groups, 10_000)
    least = least_budget(groups)
    for budget in {least, least + data.draw(st.integers(0, 30))}:
        assert_same(by_micro_batches(decoder, data.draw(st.permutations(groups)), budget), expected)


def test_repeated_heads_are_shared_heads():
    """The form of attention that CUDA takes computes what the form that a CPU takes does, gradients included."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, heads, 7, 6) for heads in (6, 2, 2)]
    qkv = [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]
    is_seen_BTT = (torch.rand(2, 7, 7, generator=generator) < 0.5) | torch.eye(7, dtype=torch.bool)
    weight = torch.randn(2, 6, 7, 6, generator=generator, dtype=torch.float64)
    results = []
    for repeats_heads in (False, True):
        o_BHTC = masked_attention(*qkv, is_seen_BTT, repeats_heads)
        results.append([o_BHTC, *torch.autograd.grad((o_BHTC * weight).sum(), qkv)])
    for shared, repeated in zip(*results, strict=True):
        torch.testing.assert_close(repeated, shared, rtol=1e-12, atol=1e-12)


def test_a_completion_does_not_see_its_siblings(decoder):
    """The same completion beside others and alone."""
    siblings = [[1, 2, 3], [4, 5], [6]]
    index = [np.arange(3), np.arange(3, 5), np.arange(5, 6)]
    zeros = {name: [np.zeros(len(s), np.float32) for s in siblings] for name in ("weight", "bonus")}
    group = Group([7, 8, 9], siblings, zeros | {"index": index})
    other = Group([7, 8, 9], [[1, 2, 3], [0, 0], [12]], zeros | {"index": index})
    assert by_micro_batches(decoder, [group], 100)[0][:3] == by_micro_batches(decoder, [other], 100)[0][:3]


@given(groups_of_tokens(max_groups=8), st.integers(0, 40))
def test_no_micro_batch_exceeds_the_budget_and_nothing_is_lost_or_doubled(groups, room):
    budget = least_budget(groups) + room
    batches = micro_batches(groups, budget)
    assert all(len(batch) * max(group.length for group in batch) <= budget for batch in batches)

    def rows(groups):
        return Counter(
            (tuple(group.context), tuple(completion), *(tuple(group.values[name][i]) for name in sorted(group.values)))
            for group in groups
            for i, completion in enumerate(group.completions)
        )

    assert rows([group for batch in batches for group in batch]) == rows(groups)


def test_a_group_longer_than_the_budget_is_cut_between_completions():
    group = Group([1, 2], [[3], [4, 5], [6], [7, 8]], {"x": [np.array([i]) for i in range(4)]})
    parts = [part for batch in micro_batches([group], 5) for part in batch]
    assert sorted((part.context, part.completions, [int(x[0]) for x in part.values["x"]]) for part in parts) == [
        ([1, 2], [[3], [4, 5]], [0, 1]),
        ([1, 2], [[6], [7, 8]], [2, 3]),
    ]


def test_like_lengths_share_a_micro_batch():
    groups = [Group([0] * length, [[1]]) for length in (3, 9, 3, 9)]
    assert [[group.length for group in batch] for batch in micro_batches(groups, 20)] == [[10, 10], [4, 4]]


def test_what_cannot_fit_is_told_with_its_lengths():
    message = "a context of 5 tokens and a completion of 4 do not fit tokens_per_micro_batch=8"
    with pytest.raises(ValueError, match=message):
        micro_batches([Group([0] * 5, [[1], [2] * 4])], 8)


def test_no_groups_make_no_micro_batches():
    assert micro_batches([], 8) == []
