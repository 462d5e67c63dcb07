"""The decoder against transformers' models of each family on random weights.

B sequences   T positions   V vocabulary
"""

from functools import cache
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.distributed._composable import checkpoint
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from kernels import fused
from rollout.decoder import Decoder, Linear, RMSNorm, all_logits, causal_attention, init_weights_
from rollout.families import FAMILIES
from rollout.rope import LinearRope, Llama3Rope, YarnRope
from tests.models import config, random_decoder, transformers_twin

# Head width other than hidden_size / heads; all heads their own keys; one key for all; one layer, two-wide heads.
SHAPES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 6, "head_dim": 8},
    "one-key": {"num_key_value_heads": 1, "head_dim": 24, "rope_theta": 1_000_000.0},
    "tiny": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    "large-eps": {"rms_norm_eps": 0.1},
}
# Original lengths at which some planes of 16-wide heads are slow, some fast and some in between.
SCALINGS = {
    "unscaled": None,
    "linear": LinearRope(factor=3.0),
    "llama3": Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128),
    "yarn": YarnRope(factor=4.0, original_max_position_embeddings=128),
}
each_family = pytest.mark.parametrize("model_type", FAMILIES)


def tokens_and_positions(B, T, V, start=0):
    token_BT = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(T))
    return token_BT, torch.arange(start, start + T).expand(B, T)


@torch.no_grad()
def logits(decoder, token_BT, position_BT):
    return decoder(token_BT, position_BT, causal_attention, all_logits)


LENGTHS = ((1, 1, 0), (3, 40, 0), (2, 17, 100))  # B, T, first position


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape):
    decoder = random_decoder(config(**SHAPES[shape]))
    twin = transformers_twin(decoder)
    for B, T, start in LENGTHS:
        token_BT, position_BT = tokens_and_positions(B, T, 96, start)
        ours_BTV = logits(decoder, token_BT, position_BT)
        with torch.no_grad():
            theirs_BTV = twin(token_BT, position_ids=position_BT).logits
        assert ours_BTV.std() > 0.3  # weights under which something is to be seen
        assert (ours_BTV - theirs_BTV).abs().max() <= 1e-4 * theirs_BTV.abs().max()
        assert (ours_BTV - theirs_BTV).norm() <= 1e-5 * theirs_BTV.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("scaling", SCALINGS)
@each_family
def test_logits_of_each_family_are_those_of_transformers_to_the_bit(model_type, scaling, tied, dtype):
    """Both call PyTorch's attention here; every other operation is theirs and ours, in the same order."""
    shape = config(model_type=model_type, rope_scaling=SCALINGS[scaling], tie_word_embeddings=tied)
    decoder = random_decoder(shape).to(dtype)
    twin = transformers_twin(decoder, attention="sdpa")
    for B, T, start in LENGTHS:
        token_BT, position_BT = tokens_and_positions(B, T, 96, start)
        with torch.no_grad():
            theirs_BTV = twin(token_BT, position_ids=position_BT).logits
        assert theirs_BTV.dtype == dtype and theirs_BTV.float().std() > 0.3
        assert torch.equal(logits(decoder, token_BT, position_BT), theirs_BTV)


@each_family
def test_bfloat16_is_as_near_to_float32_as_transformers(model_type):
    """Beside transformers' own attention, which rounds elsewhere."""
    decoder = random_decoder(config(model_type=model_type)).bfloat16()
    token_BT, position_BT = tokens_and_positions(4, 50, 96)
    with torch.no_grad():
        theirs_BTV = transformers_twin(decoder)(token_BT).logits
    ours_BTV = logits(decoder, token_BT, position_BT)
    exact_BTV = logits(decoder.float(), token_BT, position_BT)
    error, yardstick = ((x_BTV.float() - exact_BTV).norm() for x_BTV in (ours_BTV, theirs_BTV))
    assert 0 < error <= 1.1 * yardstick
    assert yardstick < 0.1 * exact_BTV.norm()


def test_scalings_differ():
    """So that agreement under one is no agreement under another."""
    token_BT, position_BT = tokens_and_positions(2, 17, 96, 100)
    shapes = [config(rope_scaling=scaling) for scaling in SCALINGS.values()]
    for one_BTV, other_BTV in combinations([logits(random_decoder(s), token_BT, position_BT) for s in shapes], 2):
        assert (one_BTV - other_BTV).norm() > 1e-2 * one_BTV.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_rounds_where_transformers_does(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 48, generator=generator).to(dtype)
    ours, theirs = RMSNorm(48, 1e-6).to(dtype), Qwen3RMSNorm(48, 1e-6).to(dtype)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.randn(48, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2"])  # one with norms of heads, one with biases
def test_every_norm_bias_and_projection_counts(model_type):
    """Changing any one parameter changes the logits: none is unused."""
    token_BT, position_BT = tokens_and_positions(2, 9, 96)
    shape = config(model_type=model_type)
    before_BTV = logits(random_decoder(shape), token_BT, position_BT)
    for name, _ in random_decoder(shape).named_parameters():
        decoder = random_decoder(shape)
        with torch.no_grad():
            parameter = decoder.get_parameter(name)
            parameter += parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        # A bias of keys adds the same to all scores of a query, but for the rotation.
        least = 1e-3 if name.endswith("k_proj.bias") else 1e-2
        assert (logits(decoder, token_BT, position_BT) - before_BTV).norm() > least * before_BTV.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_change_no_bit_of_what_is_computed(dtype, monkeypatch):
    """Without them a block leaves its last sum to the norm behind it; with them one tensor goes from block to block."""
    decoder = random_decoder(config()).to(dtype)
    handed_over, add = [], RMSNorm.add
    monkeypatch.setattr(RMSNorm, "add", lambda self, x, delta: handed_over.append(delta) or add(self, x, delta))
    token_BT, position_BT = tokens_and_positions(2, 17, 96)
    without_BTV = logits(decoder, token_BT, position_BT)
    assert [delta is None for delta in handed_over] == [True] + [False] * 2 * config().num_hidden_layers
    handed_over.clear()
    with_BTV = decoder(token_BT, position_BT, causal_attention, all_logits)
    assert [delta is None for delta in handed_over] == [True, False] * config().num_hidden_layers + [True]
    assert with_BTV.requires_grad and torch.equal(with_BTV, without_BTV)


def test_the_past_alone_is_seen():
    decoder = random_decoder(config())
    token_BT, position_BT = tokens_and_positions(2, 20, 96)
    whole_BTV = logits(decoder, token_BT, position_BT)
    for T in (1, 7, 19):
        changed_BT = token_BT.clone()
        changed_BT[:, T:] = (changed_BT[:, T:] + 1) % 96
        assert torch.equal(logits(decoder, changed_BT, position_BT)[:, :T], whole_BTV[:, :T])
        assert not torch.equal(logits(decoder, changed_BT, position_BT)[:, T:], whole_BTV[:, T:])


def test_right_padding_changes_no_real_position():
    decoder = random_decoder(config())
    token_BT, _ = tokens_and_positions(3, 24, 96)
    lengths = [24, 11, 1]
    for row, length in enumerate(lengths):
        token_BT[row, length:] = 0
    padded_BTV = logits(decoder, token_BT, torch.arange(24).expand(3, 24))
    for row, length in enumerate(lengths):
        alone_1TV = logits(decoder, token_BT[row : row + 1, :length], torch.arange(length)[None])
        torch.testing.assert_close(padded_BTV[row, :length], alone_1TV[0], rtol=1e-5, atol=1e-5)


def test_only_distances_matter():
    decoder = random_decoder(config())
    token_BT, position_BT = tokens_and_positions(2, 12, 96)
    torch.testing.assert_close(
        logits(decoder, token_BT, position_BT + 200), logits(decoder, token_BT, position_BT), rtol=1e-3, atol=1e-3
    )


def test_float64_is_float64():
    """Nothing in between is rounded to float32 but the rotary tables, which are the same in both."""
    decoder = random_decoder(config()).double()
    token_BT, position_BT = tokens_and_positions(2, 12, 96)
    moved = random_decoder(config()).double()
    with torch.no_grad():
        moved.embed_tokens.weight.mul_(1 + 1e-12)
    change = (logits(moved, token_BT, position_BT) - logits(decoder, token_BT, position_BT)).abs().max()
    assert 0 < change < 1e-9


@pytest.mark.parametrize("is_scalar", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@each_family
def test_counts_its_parameters(model_type, tied, is_scalar):
    decoder = random_decoder(config(model_type=model_type, tie_word_embeddings=tied, is_scalar=is_scalar))
    assert decoder.config.num_parameters == sum(parameter.numel() for parameter in decoder.parameters())
    assert hasattr(decoder, "lm_head") != is_scalar
    assert is_scalar or (decoder.lm_head.weight is decoder.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_stays_tied_wherever_it_is_moved(tied):
    with torch.device("meta"):
        decoder = Decoder(config(tie_word_embeddings=tied))
    for moved in (decoder.to_empty(device="cpu"), decoder.double(), decoder.to(torch.bfloat16)):
        assert (moved.lm_head.weight is moved.embed_tokens.weight) == tied
        assert len(list(moved.parameters())) == 2 + 11 * 3 + (not tied)


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = init_weights_(Decoder(config()), seed=3).state_dict()
    torch.manual_seed(2)
    again, other = (
        init_weights_(Decoder(config()), seed=3).state_dict(),
        init_weights_(Decoder(config()), 4).state_dict(),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])
    assert first["embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert first["layers.0.mlp.down_proj.weight"].std() == pytest.approx(0.02 / 6**0.5, rel=0.1)
    assert (first["layers.1.self_attn.q_norm.weight"] == 1).all()
    biased = init_weights_(Decoder(config(model_type="qwen2")), seed=3).state_dict()
    assert (biased["layers.1.self_attn.q_proj.bias"] == 0).all()


@each_family
def test_weights_that_lie_side_by_side_are_multiplied_as_one(model_type, monkeypatch):
    decoder = random_decoder(config(model_type=model_type)).double()
    token_BT, position_BT = tokens_and_positions(2, 9, 96)
    separate_BTV = logits(decoder, token_BT, position_BT)
    decoder.lay_side_by_side_()
    monkeypatch.setattr(Linear, "forward", lambda self, x: nn.Linear.forward(self, x) if self.is_last else None)
    for name, module in decoder.named_modules():
        module.is_last = name.endswith(("o_proj", "down_proj"))  # the others are not called one by one
    torch.testing.assert_close(logits(decoder, token_BT, position_BT), separate_BTV)


def test_blocks_that_are_compiled_between_products_have_the_same_gradients_when_checkpointed(monkeypatch):
    """As on a GPU (`kernels.fused`), but without torch's code generator."""
    model = random_decoder(config(vocab_size=60, num_hidden_layers=2)).double()
    token_BL = torch.arange(24)[None] % 60

    def gradients() -> list[torch.Tensor]:
        logits_BLV = model(token_BL, torch.arange(24)[None], causal_attention, all_logits)
        return torch.autograd.grad(logits_BLV.logsumexp(-1).sum(), list(model.parameters()))

    plain = gradients()

    @cache
    def compiled(definition):
        return torch.compile(definition, fullgraph=True, backend="aot_eager_decomp_partition")

    calls = []
    monkeypatch.setattr(fused, "_plain", lambda definition, *_: calls.append(definition) or compiled(definition))
    monkeypatch.setattr(fused, "_norm_rotary_cpu", lambda *arguments: fused._plain(fused.norm_rotary_ref)(*arguments))
    for is_checkpointed in (False, True):
        if is_checkpointed:
            for block in model.layers:
                checkpoint(block)
        num_before = len(calls)
        for ours, right in zip(gradients(), plain, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-12)
        assert {definition.__name__ for definition in calls} >= {"swiglu_ref", "norm_rotary_ref", "rms_norm_ref"}
    assert len(calls) - num_before > num_before  # the second time, forward ran twice
