"""Makes a small model from nothing: a byte-level BPE tokenizer trained on given texts, a random Qwen3-shaped decoder.

The result is an ordinary Hugging Face directory, so everything after it is the same code as for Qwen3-8B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from patarm_core.judgment import ALL_TAGS
from patarm_core.pairs import ChoiceExample, Example, Pair
from patarm_core.policy_rows import ResponseExample
from patarm_core.prompts import flatten, pairwise, pointwise
from patarm_core.rubrics import RubricBook
from rollout.contexts import PromptConfig
from rollout.decoder import Decoder, DecoderConfig, init_weights_
from rollout.vocabulary import save_tokenizer
from rollout.weights import save_decoder
from trainer.config import SmallModelConfig

_END, _TURN, _END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen's split rule: words with their leading space, single digits, runs of punctuation, white space.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"
_ROLES = "user\nassistant\n"  # of the chat format
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE on `texts`; judgment tags are tokens of their own, as `<think>` is in Qwen3.

    Any text round-trips (all 256 bytes are in the vocabulary); the chat format is Qwen's.
    """
    control = [AddedToken(token, special=True, normalized=False) for token in (_END, _TURN, _END_OF_TURN)]
    tags = [AddedToken(f"<{slash}{tag}>", special=False, normalized=False) for tag in ALL_TAGS for slash in ("", "/")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    num_fixed = len(alphabet) + len(control) + len(tags)
    if vocab_size < num_fixed:
        raise ValueError(f"vocab_size={vocab_size} must be at least {num_fixed}: all bytes, the tags, the chat format")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control) - len(tags),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(tags)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END_OF_TURN,
        pad_token=_END,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(
    path: str | Path, config: DecoderConfig, tokenizer: PreTrainedTokenizerFast, seed: int, init_std: float = 0.02
) -> None:
    """Writes a random model and its tokenizer as a Hugging Face directory."""
    save_tokenizer(tokenizer, path)
    save_decoder(init_weights_(Decoder(config), seed, init_std), path, torch.float32)


def judge_texts(examples: Sequence[Example], prompt: PromptConfig, book: RubricBook) -> list[str]:
    """The texts that SFT will read."""
    return [
        text
        for row in examples
        for text in (
            _context_text(row, prompt, book),
            row.judgment,
            _ROLES,
        )
    ]


def chat_texts(pairs: Sequence[Pair]) -> list[str]:
    """The texts that Bradley-Terry and DPO will read."""
    return [text for pair in pairs for text in (flatten(pair.prompt), pair.chosen, pair.rejected, _ROLES)]


def response_texts(examples: Sequence[ResponseExample]) -> list[str]:
    """The texts that a policy's SFT will read."""
    return [text for row in examples for text in (flatten(row.prompt), row.response, _ROLES)]


def small_tokenizer(vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a small model; it learns from the texts that the model will read."""
    if not texts:
        raise ValueError("model.path: not given, and without SFT judgments there are no texts to make a tokenizer from")
    with _of_the_small_model():
        return make_tokenizer(texts, vocab_size)


def _context_text(row: Example, prompt: PromptConfig, book: RubricBook) -> str:
    asked = {"rubrics": prompt.rubrics, "template": prompt.template}
    if isinstance(row, ChoiceExample):
        return pairwise(row.prompt, row.response_a, row.response_b, row.task, book, **asked)
    return pointwise(row.prompt, row.response, row.task, book, **asked)


def small_config(small: SmallModelConfig) -> DecoderConfig:
    with _of_the_small_model():
        return DecoderConfig(
            vocab_size=small.vocab_size,
            hidden_size=small.hidden_size,
            intermediate_size=small.intermediate_size,
            num_hidden_layers=small.num_hidden_layers,
            num_attention_heads=small.num_attention_heads,
            num_key_value_heads=small.num_key_value_heads,
            head_dim=small.head_dim,
            rope_theta=small.rope_theta,
            tie_word_embeddings=True,
            max_position_embeddings=small.max_position_embeddings,
        )


@contextmanager
def _of_the_small_model() -> Iterator[None]:
    """A size that cannot be is told with the table that it stands in."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.small: {error}") from None
