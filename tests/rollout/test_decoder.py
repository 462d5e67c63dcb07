"""The decoder against transformers' Qwen3 on random weights.

B sequences   T positions   V vocabulary
"""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rollout.decoder import Decoder, DecoderConfig, RMSNorm, all_logits, causal_attention, init_weights_
from tests.models import config, random_decoder

# Head width other than hidden_size / heads; all heads their own keys; one key for all; one layer, two-wide heads.
SHAPES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 6, "head_dim": 8},
    "one-key": {"num_key_value_heads": 1, "head_dim": 24, "rope_theta": 1_000_000.0},
    "tiny": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    "large-eps": {"rms_norm_eps": 0.1},
}


def transformers_twin(decoder: Decoder) -> Qwen3ForCausalLM:
    """transformers' model with the same weights, by its own names, none missing or left over."""
    model = Qwen3ForCausalLM(Qwen3Config(**decoder.config.to_hf(), attn_implementation="eager"))
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in decoder.state_dict().items()
    }
    model.load_state_dict(weights, strict=True)
    return model.to(decoder.norm.weight.dtype).eval()


def tokens_and_positions(B, T, V, start=0):
    token_BT = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(T))
    return token_BT, torch.arange(start, start + T).expand(B, T)


@torch.no_grad()
def logits(decoder, token_BT, position_BT):
    return decoder(token_BT, position_BT, causal_attention, all_logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape):
    decoder = random_decoder(config(**SHAPES[shape]))
    twin = transformers_twin(decoder)
    for B, T, start in ((1, 1, 0), (3, 40, 0), (2, 17, 100)):
        token_BT, position_BT = tokens_and_positions(B, T, 96, start)
        ours_BTV = logits(decoder, token_BT, position_BT)
        with torch.no_grad():
            theirs_BTV = twin(token_BT, position_ids=position_BT).logits
        assert ours_BTV.std() > 0.3  # weights under which something is to be seen
        assert (ours_BTV - theirs_BTV).abs().max() <= 1e-4 * theirs_BTV.abs().max()
        assert (ours_BTV - theirs_BTV).norm() <= 1e-5 * theirs_BTV.norm()


@pytest.mark.parametrize("shape", ["grouped", "tied"])
def test_bfloat16_is_as_near_to_float32_as_transformers(shape):
    decoder = random_decoder(config(**SHAPES[shape])).bfloat16()
    token_BT, position_BT = tokens_and_positions(4, 50, 96)
    exact_BTV = logits(random_decoder(config(**SHAPES[shape])).bfloat16().float(), token_BT, position_BT)
    with torch.no_grad():
        theirs_BTV = transformers_twin(decoder)(token_BT).logits
    error, yardstick = ((x.float() - exact_BTV).norm() for x in (logits(decoder, token_BT, position_BT), theirs_BTV))
    assert 0 < error <= 1.5 * yardstick
    assert yardstick < 0.1 * exact_BTV.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_rounds_where_transformers_does(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 48, generator=generator).to(dtype)
    ours, theirs = RMSNorm(48, 1e-6).to(dtype), Qwen3RMSNorm(48, 1e-6).to(dtype)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.randn(48, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(ours(x), theirs(x))


def test_every_norm_and_projection_counts():
    """Changing any one parameter changes the logits: none is unused."""
    token_BT, position_BT = tokens_and_positions(2, 9, 96)
    before_BTV = logits(random_decoder(config()), token_BT, position_BT)
    for name, _ in random_decoder(config()).named_parameters():
        decoder = random_decoder(config())
        with torch.no_grad():
            parameter = decoder.get_parameter(name)
            parameter += parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        assert (logits(decoder, token_BT, position_BT) - before_BTV).norm() > 1e-2 * before_BTV.norm(), name


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


@pytest.mark.parametrize("tied", [False, True])
def test_counts_its_parameters(tied):
    decoder = random_decoder(config(tie_word_embeddings=tied))
    assert decoder.config.num_parameters == sum(parameter.numel() for parameter in decoder.parameters())
    assert (decoder.lm_head.weight is decoder.embed_tokens.weight) == tied


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


def written(path, **changes):
    """A config.json with some fields changed; None removes one."""
    raw = config().to_hf() | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return path


def test_config_round_trip(tmp_path):
    assert DecoderConfig.from_pretrained(written(tmp_path)) == config()


@pytest.mark.parametrize("tied", [False, True])
def test_reads_the_config_that_transformers_writes(tmp_path, tied):
    ours = config(tie_word_embeddings=tied, rope_theta=5000.0, rms_norm_eps=1e-5)
    Qwen3Config(**ours.to_hf()).save_pretrained(tmp_path)
    assert DecoderConfig.from_pretrained(tmp_path) == ours


def test_reads_the_older_rotary_fields(tmp_path):
    """transformers 4 wrote rope_theta beside the rest, whole numbers as integers, and rope_scaling: null."""
    written(tmp_path, rope_parameters=None, rope_theta=10000)
    assert DecoderConfig.from_pretrained(tmp_path) == config()
    raw = json.loads((tmp_path / "config.json").read_text()) | {"rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert DecoderConfig.from_pretrained(tmp_path) == config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type: 'llama' is not supported; 'qwen3' is"),
        ({"model_type": None}, "model_type: None is not supported; 'qwen3' is"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": None},
         "rope_type: 'yarn' is not supported; 'default' is"),
        ({"rope_scaling": {"rope_type": "dynamic"}, "rope_parameters": None},
         "rope_type: 'dynamic' is not supported; 'default' is"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0, "factor": 2.0}},
         "rope_type: 'linear' is not supported; 'default' is"),
        ({"use_sliding_window": True}, "use_sliding_window: True is not supported; False is"),
        ({"layer_types": ["full_attention", "sliding_attention"]},
         "layer_types: ['full_attention', 'sliding_attention'] is not supported; ['full_attention'] is"),
        ({"attention_bias": True}, "attention_bias: True is not supported; False is"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; 'silu' is"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"head_dim": None}, "head_dim: missing"),
        ({"rope_theta": None, "rope_parameters": None}, "rope_theta: missing"),
        ({"hidden_size": "48"}, "hidden_size: '48' is not of type int"),
        ({"hidden_size": 48.5}, "hidden_size: 48.5 is not of type int"),
        ({"vocab_size": True}, "vocab_size: True is not of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: 1 is not of type bool"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be positive"),
        ({"num_key_value_heads": 4}, "num_attention_heads=6 is no multiple of num_key_value_heads=4"),
        ({"head_dim": 15}, "head_dim=15 must be even for rotary embedding"),
    ],
)  # fmt: skip
def test_refuses_what_it_would_compute_wrongly(tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        DecoderConfig.from_pretrained(written(tmp_path, **changes))
    assert str(error.value) == f"{tmp_path / 'config.json'}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"model_type": "qwen3",\n',
            "not JSON: Expecting property name enclosed in double quotes: line 2 column 1 (char 24)",
        ),
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xfe", "not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'["qwen3"]', "not a JSON object"),
    ],
)
def test_refuses_what_is_no_config(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        DecoderConfig.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {message.split(':')[0]}")
    assert "\n" not in str(error.value)


def test_refuses_a_path_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"^\S+config\.json: no such file; a model is a Hugging Face directory"):
        DecoderConfig.from_pretrained(tmp_path / "nowhere")
