"""Everything a run reads, checked before anything is written: what can be wrong with it is told in a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from transformers import PreTrainedTokenizerBase

from patarm_core.judgment import judgment_tags, parse
from patarm_core.pairs import Example
from rollout.block_attention import BLOCK
from rollout.contexts import ContextBuilder, load_rubrics
from rollout.decoder import DecoderConfig
from rollout.kv_cache import longest_sample
from rollout.pages import GPU_PAGE
from rollout.vocabulary import load_tokenizer
from trainer.bt import BradleyTerry
from trainer.checkers import open_checker
from trainer.config import JUDGE_STAGES, Recipe
from trainer.data import RunData, load_data
from trainer.dpo import DirectPreference
from trainer.learner import DTYPES
from trainer.pair_stage import PairObjective
from trainer.policy import Examiner, prompt_tokens
from trainer.scorers import open_scorer
from trainer.sft import response_leaves, sft_leaves
from trainer.tiny import chat_texts, judge_texts, response_texts, small_config, small_tokenizer
from trainer.token_tree import TILE, Leaf, TokenTree, room


@dataclass(frozen=True, slots=True)
class Inputs:
    data: RunData = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    model_config: DecoderConfig
    contexts: ContextBuilder
    imitated: list[Leaf] = field(repr=False)  # the rows of SFT, tokenized: judgments, or a policy's responses
    objectives: dict[str, PairObjective] = field(repr=False)  # of the stages that train on pairs without judging them
    examiner: Examiner = field(default_factory=Examiner, repr=False)  # of a policy's answers


def load_inputs(recipe: Recipe, model: str, device: torch.device | None = None) -> Inputs:
    """Reads and checks all that the recipe names.

    Args:
        model: the Hugging Face directory to start from; empty: the small model, whose weights are not made here.
        device: where a policy's judge is to be; the CPU.

    Raises:
        ValueError: one line that says what is wrong, and where.
    """
    book = load_rubrics(recipe.prompt.rubrics_file)
    data = load_data(recipe, book)
    if "sft" in recipe.stages and recipe.role == "judge":
        _check_format(data.judgments, recipe)
    if model:
        tokenizer = load_tokenizer(model)
    else:
        is_chat = not {"bt", "dpo"}.isdisjoint(recipe.stages)
        texts = judge_texts(data.judgments, recipe.prompt, book) or response_texts(data.responses)
        texts = texts or (chat_texts(data.pairs) if is_chat else [])
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
    kv_limit = _kv_limit(recipe, model_config, device)
    if recipe.role == "policy":
        imitated = response_leaves(data.responses, contexts)
        judged = _lengths_of_policy(recipe, data, contexts, imitated, model_config, kv_limit)
    else:
        imitated = sft_leaves(data.judgments, contexts)
        judged = _lengths(recipe, data, contexts, imitated, model_config, kv_limit)
    compared = _lengths_of_chats(recipe, data, objectives, model_config)
    for name, length, limit, key in chain(judged, compared):
        if length > limit:
            raise ValueError(f"{name} {length} tokens; {key} is {limit}")
    examiner = _examiner(recipe, data, device or torch.device("cpu")) if recipe.role == "policy" else Examiner()
    return Inputs(data, tokenizer, model_config, contexts, imitated, objectives, examiner)


def _examiner(recipe: Recipe, data: RunData, device: torch.device) -> Examiner:
    """The checker and, where a stage needs it, whoever scores; weights are loaded here."""
    name = recipe.data.checker or ("embedded" if recipe.data.source == "embedded" else "")
    try:
        checker = open_checker(name)
    except ValueError as error:
        raise ValueError(f"data.checker: {error}") from None
    scorer, prompts = None, [*data.prompts, *data.dev_prompts, *data.held_out_prompts]
    if checker is not None:
        checker.check(prompts)
    if recipe.is_rewarded:
        scorer = open_scorer(recipe.rlhf.reward, checker, recipe.seed, device)
        scorer.check(prompts)
    return Examiner(answer_after=recipe.rlhf.answer_after, checker=checker, scorer=scorer)


def _kv_limit(recipe: Recipe, model_config: DecoderConfig, device: torch.device | None) -> tuple[int, str] | None:
    """(what a context and its completion may have, the limit's name); none where the device's memory decides."""
    rollout = recipe.rollout
    if not rollout.kv_gib:
        return None
    page_size = BLOCK if device is None or device.type == "cpu" else GPU_PAGE
    dtype = DTYPES[recipe.model.dtype]
    longest = longest_sample(rollout.kv_gib, rollout.max_completion_tokens, page_size, model_config, dtype)
    return longest, f"room in rollout.kv_gib={rollout.kv_gib:g}"


def _lengths_of_policy(
    recipe: Recipe,
    data: RunData,
    contexts: ContextBuilder,
    imitated: list[Leaf],
    model_config: DecoderConfig,
    kv_limit: tuple[int, str] | None,
) -> Iterator[tuple[str, int, int, str]]:
    """As `_lengths`, of what a policy imitates and answers."""
    tiles, num_new = f"in whole tiles of {TILE}", recipe.rollout.max_completion_tokens
    position_limit = model_config.max_position_embeddings, "the model's max_position_embeddings"
    for leaf in imitated:
        yield f"{leaf.name}: prompt and response make", len(leaf.context) + len(leaf.completion), *position_limit
        limit = room(recipe.sft.tokens_per_micro_batch), f"sft.tokens_per_micro_batch {tiles}"
        yield f"{leaf.name}: prompt and response make", len(leaf.path), *limit
    for prompts in (data.prompts if recipe.is_rewarded else [], data.dev_prompts, data.held_out_prompts):
        for prompt in prompts:
            name = f"prompt {prompt.id} of {prompt.source}: prompt and rollout.max_completion_tokens make"
            length = len(prompt_tokens(contexts, prompt)) + num_new
            yield name, length, *position_limit
            if kv_limit:
                yield name, length, *kv_limit
            if prompts is data.prompts and "rlhf" in recipe.stages:
                limit = room(recipe.rlhf.tokens_per_micro_batch), f"rlhf.tokens_per_micro_batch {tiles}"
                yield name, length - 1, *limit


def _check_format(judgments: Sequence[Example], recipe: Recipe) -> None:
    """SFT imitates judgments that the strict parser takes: GRPO would punish what it learns from others."""
    rubrics = recipe.prompt.rubrics
    answer, right = ("score", "a number from 0 to 10") if recipe.mode == "pointwise" else ("choice", "A or B")
    tags = " ".join(f"<{tag}>…</{tag}>" for tag in judgment_tags(rubrics))
    problems = {
        "tags": f'tag error; with prompt.rubrics = "{rubrics}" these are right, each once and in this order: {tags}',
        "score": f"{answer} error; right is {right} in <answer>…</answer>",
    }
    for example in judgments:
        if (error := parse(example.judgment, answer, rubrics).error) is not None:
            file = f"{recipe.data.judgments}: " * bool(recipe.data.judgments)
            raise ValueError(f"{file}judgment {example.id} of {example.source}: {problems[error]}")


def _lengths(
    recipe: Recipe,
    data: RunData,
    contexts: ContextBuilder,
    judgments: list[Leaf],
    model_config: DecoderConfig,
    kv_limit: tuple[int, str] | None,
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
            if kv_limit:
                yield name, length, *kv_limit
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
