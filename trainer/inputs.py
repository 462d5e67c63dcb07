"""Everything a run reads, checked before anything is written: what can be wrong with it is told in a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from transformers import PreTrainedTokenizerBase

from patarm_core.judgment import JudgeMode, RubricSetting, judgment_tags, parse
from patarm_core.pairs import Example
from rollout.contexts import ContextBuilder, load_rubrics
from rollout.decoder import DecoderConfig
from rollout.vocabulary import load_tokenizer
from trainer.bt import BradleyTerry
from trainer.config import JUDGE_STAGES, Recipe
from trainer.data import RunData, load_data
from trainer.dpo import DirectPreference
from trainer.pair_stage import PairObjective
from trainer.sft import sft_leaves
from trainer.tiny import chat_texts, judge_texts, small_config, small_tokenizer
from trainer.token_tree import TILE, Leaf, TokenTree, room


@dataclass(frozen=True, slots=True)
class Inputs:
    data: RunData = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    model_config: DecoderConfig
    contexts: ContextBuilder
    judgments: list[Leaf] = field(repr=False)  # the rows of SFT, tokenized
    objectives: dict[str, PairObjective] = field(repr=False)  # of the stages that train on pairs without judging them


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
        _check_format(data.judgments, recipe.mode, recipe.prompt.rubrics)
    if model:
        tokenizer = load_tokenizer(model)
    else:
        is_chat = not {"bt", "dpo"}.isdisjoint(recipe.stages)
        texts = judge_texts(data.judgments, recipe.prompt, book) or (chat_texts(data.pairs) if is_chat else [])
        tokenizer = small_tokenizer(recipe.model.small.vocab_size, texts)
    kinds = {"bt": BradleyTerry, "dpo": DirectPreference}
    objectives = {stage: kinds[stage](recipe, tokenizer) for stage in recipe.stages if stage in kinds}
    if not model:
        model_config = small_config(recipe.model.small)
    elif recipe.stages == ("bt",):
        model_config, _ = objectives["bt"].head.config(model)
    else:
        model_config = DecoderConfig.from_pretrained(model)
    if len(tokenizer) > model_config.vocab_size:
        raise ValueError(f"{model}: {len(tokenizer)} tokens in the tokenizer, the model has {model_config.vocab_size}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model}: the tokenizer has no end token")
    contexts = ContextBuilder(tokenizer, recipe.prompt, book)
    judgments = sft_leaves(data.judgments, contexts)
    judged = _lengths(recipe, data, contexts, judgments, model_config)
    compared = _lengths_of_chats(recipe, data, objectives, model_config)
    for name, length, limit, key in chain(judged, compared):
        if length > limit:
            raise ValueError(f"{name} {length} tokens; {key} is {limit}")
    return Inputs(data, tokenizer, model_config, contexts, judgments, objectives)


def _check_format(judgments: Sequence[Example], mode: JudgeMode, rubrics: RubricSetting) -> None:
    """SFT imitates judgments that the strict parser takes: GRPO would punish what it learns from others."""
    answer, right = ("score", "a number from 0 to 10") if mode == "pointwise" else ("choice", "A or B")
    tags = " ".join(f"<{tag}>…</{tag}>" for tag in judgment_tags(rubrics))
    problems = {
        "tags": f'tag error; with prompt.rubrics = "{rubrics}" these are right, each once and in this order: {tags}',
        "score": f"{answer} error; right is {right} in <answer>…</answer>",
    }
    for example in judgments:
        if (error := parse(example.judgment, answer, rubrics).error) is not None:
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
    judges = not recipe.stages or not set(JUDGE_STAGES).isdisjoint(recipe.stages)
    measured = (data.dev, data.held_out) if judges else ()
    for pairs in (data.pairs if "grpo" in recipe.stages else [], *measured):
        for pair in pairs:
            name = f"pair {pair.id} of {pair.source}: context and rollout.max_completion_tokens make"
            length = contexts.longest(pair, recipe.mode) + num_new
            yield name, length, *position_limit
            if pairs is data.pairs:
                limit = room(recipe.grpo.tokens_per_micro_batch)
                yield name, length - 1, limit, f"grpo.tokens_per_micro_batch in {tiles}"


def _lengths_of_chats(
    recipe: Recipe, data: RunData, objectives: dict[str, PairObjective], model_config: DecoderConfig
) -> Iterator[tuple[str, int, int, str]]:
    """As `_lengths`, of the pairs whose responses are read as chat turns."""
    position_limit = model_config.max_position_embeddings, "the model's max_position_embeddings"
    for stage, objective in objectives.items():
        key = f"{stage}.tokens_per_micro_batch"
        limit = room(objective.config.tokens_per_micro_batch), f"{key} in whole tiles of {TILE}"
        for pair in (*data.pairs, *(data.dev if objective.config.dev_every else ()), *data.held_out):
            leaves = objective.leaves(pair)
            name = f"pair {pair.id} of {pair.source}: prompt and"
            yield f"{name} response make", max(len(leaf.path) for leaf in leaves), *position_limit
            tree = TokenTree.of(leaves, recipe.model.layout == "tree")
            yield f"{name} both responses make", tree.num_tokens, *limit
