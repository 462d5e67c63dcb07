"""Trees compute what separate sequences compute, however they are laid out, packed, cut and dealt to ranks."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.decoder import Decoder, DecoderConfig, all_logits, causal_attention, init_weights_
from trainer import trunk_attention
from trainer.balance import Cost, balance
from trainer.logprobs import token_logprobs
from trainer.token_tree import TILE, Leaf, MicroBatch, TokenTree, pack, room

CPU = torch.device("cpu")
VOCAB = 13
FEW_TOKENS = st.integers(0, 2)  # so that much begins alike


@st.composite
def trees_of_leaves(draw, max_trees=4, least=1):
    """Leaves of random trees; `index` numbers all loss entries, `weight` and `bonus` are a loss."""
    trees, index = [], 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(least, max_trees))):
        leaves = []
        contexts = draw(st.lists(st.lists(FEW_TOKENS, min_size=1, max_size=9), min_size=1, max_size=3))
        for context in draw(st.lists(st.sampled_from(contexts), min_size=1, max_size=6)):
            completion = draw(st.lists(FEW_TOKENS, min_size=1, max_size=7))
            values = {name: rng.normal(size=len(completion)).astype(np.float32) for name in ("weight", "bonus")}
            values["index"] = np.arange(index, index + len(completion), dtype=np.float32)
            leaves.append(Leaf(context, completion, values, f"leaf {index}"))
            index += len(completion)
        trees.append(leaves)
    return trees


@pytest.fixture(scope="module")
def decoder():
    """float64 throughout (norms keep it), so that only a difference in meaning can show."""
    config = DecoderConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, rope_theta=100.0, tie_word_embeddings=True,
    )  # fmt: skip
    decoder = init_weights_(Decoder(config), seed=0, std=0.5).double()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return decoder


def by_separate_sequences(decoder, trees):
    """(loss, logprob and entropy of each loss entry, gradients) of Σ weight logprob + bonus entropy."""
    decoder.zero_grad()
    loss, logprobs, entropies = 0.0, [], []
    for leaf in itertools.chain(*trees):
        token_1T = torch.tensor([leaf.context + leaf.completion])
        position_1T = torch.arange(token_1T.shape[1])[None]
        logits_TV = decoder(token_1T, position_1T, causal_attention, all_logits)[0]
        logprob_TV = F.log_softmax(logits_TV[len(leaf.context) - 1 : -1], -1)
        logprob_T = logprob_TV[torch.arange(len(leaf.completion)), torch.tensor(leaf.completion)]
        entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
        weight_T, bonus_T = (torch.from_numpy(leaf.values[name]).double() for name in ("weight", "bonus"))
        part = (weight_T * logprob_T + bonus_T * entropy_T).sum()
        part.backward()
        loss += part.item()
        logprobs += logprob_T.tolist()
        entropies += entropy_T.tolist()
    return loss, logprobs, entropies, gradients(decoder)


def by_micro_batches(decoder, trees, max_tokens, shares=True):
    decoder.zero_grad()
    loss, logprobs, entropies = 0.0, {}, {}
    for batch in pack([TokenTree.of(leaves, shares) for leaves in trees], max_tokens):
        micro = MicroBatch.of(batch, CPU)
        logprob_T, entropy_T = token_logprobs(decoder, micro)
        weight_T, bonus_T = (micro.values_T[name].double() for name in ("weight", "bonus"))
        part = (weight_T * logprob_T + bonus_T * entropy_T).sum()
        part.backward()
        loss += part.item()
        index = micro.values_T["index"].int().tolist()
        logprobs |= dict(zip(index, logprob_T.tolist(), strict=True))
        entropies |= dict(zip(index, entropy_T.tolist(), strict=True))
    in_order = range(len(logprobs))
    return loss, [logprobs[i] for i in in_order], [entropies[i] for i in in_order], gradients(decoder)


def gradients(decoder):
    return {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}


def assert_same(found, expected):
    """To 1e-12 of the largest: of the loss's terms, and of every parameter's gradient."""
    largest = max(map(abs, expected[1] + expected[2]))
    for ours, theirs in ((found[:1], expected[:1]), found[1:2] + expected[1:2], found[2:3] + expected[2:3]):
        assert ours == pytest.approx(theirs, abs=1e-12 * largest * len(expected[1]), rel=1e-12)
    for name, gradient in expected[3].items():
        error = (found[3][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1)
        assert error <= 1e-12, (name, float(error))


def least_budget(trees):
    return -(-max(len(leaf.path) for leaves in trees for leaf in leaves) // TILE) * TILE


@settings(max_examples=50)
@given(trees_of_leaves())
def test_trees_equal_separate_sequences(decoder, trees):
    with pytest.MonkeyPatch.context() as patch:
        for short in (3, 32):
            patch.setattr(trunk_attention, "_SHORT", short)
            assert_same(by_micro_batches(decoder, trees, 10_000), by_separate_sequences(decoder, trees))


@settings(max_examples=30)
@given(trees_of_leaves(), st.data())
def test_neither_layout_nor_budget_nor_order_changes_anything(decoder, trees, data):
    expected = by_micro_batches(decoder, trees, 10_000)
    shuffled = [data.draw(st.permutations(leaves)) for leaves in data.draw(st.permutations(trees))]
    budget = least_budget(trees) + data.draw(st.integers(0, 40))
    for shares in (True, False):
        assert_same(by_micro_batches(decoder, shuffled, budget, shares), expected)


@settings(max_examples=15)
@given(trees_of_leaves(max_trees=6), st.integers(2, 3))
def test_ranks_together_do_what_one_does(decoder, trees, num_ranks):
    expected = by_micro_batches(decoder, trees, 10_000)
    cost = Cost.of(decoder.config)
    shares = balance([cost(TokenTree.of(leaves)) for leaves in trees], num_ranks)
    assert sorted(itertools.chain(*shares)) == list(range(len(trees)))
    loss, sums = 0.0, {name: torch.zeros_like(x) for name, x in expected[3].items()}
    for share in filter(None, shares):
        part = by_micro_batches_of_some(decoder, [trees[i] for i in share], least_budget(trees))
        loss += part[0]
        sums = {name: x + part[1][name] for name, x in sums.items()}
    assert_same((loss, *expected[1:3], sums), expected)


def by_micro_batches_of_some(decoder, trees, budget):
    renumbered, first = [], 0
    for leaves in trees:
        renumbered.append([])
        for leaf in leaves:
            index = np.arange(first, first + len(leaf.completion), dtype=np.float32)
            renumbered[-1].append(Leaf(leaf.context, leaf.completion, leaf.values | {"index": index}, leaf.name))
            first += len(leaf.completion)
    loss, _, _, grads = by_micro_batches(decoder, renumbered, budget)
    return loss, grads


@given(trees_of_leaves(max_trees=1), st.booleans())
def test_a_tree_has_every_prefix_once_and_every_path(trees, shares):
    (leaves,) = trees
    tree = TokenTree.of(leaves, shares)
    prefixes = [tuple(leaf.path[: i + 1]) for leaf in leaves for i in range(len(leaf.path))]
    assert tree.num_tokens == (len(set(prefixes)) if shares else len(prefixes))
    assert tree.num_attention_pairs == sum(map(len, set(prefixes) if shares else prefixes))
    for leaf, node in zip(leaves, tree.node_S, strict=True):
        path = tree.nodes.path(node)
        assert tree.token_L[path].tolist() == leaf.path
        assert tree.position_L[path].tolist() == list(range(len(path)))
    if shares:  # a node ends where paths part or one of them ends, and nowhere else
        followed = Counter(prefix[:-1] for prefix in set(prefixes))
        parting = {prefix for prefix, num in followed.items() if num > 1 and prefix}
        assert len(tree.nodes) == len(parting | {tuple(leaf.path) for leaf in leaves})


@given(trees_of_leaves(max_trees=8), st.integers(0, 60), st.booleans())
def test_no_micro_batch_exceeds_the_budget_and_nothing_is_lost_or_doubled(trees, more, shares):
    budget = least_budget(trees) + more
    batches = [MicroBatch.of(b, CPU) for b in pack([TokenTree.of(leaves, shares) for leaves in trees], budget)]
    assert all(batch.token_BL.shape[1] <= budget for batch in batches)
    found = Counter()
    for batch in batches:
        assert len(batch.leaf_T) == len(batch.target_T) and batch.num_leaves == len(batch.last_S)
        index = batch.values_T["index"].long().tolist()
        found.update(zip(index, batch.target_T.tolist(), batch.position_BL.flatten()[batch.predictor_T].tolist()))
        assert torch.equal(batch.predictor_T[batch.distinct_U][batch.kind_T], batch.predictor_T)
        assert torch.equal(batch.target_T[batch.distinct_U][batch.kind_T], batch.target_T)
    leaves = list(itertools.chain(*trees))
    expected = [(token, len(leaf.context) - 1 + i) for leaf in leaves for i, token in enumerate(leaf.completion)]
    assert found == Counter((index, *pair) for index, pair in enumerate(expected))


@given(trees_of_leaves())
def test_loss_entries_come_leaf_by_leaf_in_their_order(trees):
    batch = MicroBatch.of([TokenTree.of(leaves) for leaves in trees], CPU)
    leaves = list(itertools.chain(*trees))
    assert batch.target_T.tolist() == [token for leaf in leaves for token in leaf.completion]
    assert batch.leaf_T.tolist() == [i for i, leaf in enumerate(leaves) for _ in leaf.completion]
    token_L, position_L = batch.token_BL[0], batch.position_BL[0]
    assert token_L[batch.last_S].tolist() == [leaf.path[-1] for leaf in leaves]
    assert position_L[batch.last_S].tolist() == [len(leaf.path) - 1 for leaf in leaves]
    first_T = [batch.leaf_T.tolist().index(i) for i in range(len(leaves))]
    assert token_L[batch.predictor_T[first_T]].tolist() == [leaf.context[-1] for leaf in leaves]


def test_equal_entries_of_leaves_that_begin_alike_are_computed_once():
    leaves = [Leaf([7, 8], [1, 2, 3, 4]), Leaf([7, 8], [1, 2, 5, 4]), Leaf([7, 8], [1, 2, 3, 4])]
    batch = MicroBatch.of([TokenTree.of(leaves)], CPU)
    assert len(batch.target_T) == 12
    assert len(batch.distinct_U) == 6  # 1, 2; 3, 4; 5, 4
    # 7 8 1 2, then 3 and 5; the last tokens are no inputs.
    assert batch.token_BL[0, :6].tolist() == [7, 8, 1, 2, 3, 5]


def test_a_leaf_without_a_completion_is_its_context():
    batch = MicroBatch.of([TokenTree.of([Leaf([1, 2], []), Leaf([1, 2, 3], [])], is_atomic=True)], CPU)
    assert (batch.last_S.tolist(), len(batch.target_T), batch.num_leaves) == ([1, 2], 0, 2)


def test_a_leaf_without_a_context_is_told_by_its_name():
    with pytest.raises(ValueError, match="pair 3: a context needs at least one token"):
        TokenTree.of([Leaf([], [1], name="pair 3")])


def test_what_cannot_fit_is_told_with_its_name_and_length():
    long = [Leaf([0] * 9, [1], name="pair 7 of here"), Leaf([0] * 9, [2] * 12, name="pair 8 of here")]
    with pytest.raises(ValueError, match="pair 8 of here: 20 tokens do not fit into a micro-batch of 16"):
        pack([TokenTree.of(long)], 20)
    atomic = TokenTree.of([Leaf([0], [1] * 12, name="pair 9 of here"), Leaf([2], [1] * 12)], is_atomic=True)
    with pytest.raises(ValueError, match="pair 9 of here: 24 tokens do not fit into a micro-batch of 16"):
        pack([atomic], 31)
    assert [[tree.num_tokens for tree in batch] for batch in pack([atomic], 32)] == [[24]]


def test_a_tree_longer_than_the_budget_is_cut_between_leaves():
    leaves = [Leaf([1] * 10, [i, 0, 0, 0], {}, str(i)) for i in (4, 2, 3, 5)]
    parts = [tree for batch in pack([TokenTree.of(leaves)], 16) for tree in batch]
    assert sorted([leaf.name for leaf in part.leaves] for part in parts) == [["2", "3"], ["4", "5"]]
    assert {part.num_tokens for part in parts} == {16}


def test_no_trees_make_no_micro_batches():
    assert pack([], 16) == []
    assert [room(n) for n in (15, 16, 47)] == [0, 16, 32]


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 3))
def test_the_dearest_rank_has_at_most_a_third_more_than_it_must(costs, num_ranks):
    shares = balance(costs, num_ranks)
    assert shares == balance(costs, num_ranks)
    assert sorted(itertools.chain(*shares)) == list(range(len(costs)))
    load = max(sum(costs[i] for i in share) for share in shares)
    best = min(
        max(sum(cost for cost, rank in zip(costs, ranks) if rank == r) for r in range(num_ranks))
        for ranks in itertools.product(range(num_ranks), repeat=len(costs))
    )
    assert 3 * load <= 4 * best


def test_ties_go_to_the_first():
    assert balance([2.0, 2.0, 2.0, 2.0, 1.0], 2) == [[0, 2, 4], [1, 3]]
    assert balance([1.0], 3) == [[0], [], []]


def test_a_tree_costs_its_tokens_and_its_attention():
    config = DecoderConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, rope_theta=100.0,
    )  # fmt: skip
    tree = TokenTree.of([Leaf([1, 2], [3, 4, 0]), Leaf([1, 2], [4, 4, 0])])
    # Six tokens, at positions 0, 1, 2, 3, 2, 3. Scores and sums of values: 2·2·C flops a pair and head.
    assert Cost.of(config)(tree) == 6 * config.num_parameters * 6 + 3 * (4 * 4) * 2 * 3 * (1 + 2 + 3 + 4 + 3 + 4)
