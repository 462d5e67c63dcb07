"""Everything a run reads, checked before anything is written: what can be wrong with it is told in a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from patarm_core.judgment import RubricSetting, judgment_tags, parse
from patarm_core.pairs import JudgmentExample
from rollout.contexts import ContextBuilder, load_rubrics
from rollout.decoder import DecoderConfig
from rollout.vocabulary import load_tokenizer
from trainer.config import Recipe
from trainer.data import RunData, load_data
from trainer.sft import sft_leaves
from trainer.tiny import small_config, small_tokenizer
from trainer.token_tree import TILE, Leaf, room


@dataclass(frozen=True, slots=True)
class Inputs:
    data: RunData = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    model_config: DecoderConfig
    contexts: ContextBuilder
    judgments: list[Leaf] = field(repr=False)  # the rows of SFT, tokenized


def load_inputs(recipe: Recipe, model: str) -> Inputs:
    """Reads and checks all that the recipe names.

    Args:
        model: the Hugging Face directory to start from; empty: the small model, whose weights are not made here.

    Raises:
        ValueError: one line that says what is wrong, and where.
    """
    book = load_rubrics(recipe.prompt.rubrics_file)
    data = load_data(recipe, book)
    if "sft" in recipe.stages:
        _check_format(data.judgments, recipe.prompt.rubrics)
    if model:
        model_config, tokenizer = DecoderConfig.from_pretrained(model), load_tokenizer(model)
    else:
        small = recipe.model.small
        model_config = small_config(small)
        tokenizer = small_tokenizer(small.vocab_size, recipe.prompt, book, data.judgments)
    if len(tokenizer) > model_config.vocab_size:
        raise ValueError(f"{model}: {len(tokenizer)} tokens in the tokenizer, the model has {model_config.vocab_size}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model}: the tokenizer has no end token")
    contexts = ContextBuilder(tokenizer, recipe.prompt, book)
    judgments = sft_leaves(data.judgments, contexts)
    for name, length, limit, key in _lengths(recipe, data, contexts, judgments, model_config):
        if length > limit:
            raise ValueError(f"{name} {length} tokens; {key} is {limit}")
    return Inputs(data, tokenizer, model_config, contexts, judgments)


def _check_format(judgments: Sequence[JudgmentExample], rubrics: RubricSetting) -> None:
    """SFT imitates judgments that the strict parser takes: GRPO would punish what it learns from others."""
    tags = " ".join(f"<{tag}>…</{tag}>" for tag in judgment_tags(rubrics))
    problems = {
        "tags": f'tag error; with prompt.rubrics = "{rubrics}" these are right, each once and in this order: {tags}',
        "score": "score error; right is a number from 0 to 10 in <answer>…</answer>",
    }
    for example in judgments:
        if (error := parse(example.judgment, rubrics=rubrics).error) is not None:
            raise ValueError(f"judgment {example.id} of {example.source}: {problems[error]}")


def _lengths(
    recipe: Recipe, data: RunData, contexts: ContextBuilder, judgments: list[Leaf], model_config: DecoderConfig
) -> Iterator[tuple[str, int, int, str]]:
    """(what, its tokens, their limit, the limit's name) of everything that training and evaluation will run."""
    tiles = f"whole tiles of {TILE}"
    position_limit = model_config.max_position_embeddings, "the model's max_position_embeddings"
    for example, leaf in zip(data.judgments, judgments, strict=True):
        name = f"judgment {example.id} of {example.source}: context and judgment make"
        length = len(leaf.context) + len(leaf.completion)
        yield name, length, *position_limit
        yield name, len(leaf.path), room(recipe.sft.tokens_per_micro_batch), f"sft.tokens_per_micro_batch in {tiles}"
    num_new = recipe.rollout.max_completion_tokens
    for pairs in (data.pairs, data.dev, data.held_out):
        for pair in pairs:
            name = f"pair {pair.id} of {pair.source}: context and rollout.max_completion_tokens make"
            length = max(map(len, contexts.sides(pair))) + num_new
            yield name, length, *position_limit
            if pairs is data.pairs:
                limit = room(recipe.grpo.tokens_per_micro_batch)
                yield name, length - 1, limit, f"grpo.tokens_per_micro_batch in {tiles}"
