"""Scalar reward models against transformers' sequence classifiers with one label, of each family.

B sequences   T positions   V vocabulary   D model width
"""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForSequenceClassification

from rollout.decoder import Decoder, causal_attention
from rollout.families import FAMILIES, DecoderConfig
from rollout.scalar import RewardHead, load_scalar, score_all, scores
from rollout.weights import full_tensors, load_decoder, load_weights_, save_decoder
from tests.models import config, random_decoder, transformers_twin
from trainer.distributed import shard_, world

PAD = 95
each_family = pytest.mark.parametrize("model_type", FAMILIES)


def scalar_config(**changes):
    return config(is_scalar=True, pad_token_id=PAD, **changes)


def sequences(lengths, seed=0):
    """Token ids without PAD, where transformers would think a sequence ends."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, PAD, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def transformers_scores(model, some):
    longest = max(map(len, some))
    token_BT = torch.tensor([tokens + [PAD] * (longest - len(tokens)) for tokens in some])
    is_real_BT = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in some])
    return model(token_BT, attention_mask=is_real_BT).logits[:, 0]


@pytest.mark.parametrize("lengths", [[1], [17, 17], [40, 1, 23, 8]])
@each_family
def test_scores_are_those_of_transformers(model_type, lengths):
    decoder, some = random_decoder(scalar_config(model_type=model_type)), sequences(lengths)
    theirs_B = transformers_scores(transformers_twin(decoder, "sdpa"), some)
    with torch.no_grad():
        ours_B = scores(decoder, some)
    assert ours_B.abs().min() > 1e-2 and (len(some) == 1 or ours_B.std() > 0.1)
    torch.testing.assert_close(ours_B, theirs_B, rtol=1e-5, atol=1e-5)


@each_family
def test_bfloat16_scores_are_those_of_transformers_before_they_are_rounded(model_type):
    """transformers rounds the value itself to bfloat16, in which near scores tie."""
    decoder = random_decoder(scalar_config(model_type=model_type)).bfloat16()
    some = sequences([23] * 64)
    theirs_B = transformers_scores(transformers_twin(decoder, "sdpa"), some)
    with torch.no_grad():
        ours_B = scores(decoder, some)
    assert theirs_B.dtype == torch.bfloat16 and ours_B.dtype == torch.float32
    torch.testing.assert_close(ours_B.bfloat16(), theirs_B, rtol=2**-7, atol=2**-12)  # a last place of bfloat16
    assert (ours_B.bfloat16() == theirs_B).float().mean() > 0.9
    assert len(set(ours_B.tolist())) == 64


@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10_000])
def test_batches_change_nothing_but_rounding(max_tokens):
    decoder = random_decoder(scalar_config()).double()
    some = sequences([5, 40, 1, 33, 33, 2, 60, 1])
    alone = [scores(decoder, [tokens]).item() for tokens in some]
    assert score_all(decoder, some, max_tokens) == pytest.approx(alone, rel=1e-12)
    order = [3, 1, 0, 7, 6, 2, 5, 4]
    assert score_all(decoder, [some[i] for i in order], max_tokens) == pytest.approx([alone[i] for i in order])


def test_no_batch_is_over_its_tokens(monkeypatch):
    decoder, shapes = random_decoder(scalar_config()), []
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda t_BT, *rest: shapes.append(t_BT.shape) or forward(t_BT, *rest))
    score_all(decoder, sequences([5, 40, 1, 33, 33, 2, 90, 1]), max_tokens=80)
    assert shapes == [(1, 90), (2, 40), (2, 33), (3, 2)]


@pytest.mark.parametrize("token", [0, PAD])
def test_a_last_token_counts_even_if_it_pads(token):
    """Whoever looks for padding would score the text without it: equal scores for different texts."""
    decoder = random_decoder(scalar_config())
    text = [5, 6, 7]
    texts = [text, [*text, token], [*text, token, token]]
    alone = [score_all(decoder, [text])[0] for text in texts]
    assert len({round(score, 3) for score in alone}) == 3
    assert score_all(decoder, [*texts, text * 5])[:3] == pytest.approx(alone, rel=1e-4)


def test_nothing_to_score():
    assert score_all(random_decoder(scalar_config()), []) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "sequence 1 has 0 tokens; the model scores 1 to 512"),
        ([1] * 513, "sequence 1 has 513 tokens; the model scores 1 to 512"),
        ([1, 96], "sequence 1 has token 96; the model has 96 tokens"),
        ([-1], "sequence 1 has token -1; the model has 96 tokens"),
    ],
)
def test_refuses_what_has_no_score(wrong, message):
    with pytest.raises(ValueError) as error:
        score_all(random_decoder(scalar_config()), [[1], wrong])
    assert str(error.value) == message


def test_every_parameter_has_a_gradient():
    """The head's is the sum of hidden states at last tokens."""
    decoder, some = random_decoder(scalar_config()), sequences([9, 4])
    scores(decoder, some).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in decoder.parameters())
    last_2D = [
        decoder(
            torch.tensor([tokens]), torch.arange(len(tokens))[None], causal_attention, lambda hidden, _: hidden[0, -1]
        )
        for tokens in some
    ]
    torch.testing.assert_close(decoder.score.weight.grad[0], sum(last_2D), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_shard_bytes", [10_000, 1 << 30])
@pytest.mark.parametrize("tied", [False, True])
@each_family
def test_transformers_reads_what_we_write(tmp_path, model_type, tied, max_shard_bytes):
    """Tied or not: small published models are, and a scalar head is neither."""
    decoder = random_decoder(scalar_config(model_type=model_type, tie_word_embeddings=tied))
    save_decoder(decoder, tmp_path, max_shard_bytes=max_shard_bytes)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    some = sequences([20, 11])
    torch.testing.assert_close(
        torch.tensor(score_all(decoder, some)), transformers_scores(model.eval(), some), rtol=1e-5, atol=1e-5
    )
    again = load_scalar(tmp_path)
    assert again.config == decoder.config
    assert score_all(again, some) == score_all(decoder, some)


@each_family
def test_reads_what_transformers_writes(tmp_path, model_type):
    settings = AutoConfig.for_model(**scalar_config(model_type=model_type).to_hf())
    model = AutoModelForSequenceClassification.from_config(settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(tmp_path)
    some = sequences([20, 11])
    ours_B = torch.tensor(score_all(load_scalar(tmp_path), some))
    torch.testing.assert_close(ours_B, transformers_scores(model, some), rtol=1e-5, atol=1e-5)
    assert load_scalar(tmp_path, torch.bfloat16).score.weight.dtype == torch.bfloat16


@pytest.fixture
def saved(tmp_path):
    save_decoder(random_decoder(scalar_config()), tmp_path)
    return tmp_path


def test_a_language_head_beside_is_passed_over(saved):
    file = saved / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.zeros(96, 48)}, file)
    assert score_all(load_scalar(saved), [[1, 2]]) == score_all(random_decoder(scalar_config()), [[1, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score.weight": torch.zeros(2, 48)}, "{file}: score.weight: shape [2, 48], the model has [1, 48]"),
        ({"score.bias": torch.zeros(1)}, "{file}: score.bias: the model in config.json has no such tensor"),
        ({"score.weight": None}, "{path}: score.weight: missing from the safetensors files (1 missing in all)"),
    ],
)
def test_refuses_another_head(saved, change, message):
    file = saved / "model.safetensors"
    save_file({name: tensor for name, tensor in (load_file(file) | change).items() if tensor is not None}, file)
    with pytest.raises(ValueError) as error:
        load_scalar(saved)
    assert str(error.value) == message.format(file=file, path=saved)


def test_reward_and_language_models_are_not_taken_for_each_other(tmp_path):
    save_decoder(random_decoder(scalar_config()), tmp_path / "reward")
    save_decoder(random_decoder(config()), tmp_path / "language")
    with pytest.raises(ValueError, match="is not the language model expected"):
        load_decoder(tmp_path / "reward")
    with pytest.raises(ValueError, match="is not the reward model expected"):
        load_scalar(tmp_path / "language")


def sharded_meta_decoder(path, mesh):
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.from_pretrained(path, is_scalar=True))
    shard_(decoder, mesh, torch.float32)
    return decoder.to_empty(device="cpu")


def test_a_sharded_model_scores_trains_and_saves_as_a_whole_one(saved, tmp_path):
    whole, some = load_scalar(saved), sequences([12, 5])
    scores(whole, some).sum().backward()
    with world() as here:
        decoder = sharded_meta_decoder(saved, here.mesh)
        load_weights_(decoder, saved)
        ours_B = scores(decoder, some)
        ours_B.sum().backward()
        assert isinstance(decoder.score.weight, DTensor)
        assert torch.equal(ours_B, scores(whole, some))
        assert torch.equal(decoder.score.weight.grad.full_tensor(), whole.score.weight.grad)
        save_decoder(decoder, tmp_path / "again")
    assert all(
        torch.equal(tensor, dict(full_tensors(whole))[name])
        for name, tensor in full_tensors(load_scalar(tmp_path / "again"))
    )


def test_a_rank_reads_its_own_rows(saved):
    """The second of two: of the head's one row it has none."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        decoder = sharded_meta_decoder(saved, init_device_mesh("cpu", (2,)))
        load_weights_(decoder, saved)
        parts = {name: parameter.detach().to_local() for name, parameter in decoder.named_parameters()}
    finally:
        dist.destroy_process_group()
    for name, tensor in full_tensors(load_scalar(saved)):
        _, *second = tensor.chunk(2)
        assert torch.equal(parts[name], *second) if second else parts[name].numel() == 0, name


def test_a_language_model_lends_all_but_the_head(tmp_path):
    language = random_decoder(config(pad_token_id=None))
    save_decoder(language, tmp_path)
    shape, is_there = RewardHead(seed=5, pad_token_id=7).config(tmp_path)
    assert (shape.is_scalar, shape.pad_token_id, is_there) == (True, 7, False)
    decoder = Decoder(shape)
    load_weights_(decoder, tmp_path, but=("score.weight",))
    RewardHead(seed=5, pad_token_id=7).draw_(decoder)
    theirs = dict(language.named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in decoder.named_parameters() if name in theirs)
    assert decoder.score.weight.std().item() == pytest.approx(49**-0.5, rel=0.3)  # D = 48
    again, other = Decoder(shape), Decoder(shape)
    RewardHead(seed=5, pad_token_id=7).draw_(again)
    RewardHead(seed=6, pad_token_id=7).draw_(other)
    assert torch.equal(again.score.weight, decoder.score.weight)
    assert not torch.equal(other.score.weight, decoder.score.weight)


def test_a_reward_model_keeps_its_head_and_its_padding(tmp_path):
    decoder = random_decoder(config(is_scalar=True, pad_token_id=3))
    save_decoder(decoder, tmp_path)
    assert RewardHead(seed=0, pad_token_id=7).config(tmp_path) == (decoder.config, True)


def test_a_sharded_head_is_drawn_as_a_whole_one(saved):
    whole = load_scalar(saved)
    head = RewardHead(seed=1, pad_token_id=None)
    head.draw_(whole)
    with world() as here:
        decoder = sharded_meta_decoder(saved, here.mesh)
        head.draw_(decoder)
        assert torch.equal(decoder.score.weight.full_tensor(), whole.score.weight)


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file; a model is a Hugging Face directory"):
        RewardHead(seed=0, pad_token_id=None).config(tmp_path)
