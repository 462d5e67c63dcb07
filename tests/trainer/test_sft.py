"""Rows of SFT, packed, against each row by itself, in float64."""

import pytest
import torch

from patarm_core.pairs import JudgmentExample
from patarm_core.rubrics import parse_rubrics
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.decoder import all_logits, causal_attention
from tests.models import config, random_decoder, tokenizer
from tests.tiny_runs import RUBRICS, judgment
from trainer.logprobs import token_logprobs
from trainer.sft import negative_log_likelihood, sft_leaves
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack


@pytest.fixture(scope="module")
def rows() -> list[Leaf]:
    prompt = PromptConfig(rubrics="primary", template="bare")
    contexts = ContextBuilder(tokenizer(), prompt, parse_rubrics(RUBRICS, "rubrics"))
    return sft_leaves([JudgmentExample(**judgment(number)) for number in range(6)], contexts)


@pytest.fixture(scope="module")
def alone(rows):
    """(decoder, loss, gradients): the mean over all tokens of the rows, computed row by row."""
    decoder = random_decoder(config(vocab_size=340)).double()
    num_tokens = sum(len(row.completion) for row in rows)
    total = 0.0
    for row in rows:
        tokens = torch.tensor([row.context + row.completion])
        logits_LV = decoder(tokens, torch.arange(tokens.shape[1])[None], causal_attention, all_logits)[0]
        start = len(row.context)
        loss = torch.nn.functional.cross_entropy(logits_LV[start - 1 : -1], tokens[0, start:], reduction="sum")
        (loss / num_tokens).backward()
        total += loss.item() / num_tokens
    gradients = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    return decoder, total, gradients


@pytest.mark.parametrize(
    "trees_of", [lambda rows: [[row] for row in rows], lambda rows: [rows]], ids=["rows", "shared"]
)
@pytest.mark.parametrize("num_fitting", [1.0, 2.5, 100.0])
def test_packing_changes_neither_loss_nor_gradient(rows, alone, trees_of, num_fitting):
    """A micro-batch of about this many rows; rows that begin alike may be one tree."""
    decoder, expected_loss, expected = alone
    max_tokens = int(num_fitting * (max(len(row.path) for row in rows) + 16))
    batches = pack([TokenTree.of(tree) for tree in trees_of(rows)], max_tokens)
    assert (len(batches) > 1) == (num_fitting < len(rows) / 2)
    num_tokens, total = sum(len(row.completion) for row in rows), 0.0
    for trees in batches:
        batch = MicroBatch.of(trees, torch.device("cpu"))
        assert batch.token_BL.shape[1] <= max_tokens
        loss_T, _ = negative_log_likelihood(batch, *token_logprobs(decoder, batch))
        (loss_T.sum() / num_tokens).backward()
        total += loss_T.sum().item() / num_tokens
    assert total == pytest.approx(expected_loss, rel=1e-12)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-12 * largest, name
    decoder.zero_grad()
