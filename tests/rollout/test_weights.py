"""Weights into and out of Hugging Face directories, read and written by transformers on the other side."""

import json
import re
import shutil
import weakref

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rollout.weights as weights
from rollout.decoder import Decoder, all_logits, causal_attention
from rollout.families import FAMILIES
from rollout.rope import YarnRope
from rollout.weights import full_tensors, load_decoder, load_weights_, replace_directory, save_decoder
from tests.models import config, random_decoder, tokenizer

TOKEN_BT = torch.randint(0, 96, (2, 15), generator=torch.Generator().manual_seed(0))
SMALL = 10_000  # bytes: several shards, and the embedding (18 kB) alone over the limit
each_family = pytest.mark.parametrize("model_type", FAMILIES)


@torch.no_grad()
def logits(model):
    if isinstance(model, Decoder):
        return model(TOKEN_BT, torch.arange(15).expand(2, 15), causal_attention, all_logits)
    return model.eval()(TOKEN_BT).logits


def assert_same_weights(one, other):
    pairs = dict(full_tensors(one)), dict(full_tensors(other))
    assert pairs[0].keys() == pairs[1].keys()
    for name, tensor in pairs[0].items():
        assert torch.equal(tensor, pairs[1][name]), name


def assert_close(one_BTV, other_BTV):
    assert (one_BTV - other_BTV).abs().max() <= 1e-4 * other_BTV.abs().max()


@pytest.mark.parametrize("max_shard_bytes", [1, SMALL, 1 << 30])
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tmp_path, tied, max_shard_bytes):
    decoder = random_decoder(config(tie_word_embeddings=tied))
    save_decoder(decoder, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    loaded = load_decoder(tmp_path / "model")
    assert_same_weights(loaded, decoder)
    assert loaded.config == decoder.config
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    num_files = len(list((tmp_path / "model").glob("*.safetensors")))
    assert num_files == {1: 2 + 33 + (not tied), 1 << 30: 1}.get(max_shard_bytes, num_files)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]  # nothing left beside it


@pytest.mark.parametrize("max_shard_bytes", [SMALL, 1 << 30])
@pytest.mark.parametrize("tied", [False, True])
@each_family
def test_transformers_reads_what_we_write(tmp_path, model_type, tied, max_shard_bytes):
    yarn = YarnRope(factor=4.0, original_max_position_embeddings=128)
    decoder = random_decoder(
        config(model_type=model_type, tie_word_embeddings=tied, rope_theta=777.0, rope_scaling=yarn)
    )
    save_decoder(decoder, tmp_path, max_shard_bytes=max_shard_bytes)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="sdpa")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(decoder), logits(model))


@pytest.mark.parametrize("max_shard_size", ["10KB", "1GB"])
@pytest.mark.parametrize("tied", [False, True])
@each_family
def test_reads_what_transformers_writes(tmp_path, model_type, tied, max_shard_size):
    shape = config(model_type=model_type, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape.to_hf()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "10KB")
    decoder = load_decoder(tmp_path)
    assert decoder.config == shape
    assert_close(logits(decoder), logits(model))


def test_dtypes(tmp_path):
    """Written as asked, read as asked, rounded once; transformers picks the written one up from config.json."""
    decoder = random_decoder(config())
    save_decoder(decoder, tmp_path, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert_same_weights(load_decoder(tmp_path), random_decoder(config()).bfloat16().float())
    assert load_decoder(tmp_path, torch.bfloat16).norm.weight.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_loading_in_place_keeps_the_parameters(tmp_path):
    save_decoder(random_decoder(config(), seed=1), tmp_path)
    decoder = random_decoder(config(), seed=2)
    parameters = list(decoder.parameters())
    load_weights_(decoder, tmp_path)
    assert all(old is new for old, new in zip(parameters, decoder.parameters(), strict=True))
    assert_same_weights(decoder, random_decoder(config(), seed=1))


def test_a_tied_head_that_is_written_all_the_same_is_passed_over(tmp_path):
    decoder = random_decoder(config(tie_word_embeddings=True))
    save_decoder(decoder, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert_same_weights(load_decoder(tmp_path), decoder)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)  # of two generations of transformers
def test_tables_that_older_files_hold_are_passed_over(tmp_path, name):
    decoder = random_decoder(config(model_type="llama"))
    save_decoder(decoder, tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(8)}))
    assert_same_weights(load_decoder(tmp_path), decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_holds_one_tensor_beside_the_decoder(sharded, monkeypatch, dtype):
    """Each is gone before the next is read; so what is held beside the decoder is never more than the largest."""
    alive: weakref.WeakSet = weakref.WeakSet()
    num_read = []

    class Slice:
        def __init__(self, tensor):
            self.tensor = tensor

        def __getattr__(self, name):
            return getattr(self.tensor, name)

        def __getitem__(self, index):
            assert not alive
            num_read.append(1)
            tensor = self.tensor[index]
            alive.add(tensor)
            return tensor

    class Shard:
        def __init__(self, *args, **kwargs):
            self.file = safe_open(*args, **kwargs)

        def __enter__(self):
            self.shard = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.shard.keys()

        def get_slice(self, name):  # and no get_tensor
            return Slice(self.shard.get_slice(name))

    monkeypatch.setattr(weights, "safe_open", Shard)
    decoder = load_decoder(sharded, dtype)
    assert len(num_read) == len(list(decoder.parameters())) and not alive
    assert_same_weights(decoder, random_decoder(config()).to(dtype))


@pytest.fixture
def saved(tmp_path):
    save_decoder(random_decoder(config()), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    save_decoder(random_decoder(config()), tmp_path / "model", max_shard_bytes=SMALL)
    return tmp_path / "model"


def edit(path, change):
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def refusal(path):
    with pytest.raises(ValueError) as error:
        load_decoder(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refuses_another_shape(saved):
    edit(saved, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(80, 47)}))
    file = saved / "model.safetensors"
    assert refusal(saved) == f"{file}: model.layers.1.mlp.up_proj.weight: shape [80, 47], the model has [80, 48]"


def test_refuses_a_missing_tensor(saved):
    edit(saved, lambda tensors: [tensors.pop(f"model.layers.{i}.input_layernorm.weight") for i in (2, 1)])
    name = "model.layers.1.input_layernorm.weight"
    assert refusal(saved) == f"{saved}: {name}: missing from the safetensors files (2 missing in all)"


def test_refuses_an_unknown_tensor(saved):
    edit(saved, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(96)}))
    file, name = saved / "model.safetensors", "model.layers.0.self_attn.q_proj.bias"
    assert refusal(saved) == f"{file}: {name}: the model in config.json has no such tensor"


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_refuses_quantized_weights(saved, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    edit(saved, lambda tensors: tensors.update({name: torch.zeros(80, 48).to(dtype)}))
    kind = {torch.int32: "I32", torch.float8_e4m3fn: "F8_E4M3"}[dtype]
    file = saved / "model.safetensors"
    assert refusal(saved) == f"{file}: {name}: type {kind} is not supported; F64, F32, F16, BF16 are"


@pytest.mark.parametrize("number", [1, -1])
def test_refuses_a_missing_shard_before_it_reads_another(sharded, number):
    file = sorted(sharded.glob("*.safetensors"))[number]
    file.unlink()
    assert refusal(sharded).startswith(f"{file}: no such file; weights are read from model.safetensors or from")
    decoder = random_decoder(config(), seed=5)
    with pytest.raises(ValueError, match="no such file"):
        load_weights_(decoder, sharded)
    assert_same_weights(decoder, random_decoder(config(), seed=5))


def test_refuses_a_shard_without_what_the_index_says_is_in_it(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    name = "model.layers.2.mlp.up_proj.weight"
    file = sharded / index["weight_map"][name]
    save_file({other: tensor for other, tensor in load_file(file).items() if other != name}, file)
    assert refusal(sharded) == f"{sharded}: {name}: missing from the safetensors files (1 missing in all)"


def test_refuses_a_damaged_header(saved):
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)
    assert refusal(saved).startswith(f"{file}: not a complete safetensors file: ")


def test_refuses_a_directory_without_weights(saved):
    (saved / "model.safetensors").unlink()
    assert refusal(saved).startswith(f"{saved / 'model.safetensors'}: no such file; weights are read from")


# In the data; in the header; in the header's length; nothing at all.
@pytest.mark.parametrize("num_bytes", [-100, 60, 5, 0])
def test_refuses_a_truncated_file(saved, num_bytes):
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:num_bytes])
    assert refusal(saved).startswith(f"{file}: not a complete safetensors file: ")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_refuses_a_broken_index(sharded, content):
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(sharded) == f"{index}: not an index of shards: a JSON object with weight_map is expected"


def test_saving_over_a_directory_keeps_what_is_not_weights(tmp_path):
    save_decoder(random_decoder(config(), seed=1), tmp_path / "model", max_shard_bytes=SMALL)
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model_card.md").write_text("mine")
    (tmp_path / "model" / "runs" / "1").mkdir(parents=True)
    (tmp_path / "model" / "runs" / "1" / "config.json").write_text("mine too")
    save_decoder(random_decoder(config(), seed=2), tmp_path / "model")
    assert_same_weights(load_decoder(tmp_path / "model"), random_decoder(config(), seed=2))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("here") == tokenizer().encode("here")
    assert (tmp_path / "model" / "model_card.md").read_text() == "mine"
    assert (tmp_path / "model" / "runs" / "1" / "config.json").read_text() == "mine too"
    assert [file.name for file in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]  # no old shard


@pytest.mark.parametrize("num_shards_written", [0, 2])
def test_an_interrupted_save_leaves_the_old_directory(saved, monkeypatch, num_shards_written):
    calls = []

    def full_disk(*args, **kwargs):
        calls.append(args)
        if len(calls) > num_shards_written:
            raise SafetensorError("No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match=f"{saved}: cannot be written: No space left on device"):
        save_decoder(random_decoder(config(), seed=2), saved, max_shard_bytes=SMALL)
    assert_same_weights(load_decoder(saved), random_decoder(config()))
    monkeypatch.undo()
    save_decoder(random_decoder(config(), seed=3), saved)  # over what the interrupted one left
    assert_same_weights(load_decoder(saved), random_decoder(config(), seed=3))
    assert [file.name for file in saved.parent.iterdir()] == ["model"]


def test_a_save_interrupted_between_its_renames_loses_nothing(saved):
    tokenizer().save_pretrained(saved)
    shutil.move(saved, saved.with_name("model.old"))  # where the process died
    save_decoder(random_decoder(config(), seed=2), saved)
    assert_same_weights(load_decoder(saved), random_decoder(config(), seed=2))
    assert (saved / "tokenizer.json").exists()
    assert [file.name for file in saved.parent.iterdir()] == ["model"]


def test_replacing_a_directory(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside" / "file").write_text(content)
        replace_directory(tmp_path / "aside", tmp_path / "place")
        assert (tmp_path / "place" / "file").read_text() == content
        assert [file.name for file in tmp_path.iterdir()] == ["place"]


def test_ranks_that_do_not_write_write_nothing(tmp_path):
    save_decoder(random_decoder(config()), tmp_path / "model", is_writer=False, max_shard_bytes=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_they_may_read_otherwise(sharded):
    modes = {file.stat().st_mode for file in sharded.iterdir()}
    assert len(modes) == 1


def test_the_index_is_what_transformers_documents(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * config().num_parameters
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert all(re.fullmatch(rf"model-\d{{5}}-of-{len(files):05d}\.safetensors", file) for file in files)
    assert all(name in load_file(sharded / file) for name, file in index["weight_map"].items())
