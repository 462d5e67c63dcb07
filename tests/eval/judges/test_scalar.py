"""Scalar judges: ours, published heads under other names, and what only transformers computes.

InternLM2 and Eurus are checked against the same weights as a Llama's and a Mistral's of transformers, written under the
published names and in the published layout.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, Gemma2Config

from eval.judges.judge import Question, compare_two, mean_of, score
from eval.judges.published_heads import mistral_chat
from eval.judges.scalar import CHUNK, open_scalar
from rollout.chat import whole_chat
from rollout.weights import save_decoder
from tests import models
from tests.models import random_decoder, transformers_twin

TOKENIZER = models.tokenizer()
V = len(TOKENIZER)
PROMPT, RESPONSE = "Why is the sky blue?", "It scatters."


def shape(**changes):
    return models.config(vocab_size=V, is_scalar=True, pad_token_id=0, **changes)


@pytest.fixture
def folder(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def write(folder, tensors, **raw):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))


def hf_shape(decoder, **changes):
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "max_position_embeddings",
    )  # fmt: skip
    return {name: getattr(decoder.config, name) for name in names} | changes


@torch.no_grad()
def expected(decoder, tokens):
    return float(transformers_twin(decoder)(torch.tensor([tokens])).logits)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_sequence_classifier_is_scored_at_the_end_of_its_chat(model_type, folder):
    decoder = random_decoder(shape(model_type=model_type))
    save_decoder(decoder, folder)
    judge = open_scalar(str(folder), "w", "float32")
    wanted = expected(decoder, whole_chat(TOKENIZER, PROMPT, RESPONSE, "it"))
    assert score(judge, PROMPT, RESPONSE, votes=3) == pytest.approx(wanted, abs=1e-5)


def internlm2(decoder):
    """The decoder's weights as InternLM2 stores them."""
    K, C = decoder.config.num_key_value_heads, decoder.config.head_dim
    ours = decoder.state_dict()
    names = {
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    theirs = {
        "v_head.weight": ours["score.weight"], "model.tok_embeddings.weight": ours["embed_tokens.weight"],
        "model.norm.weight": ours["norm.weight"],
    }  # fmt: skip
    for layer in range(decoder.config.num_hidden_layers):
        at = f"layers.{layer}."
        for our_name, name in names.items():
            theirs[f"model.{at}{name}.weight"] = ours[f"{at}{our_name}.weight"]
        q, k, v = (ours[f"{at}self_attn.{x}_proj.weight"] for x in "qkv")
        groups = [part for i in range(K) for part in (q.view(K, -1, C, q.shape[1])[i].flatten(0, 1), k[i * C : (i + 1) * C], v[i * C : (i + 1) * C])]  # fmt: skip # noqa: E501
        theirs[f"model.{at}attention.wqkv.weight"] = torch.cat(groups)
    return theirs


def test_internlm2_reward_is_scored_at_its_reward_token(folder):
    decoder = random_decoder(shape(model_type="llama", head_dim=8))  # 48 / 6: InternLM2 names no width of its heads
    raw = hf_shape(decoder, bias=False, rope_scaling={"type": "dynamic", "factor": 2.0}, reward_token_id=7)
    del raw["head_dim"]
    write(folder, internlm2(decoder), architectures=["InternLM2ForRewardModel"], model_type="internlm2", **raw)
    judge = open_scalar(str(folder), "w", "float32")
    wanted = expected(decoder, [*whole_chat(TOKENIZER, PROMPT, RESPONSE, "it"), 7])
    assert score(judge, PROMPT, RESPONSE) == pytest.approx(wanted, abs=1e-5)


def test_internlm2_without_a_plain_tokenizer_needs_its_code(folder):
    decoder = random_decoder(shape(model_type="llama", head_dim=8))
    write(
        folder,
        internlm2(decoder),
        architectures=["InternLM2ForRewardModel"],
        model_type="internlm2",
        **hf_shape(decoder),
    )
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json, .* --trust-remote-code"):
        open_scalar(str(folder), "w", "float32")


def test_eurus_reads_mistrals_chat_up_to_its_window(folder):
    decoder = random_decoder(shape(model_type="mistral"))
    tensors = {f"model.{name}": tensor for name, tensor in decoder.state_dict().items() if name != "score.weight"}
    tensors["regression_head.weight"] = decoder.score.weight.detach()
    raw = hf_shape(decoder, sliding_window=200)
    write(folder, tensors, architectures=["EurusRewardModel"], model_type="mistral", **raw)
    judge = open_scalar(str(folder), "w", "float32")
    text = f"[INST] {PROMPT} [/INST] {RESPONSE}{TOKENIZER.eos_token}"
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    tokens = tokens if TOKENIZER.bos_token_id is None else [TOKENIZER.bos_token_id, *tokens]
    assert score(judge, PROMPT, RESPONSE) == pytest.approx(expected(decoder, tokens), abs=1e-5)
    ((_, (long,)),) = judge.judge([Question(id="0", prompt="x " * 300, responses=("So.",))], 1)
    assert long.error.startswith("unasked: ") and long.error.endswith("the model scores 1 to 200")


def test_the_chat_of_mistral():
    turns = [{"role": r, "content": c} for r, c in (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))]
    from rollout.questions import read_prompt

    assert mistral_chat(read_prompt(turns), "d", "</s>") == "[INST] S\na [/INST] b</s>[INST] c [/INST] d</s>"


def gemma(folder, num_labels=1):
    config = Gemma2Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_labels=num_labels, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    return model


def test_what_our_decoder_does_not_compute_runs_by_transformers(folder):
    model = gemma(folder)
    judge = open_scalar(str(folder), "w", "float32")
    tokens = whole_chat(TOKENIZER, PROMPT, RESPONSE, "it")
    with torch.no_grad():
        wanted = float(model(torch.tensor([tokens])).logits)
    assert score(judge, PROMPT, RESPONSE) == pytest.approx(wanted, abs=1e-6)


def test_many_labels_are_no_reward(folder):
    gemma(folder, num_labels=3)
    with pytest.raises(ValueError, match="has 3 labels; a reward model has 1"):
        open_scalar(str(folder), "w", "float32")


@pytest.mark.parametrize(
    "raw, message",
    [
        (
            {"architectures": ["OtherRewardModel"], "auto_map": {"AutoModel": "x.Y"}},
            "needs code .* --trust-remote-code",
        ),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "no reward model with one score"),
        ({"architectures": ["InternLM2ForRewardModel"], "bias": True}, "config.json: bias: true is not supported"),
        ({"architectures": ["EurusRewardModel"]}, "config.json: "),
    ],
)
def test_what_cannot_be_opened_is_one_line(raw, message, folder):
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message) as told:
        open_scalar(str(folder), "w", "float32")
    assert "\n" not in str(told.value)


def test_scores_do_not_depend_on_company_and_every_vote_is_the_same(folder):
    save_decoder(random_decoder(shape()), folder)
    judge = open_scalar(str(folder), "w", "float32")
    asked = [Question(id=str(i), prompt=PROMPT, responses=("So. " * (i % 7 + 1),)) for i in range(CHUNK + 3)]
    asked.insert(2, Question(id="long", prompt="x " * 600, responses=("So.",)))
    drawn = dict(judge.judge(asked, 2))
    assert sorted(drawn) == list(range(len(asked))) and drawn[2][0].error.startswith("unasked: ")
    alone = [mean_of(next(judge.judge([one], 1))[1], 1) for one in asked]
    together = [mean_of(drawn[i], 2) for i in range(len(asked))]
    assert [a is None for a in alone] == [t is None for t in together] == [i == 2 for i in range(len(asked))]
    assert all(float(a) == pytest.approx(float(t), abs=1e-5) for a, t in zip(alone, together) if a is not None)
    assert compare_two(judge, PROMPT, "So.", "So.") == "tie"


def test_a_score_that_is_no_number_is_an_error(folder):
    decoder = random_decoder(shape())
    decoder.score.weight.data.fill_(float("nan"))
    save_decoder(decoder, folder)
    ((_, (one,)),) = open_scalar(str(folder), "w", "float32").judge(
        [Question(id="0", prompt=PROMPT, responses=(RESPONSE,))], 1
    )
    assert one.score is None and one.error.startswith("not finite")
