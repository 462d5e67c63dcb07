"""The small model: its tokenizer on any text, and its directory read by everybody."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from patarm_core.judgment import ALL_TAGS
from rollout.decoder import all_logits, causal_attention
from rollout.engine import Engine
from rollout.params import SamplingParams
from rollout.vocabulary import load_tokenizer
from rollout.weights import load_decoder
from tests.models import config, tokenizer
from trainer.tiny import make_model, make_tokenizer

TAGS = [f"<{slash}{tag}>" for tag in ALL_TAGS for slash in ("", "/")]
TEXTS = ["the answer is here, then there: 7.5 of 10. The other answer is not."] * 20
# Pieces that a tokenizer might join, split, strip or escape, beside any text.
texts = st.lists(
    st.text(max_size=20)
    | st.sampled_from([*TAGS, " ", "  \n", "\r\n", "\t", "don't", " ,", "1234", "<|im_end|>", "▁", "Ġ"])
).map("".join)


@given(texts)
@example("")
@example(" leading, trailing  ")
@example("a\u0301 = á ≠ ａ ﬁ \U0001f468\u200d\U0001f469 \u202e")  # nothing is normalised
@example("\x00\x7f\x80\ufeff\ufffd\U0010ffff")
@example("<think>I think</think>\n<answer>7.5</answer>")
def test_any_text_round_trips(text):
    token_ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(token_ids) == text
    assert all(0 <= token < len(tokenizer()) for token in token_ids)


@given(texts, texts)
def test_a_tag_cuts_the_text(before, after):
    """The tokens around a tag are those of the texts around it: what a judge reads does not hang on its neighbours."""
    encode = tokenizer().encode
    assert encode(before + "<answer>" + after) == encode(before) + encode("<answer>") + encode(after)


def test_tags_and_chat_marks_are_single_tokens():
    ids = [tokenizer().encode(text, add_special_tokens=False) for text in [*TAGS, "<|im_start|>", "<|im_end|>"]]
    assert all(len(token_ids) == 1 for token_ids in ids)
    assert len({token_ids[0] for token_ids in ids}) == len(TAGS) + 2


def test_tags_are_text_and_chat_marks_are_not():
    """Stop strings and parsers see what is decoded without special tokens."""
    text = "<think>so</think><answer>1</answer>"
    assert tokenizer().decode(tokenizer().encode(text + "<|im_end|>"), skip_special_tokens=True) == text


def test_digits_stand_alone():
    assert len(tokenizer().encode("10.75")) == 5


def test_common_words_are_single_tokens_and_sizes_are_kept():
    assert len(make_tokenizer(TEXTS, 340)) <= 340
    assert len(tokenizer().encode(" answer")) == 1
    assert len(make_tokenizer([], 10_000)) == 256 + 3 + len(TAGS)


def test_equal_texts_make_equal_tokenizers():
    assert make_tokenizer(TEXTS, 330).get_vocab() == make_tokenizer(TEXTS, 330).get_vocab()


def test_refuses_a_vocabulary_without_room_for_the_bytes():
    with pytest.raises(ValueError, match=rf"^vocab_size=100 must be at least {256 + 3 + len(TAGS)}: "):
        make_tokenizer(TEXTS, 100)


def test_chat_template():
    messages = [{"role": "user", "content": "Judge\nthis. "}]
    chat = tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\nJudge\nthis. <|im_end|>\n<|im_start|>assistant\n"
    messages += [{"role": "assistant", "content": "<answer>7</answer>"}]
    chat = tokenizer().apply_chat_template(messages, tokenize=False)
    assert chat.endswith("<|im_start|>assistant\n<answer>7</answer><|im_end|>\n")
    assert tokenizer().encode(chat)[-2] == tokenizer().eos_token_id


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "deeper" / "model"
    make_model(path, config(vocab_size=len(tokenizer()), tie_word_embeddings=True), tokenizer(), seed=3)
    return path


@pytest.mark.parametrize("load", [load_tokenizer, AutoTokenizer.from_pretrained])
def test_the_saved_tokenizer_is_the_same(directory, load):
    loaded = load(directory)
    for text in (*TEXTS[:1], *TAGS, " é\n\n<|im_end|>", "a  b"):
        assert loaded.encode(text, add_special_tokens=False) == tokenizer().encode(text, add_special_tokens=False)
        assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert loaded.chat_template == tokenizer().chat_template
    assert len(loaded) == len(tokenizer())


def test_transformers_loads_the_model(directory):
    decoder = load_decoder(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    token_1T = torch.tensor([tokenizer().encode("the answer is here")])
    with torch.no_grad():
        ours_1TV = decoder(token_1T, torch.arange(token_1T.shape[1])[None], causal_attention, all_logits)
        theirs_1TV = model(token_1T).logits
    assert (ours_1TV - theirs_1TV).abs().max() <= 1e-4 * theirs_1TV.abs().max()


def test_the_engine_loads_the_directory(directory):
    completions = Engine.from_pretrained(directory).generate(["the answer"], SamplingParams(n=2, max_tokens=4))
    assert [len(completion.token_ids) for completion in completions[0]] == [4, 4]


def test_the_seed_alone_decides_the_weights(directory, tmp_path):
    for seed in (3, 4):
        make_model(
            tmp_path / str(seed), config(vocab_size=len(tokenizer()), tie_word_embeddings=True), tokenizer(), seed
        )
    weights = [(path / "model.safetensors").read_bytes() for path in (directory, tmp_path / "3", tmp_path / "4")]
    assert weights[0] == weights[1] != weights[2]
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is True
