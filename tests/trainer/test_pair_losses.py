"""Pairs in token trees against transformers on separate sequences, loss and every gradient in float64.

P pairs   V vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rollout.decoder import Decoder, all_logits, causal_attention
from tests.models import config, random_decoder, transformers_twin
from trainer.bt import bradley_terry
from trainer.config import DpoConfig
from trainer.dpo import implicit_reward, referred
from trainer.learner import TokenLossFn
from trainer.logprobs import token_values
from trainer.preference import weighted
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack

END, CPU = 95, torch.device("cpu")


def random_pairs(seed: int, is_scalar: bool, num_pairs: int = 4) -> list[list[Leaf]]:
    """Both sides share a prompt; of one pair a response begins the other one, and of another they begin alike."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return rng.integers(0, END, length).tolist()

    pairs = []
    for number in range(num_pairs):
        prompt, chosen, rejected = tokens(rng.integers(1, 20)), tokens(rng.integers(1, 9)), tokens(rng.integers(1, 9))
        if number == 0:
            rejected = chosen + rejected
        if number == 1:
            rejected = chosen[:2] + rejected
        if is_scalar:
            pairs.append([Leaf(prompt + side, [END], name=f"pair {number}") for side in (chosen, rejected)])
        else:
            pairs.append([Leaf(prompt, [*side, END], name=f"pair {number}") for side in (chosen, rejected)])
    return pairs


def in_trees(
    decoder: Decoder, pairs: list[list[Leaf]], loss_fn: TokenLossFn, max_tokens: int, share: bool
) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) as the learner computes them."""
    trees = [TokenTree.of(weighted(pair, len(pairs)), share, is_atomic=True) for pair in pairs]
    total = 0.0
    for trees_of_batch in pack(trees, max_tokens):
        batch = MicroBatch.of(trees_of_batch, CPU)
        loss_T, _ = loss_fn(batch, *token_values(decoder, batch))
        loss = (loss_T * batch.values_T["weight"]).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(decoder)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("model."): parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def assert_close(
    found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], tolerance: float
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max() for gradient in expected[1].values())
    assert largest > 1e-3
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * largest, name


SETTINGS = DpoConfig(beta=0.3, label_smoothing=0.1)
REFERENCES = [[-12.0, -14.5], [-20.25, -3.0], [-1.0, -2.0], [-7.5, -8.0]]  # float32 holds them exactly


def by_definition(outputs_of: Callable[[list[int]], Tensor], pairs: list[list[Leaf]], is_scalar: bool) -> Tensor:
    """The loss, given what a model says of every token of one sequence: scores [L], or logits [L, V]."""

    def logprob(leaf: Leaf) -> Tensor:
        logprob_LV = outputs_of(leaf.context + leaf.completion).log_softmax(-1)
        start = len(leaf.context) - 1
        return sum(logprob_LV[start + i, token] for i, token in enumerate(leaf.completion))

    losses_P = []
    for (chosen, rejected), (chosen_reference, rejected_reference) in zip(pairs, REFERENCES, strict=True):
        if is_scalar:
            scores = [outputs_of(leaf.context)[-1] for leaf in (chosen, rejected)]
            losses_P.append(-torch.log(torch.sigmoid(scores[0] - scores[1])))
        else:
            h = (logprob(chosen) - chosen_reference) - (logprob(rejected) - rejected_reference)
            win = torch.sigmoid(SETTINGS.beta * h)
            losses_P.append(-0.9 * torch.log(win) - 0.1 * torch.log(1 - win))
    return sum(losses_P) / len(pairs)


@dataclass(frozen=True)
class Case:
    decoder: Decoder
    is_scalar: bool
    pairs: list[list[Leaf]]
    loss_fn: TokenLossFn
    expected: tuple[float, dict[str, Tensor]]


@pytest.fixture(scope="module", params=[False, True], ids=["dpo", "bt"])
def case(request) -> Case:
    """A model, pairs, our loss of them, and what the model gives sequence by sequence."""
    decoder = random_decoder(config(is_scalar=request.param, pad_token_id=END)).double()
    pairs = random_pairs(1, request.param)
    if not request.param:
        pairs = [
            [referred(*of) for of in zip(*of_pair, strict=True)] for of_pair in zip(pairs, REFERENCES, strict=True)
        ]

    def outputs_of(tokens: list[int]) -> Tensor:
        token_1L = torch.tensor([tokens])
        output_1LV = decoder(token_1L, torch.arange(len(tokens))[None], causal_attention, all_logits)
        return output_1LV[0].squeeze(-1) if request.param else output_1LV[0]

    loss = by_definition(outputs_of, pairs, request.param)
    loss.backward()
    loss_fn = bradley_terry if request.param else implicit_reward(SETTINGS)
    return Case(decoder, request.param, pairs, loss_fn, (loss.item(), gradients(decoder)))


@pytest.mark.parametrize("share", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize("max_tokens", [64, 4096])
def test_loss_and_gradients_are_those_of_separate_sequences(case, max_tokens, share):
    assert_close(in_trees(case.decoder, case.pairs, case.loss_fn, max_tokens, share), case.expected, 1e-12)


def test_the_order_of_pairs_does_not_matter(case):
    assert_close(in_trees(case.decoder, case.pairs[::-1], case.loss_fn, 64, True), case.expected, 1e-12)


def test_loss_and_gradients_are_those_of_transformers(case):
    """Which computes norms and rotations in float32, whatever the type of its weights."""
    twin = transformers_twin(case.decoder)

    def outputs_of(tokens: list[int]) -> Tensor:
        return twin(torch.tensor([tokens])).logits[0]  # of a reward model: of the last token alone

    loss = by_definition(outputs_of, case.pairs, case.is_scalar)
    loss.backward()
    assert_close((loss.item(), gradients(twin)), case.expected, 1e-5)


def test_metrics_tell_how_often_and_by_how_much_the_chosen_side_leads(case):
    batch = MicroBatch.of([TokenTree.of(weighted(pair, 4), is_atomic=True) for pair in case.pairs], CPU)
    _, metrics = case.loss_fn(batch, *token_values(case.decoder, batch))
    weight_T = batch.values_T["weight"].double()
    means = {name: (value_T * weight_T).sum().item() for name, value_T in metrics.items()}
    assert weight_T.sum() == 1
    assert means["pair_accuracy"] in (0.25, 0.5, 0.75)
    if not case.is_scalar:
        assert means["margin"] == pytest.approx(means["chosen_reward"] - means["rejected_reward"])
        assert means["chosen_logprob"] < 0 and means["rejected_logprob"] < 0


def test_a_pair_is_never_split():
    tree = TokenTree.of(random_pairs(0, False)[2], is_atomic=True)
    with pytest.raises(ValueError, match=rf"pair 2: {tree.num_tokens} tokens do not fit into a micro-batch of"):
        pack([tree], tree.num_tokens - 1)
