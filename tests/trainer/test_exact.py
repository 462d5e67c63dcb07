"""The trainer's log-probabilities by the rollout's arithmetic: equal to the bit, with the gradients of plain torch."""

import pytest
import torch

from kernels.linear_logprob import linear_logprob
from rollout.engine import Engine
from rollout.params import SamplingParams
from tests import tiny_runs
from tests.models import config, random_decoder, tokenizer
from trainer.exact import exact_attention
from trainer.logprobs import token_logprobs
from trainer.main import main
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack
from trainer.trunk_attention import trunk_attention

V = 340
# Two, seven and five queries to a key; widths with a remainder in vector loops; one key head.
SHAPES = {
    "two": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32},
    "odd": {"hidden_size": 36, "intermediate_size": 52, "head_dim": 48},
    "seven": {"num_attention_heads": 14, "head_dim": 16},
    "one-key": {"hidden_size": 32, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 64},
}


def rolled_out(model) -> list[list[Leaf]]:
    """Contexts around the engine's block of 64 positions, and completions that pass more of them."""
    generator = torch.Generator().manual_seed(0)
    contexts = [torch.randint(0, V, (length,), generator=generator).tolist() for length in (1, 30, 64, 65, 150)]
    params = [
        SamplingParams(n=3, max_tokens=70 - 9 * i, seed=i, stop_token_ids=tuple(range(5 * (i % 3)))) for i in range(5)
    ]
    return [
        [Leaf(context, c.token_ids, {"logprob": c.logprobs, "entropy": c.entropies}) for c in completions]
        for context, completions in zip(contexts, Engine(model, tokenizer()).generate(contexts, params), strict=True)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_is_what_the_rollout_recorded_to_the_bit(shape):
    model = random_decoder(config(vocab_size=V, num_hidden_layers=2, tie_word_embeddings=True, **SHAPES[shape]))
    groups = rolled_out(model)
    for max_tokens in (256, 2000):
        # As trees of one context each, and as one tree of them all.
        trees = [TokenTree.of(group) for group in groups]
        if max_tokens == 2000:
            trees = [TokenTree.of([leaf for group in groups for leaf in group])]
        for batch in pack(trees, max_tokens):
            micro = MicroBatch.of(batch, torch.device("cpu"))
            logprob_T, entropy_T = token_logprobs(model, micro, is_exact=True)
            assert torch.equal(logprob_T, micro.values_T["logprob"])
            assert torch.equal(entropy_T, micro.values_T["entropy"])
            plain_T, _ = token_logprobs(model, micro)
            assert (plain_T - micro.values_T["logprob"]).abs().max() <= 1e-5


def test_gradients_are_those_of_plain_attention():
    model = random_decoder(config(vocab_size=V, num_hidden_layers=2)).double()
    for batch in pack([TokenTree.of(group) for group in rolled_out(model)], 800):
        micro = MicroBatch.of(batch, torch.device("cpu"))
        gradients = []

        def readout(hidden_BLD, head_VD, micro=micro):
            return linear_logprob(hidden_BLD.flatten(0, 1)[micro.predictor_T], head_VD, micro.target_T)[0]

        for attention in (trunk_attention, exact_attention):  # the head's exact form is for float32
            logprob_T = model(micro.token_BL, micro.position_BL, attention(micro.nodes), readout)
            loss = (logprob_T * micro.values_T["logprob"].double()).sum()
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        for plain, exact in zip(*gradients, strict=True):
            torch.testing.assert_close(exact, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_run_has_no_gap_between_rollout_and_trainer(tiny_files, tiny_judge, tmp_path):
    job = tiny_runs.settings(tiny_files) | {"stages": ["grpo"], "model.path": tiny_judge, "data.held_out": ""}
    gaps = {}
    for is_exact in (True, False):
        out = tmp_path / str(is_exact)
        assert main(tiny_runs.arguments(job | {"out": out, "grpo.exact_logprobs": is_exact})) == 0
        gaps[is_exact] = [record["max_logprob_gap"] for record in tiny_runs.records(out)]
    assert set(gaps[True]) == {0.0}
    assert 0 < max(gaps[False]) <= 1e-5


def test_is_refused_where_it_cannot_be(tiny_files, tmp_path, capsys):
    job = tiny_runs.settings(tiny_files) | {"out": tmp_path / "run", "grpo.exact_logprobs": True}
    assert main(tiny_runs.arguments(job | {"model.dtype": "bfloat16"})) == 1
    message = 'error: command line: grpo.exact_logprobs: needs model.dtype = "float32", got "bfloat16"\n'
    assert capsys.readouterr().err == message
