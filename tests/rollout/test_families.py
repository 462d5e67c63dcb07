"""Configs of every family, read from and written to config.json."""

import json

import pytest
from transformers import AutoConfig

from rollout.families import FAMILIES, DecoderConfig
from rollout.rope import LinearRope, Llama3Rope, YarnRope
from tests.models import config

SCALINGS = [
    None,
    LinearRope(factor=2.0),
    Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256),
    YarnRope(factor=2.0, original_max_position_embeddings=256, beta_fast=16.0, truncate=False, mscale=0.5),
]
each_family = pytest.mark.parametrize("model_type", FAMILIES)
NULL = object()  # None removes a field, this writes null


def written(path, **changes):
    """A config.json with some fields changed; None removes one."""
    raw = config(**{"model_type": changes["model_type"]} if changes.get("model_type") in FAMILIES else {}).to_hf()
    raw |= changes
    kept = {key: None if value is NULL else value for key, value in raw.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))
    return path


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling and scaling.rope_type)
@pytest.mark.parametrize("is_scalar", [False, True])
@each_family
def test_round_trip_on_our_own_and_through_transformers(tmp_path, model_type, is_scalar, scaling):
    ours = config(
        model_type=model_type, is_scalar=is_scalar, rope_scaling=scaling, tie_word_embeddings=is_scalar,
        rope_theta=5000.0, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=(1, 2), pad_token_id=1,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(ours.to_hf()))
    assert DecoderConfig.from_pretrained(tmp_path, is_scalar) == ours
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.num_labels == (1 if is_scalar else 2)  # theirs is 2 where labels mean nothing
    theirs.save_pretrained(tmp_path)
    assert DecoderConfig.from_pretrained(tmp_path, is_scalar) == ours


@each_family
def test_a_model_without_special_tokens_is_given_none(tmp_path, model_type):
    """Left out, they would be those of Llama 2."""
    (tmp_path / "config.json").write_text(json.dumps(config(model_type=model_type).to_hf()))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.bos_token_id is theirs.eos_token_id is theirs.pad_token_id is None


def test_reads_the_older_rotary_fields(tmp_path):
    """transformers 4 wrote rope_theta beside the rest, whole numbers as integers, and rope_scaling: null."""
    written(tmp_path, rope_parameters=None, rope_theta=10000)
    assert DecoderConfig.from_pretrained(tmp_path) == config()
    written(tmp_path, rope_parameters=None, rope_theta=10000, rope_scaling=NULL)
    assert DecoderConfig.from_pretrained(tmp_path) == config()


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("type_field", ["type", "rope_type"])
def test_reads_scalings_wherever_they_are_written(tmp_path, name, type_field):
    """The length trained on is that of the model where it is not given, as in transformers."""
    settings = {type_field: "yarn", "factor": 4}
    written(tmp_path, **{"rope_parameters": None} | {name: settings}, rope_theta=5000)
    expected = YarnRope(factor=4, original_max_position_embeddings=512)
    assert DecoderConfig.from_pretrained(tmp_path) == config(rope_theta=5000, rope_scaling=expected)
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
    expected = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512, "rope_theta": 5000}
    assert {field: theirs[field] for field in expected} == expected


# What published configs leave out or leave null.
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mistral"])
@pytest.mark.parametrize("nothing", [None, NULL], ids=["absent", "null"])
def test_heads_share_the_width_where_theirs_is_not_given(tmp_path, model_type, nothing):
    written(tmp_path, model_type=model_type, head_dim=nothing)
    assert DecoderConfig.from_pretrained(tmp_path) == config(model_type=model_type, head_dim=8)
    written(tmp_path, model_type=model_type, num_key_value_heads=nothing)
    assert DecoderConfig.from_pretrained(tmp_path) == config(model_type=model_type, num_key_value_heads=6)


def test_llama_2_does_not_name_its_theta(tmp_path):
    written(tmp_path, model_type="llama", rope_theta=None, rope_parameters=None)
    assert DecoderConfig.from_pretrained(tmp_path).rope_theta == 10_000.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 10_000.0


@pytest.mark.parametrize("window", [NULL, 512, 4096])
def test_a_window_over_the_longest_text_hides_nothing(tmp_path, window):
    written(tmp_path, model_type="mistral", sliding_window=window)
    assert DecoderConfig.from_pretrained(tmp_path) == config(model_type="mistral")


def test_a_window_that_is_switched_off_is_none(tmp_path):
    written(tmp_path, model_type="qwen2", use_sliding_window=False, sliding_window=100, max_window_layers=1)
    assert DecoderConfig.from_pretrained(tmp_path) == config(model_type="qwen2")


FOUR = "'qwen3', 'qwen2', 'llama' and 'mistral' are"
FOUR_ROPES = "'default', 'linear', 'llama3' and 'yarn' are"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, f"model_type: 'gemma2' is not supported; {FOUR}"),
        ({"model_type": None}, f"model_type: None is not supported; {FOUR}"),
        ({"architectures": ["Qwen3Model"]},
         "architectures: ['Qwen3Model'] is not the language model expected; ['Qwen3ForCausalLM'] is"),
        ({"architectures": ["Qwen3ForSequenceClassification"]},
         "architectures: ['Qwen3ForSequenceClassification'] is not the language model expected; "
         "['Qwen3ForCausalLM'] is"),
        ({"rope_scaling": {"rope_type": "dynamic"}, "rope_parameters": None},
         f"rope_type: 'dynamic' is not supported; {FOUR_ROPES}"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0, "factor": 2.0}},
         f"rope_type: 'longrope' is not supported; {FOUR_ROPES}"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor: '2' is not of type float"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "rope_scaling.factor=-2.0 must be positive"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}},
         "rope_parameters.high_freq_factor: missing"),
        ({"rope_parameters": ["yarn"]}, "rope_parameters: ['yarn'] is not a JSON object"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
         "rope_parameters.partial_rotary_factor: 0.5 is not supported; 1.0 is"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor: 0.25 is not supported; 1.0 is"),
        ({"use_sliding_window": True}, "use_sliding_window: True is not supported; False is"),
        ({"layer_types": ["full_attention", "sliding_attention"]},
         "layer_types: 'sliding_attention' is not supported; 'full_attention' is"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window: True is not supported; False is"),
        ({"model_type": "mistral", "sliding_window": 511},
         "sliding_window: 511 is not supported; null is, or at least max_position_embeddings=512, under which it "
         "hides nothing"),
        ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 32768},
         "sliding_window: 4096 is not supported; null is, or at least max_position_embeddings=32768, under which it "
         "hides nothing"),
        ({"attention_bias": True}, "attention_bias: True is not supported; False is"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias: True is not supported; False is"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias: True is not supported; False is"),
        ({"quantization_config": {"quant_method": "fp8"}},
         "quantization_config: quantized weights are not supported; float32, bfloat16 and float16 are"),
        ({"eos_token_id": "</s>"}, "eos_token_id: '</s>' is not of type int, nor a list of such"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; 'silu' is"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"model_type": "llama", "num_attention_heads": None}, "num_attention_heads: missing"),
        ({"head_dim": None}, "head_dim: missing"),
        ({"rope_theta": None, "rope_parameters": None}, "rope_theta: missing"),
        ({"max_position_embeddings": None}, "max_position_embeddings: missing"),
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
    ("changes", "message"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]},
         "architectures: ['Qwen3ForCausalLM'] is not the reward model expected; ['Qwen3ForSequenceClassification'] is"),
        ({"architectures": ["Qwen3ForTokenClassification"]},
         "architectures: ['Qwen3ForTokenClassification'] is not the reward model expected; "
         "['Qwen3ForSequenceClassification'] is"),
        ({"id2label": {"0": "bad", "1": "good"}}, "id2label: 2 labels are not supported; a reward model has 1"),
        ({"id2label": None, "num_labels": 5}, "num_labels: 5 labels are not supported; a reward model has 1"),
        ({"id2label": None}, "num_labels: 2 labels are not supported; a reward model has 1"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_scalar_reward_model(tmp_path, changes, message):
    raw = config(is_scalar=True).to_hf() | changes
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    with pytest.raises(ValueError) as error:
        DecoderConfig.from_pretrained(tmp_path, is_scalar=True)
    assert str(error.value) == f"{tmp_path / 'config.json'}: {message}"


@pytest.mark.parametrize("is_scalar", [False, True])
@each_family
def test_any_value_of_any_field_is_read_or_refused_in_one_line(tmp_path, model_type, is_scalar):
    file, num_refused = tmp_path / "config.json", 0
    settings = {"factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 100.0}
    raw = config(model_type=model_type, is_scalar=is_scalar).to_hf() | {"layer_types": [], "num_labels": 1}
    raw |= {"rope_scaling": {"rope_type": "yarn", **settings}, "sliding_window": 512, "quantization_config": None}
    values = [None, [], {}, "x", -1, 0, 1.5, True, [[]], [{}], {"a": 1}, float("nan"), float("inf")]
    changed = [raw | {name: value} for name in raw for value in values]
    changed += [raw | {"rope_scaling": raw["rope_scaling"] | {name: v}} for name in raw["rope_scaling"] for v in values]
    for content in changed:
        file.write_text(json.dumps(content))
        try:
            hash(DecoderConfig.from_pretrained(tmp_path, is_scalar))
        except ValueError as error:
            num_refused += 1
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
    assert num_refused > len(changed) / 3


def test_one_label_may_be_a_number(tmp_path):
    raw = config(is_scalar=True).to_hf() | {"num_labels": 1}
    raw.pop("id2label")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert DecoderConfig.from_pretrained(tmp_path, is_scalar=True) == config(is_scalar=True)


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
