"""Whose run a checkpoint belongs to: the model's shapes, the tokenizer, the recipe, the data it was trained on, and
the reward model that scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from patarm_core.pairs import judgment_to_json, pair_to_json
from patarm_core.policy_rows import row_to_json
from rollout.contexts import ContextBuilder, load_rubrics
from rollout.decoder import Decoder, DecoderConfig
from trainer.config import Recipe
from trainer.data import RunData
from trainer.distributed import World
from trainer.run_folder import settings_that_matter

_READ = (".safetensors", ".bin", ".json", ".jinja", ".model")  # of a model's directory
_INPUTS = {
    "shapes": "shapes of the model", "tokenizer": "tokens (a tokenizer)", "data": "data (judgments, pairs or rubrics)",
    "held_out": "held-out pairs or prompts", "reward": "weights or rubrics of rlhf.reward.model",
}  # fmt: skip
_PROBE = "<think>It's 12.5 times\n\n\tas good: naïve, 好, 👍</think> <answer>8</answer>"


def run_identity(recipe: Recipe, data: RunData, contexts: ContextBuilder, model: DecoderConfig) -> dict:
    """JSON that two processes of one run have in common, whatever their number, and that other runs do not."""
    rows = [judgment_to_json(row) for row in data.judgments]
    rows += [pair_to_json(pair) for pairs in (data.pairs, data.dev) for pair in pairs]
    rows += [row_to_json(row) for kind in (data.responses, data.prompts, data.dev_prompts) for row in kind]
    identity = {
        "shapes": _shapes(model),
        "tokenizer": _tokenizer_hash(contexts.tokenizer),
        "data": _sha256([*rows, repr(contexts.book)]),
        "recipe": settings_that_matter(recipe),
        "reward": _reward_hash(recipe),
    }
    return json.loads(json.dumps(identity))  # tuples are lists there


def refuse_other_inputs(identity: dict, data: RunData, world: World) -> None:
    """Raises ValueError, on every rank, if one has read something else: nodes may hold copies of their own."""
    held_out = [*map(pair_to_json, data.held_out), *map(row_to_json, data.held_out_prompts)]
    rank_0, *others = world.gather(identity | {"held_out": _sha256(held_out)})
    for rank, theirs in enumerate(others, 1):
        for name, what in _INPUTS.items():
            if theirs[name] != rank_0[name]:
                raise ValueError(f"rank {rank} has {what} other than those of rank 0; all nodes need the same files")


def difference(saved: dict, now: dict) -> str | None:
    """One line about what is not the same, if anything."""
    for name in sorted(saved["shapes"].keys() | now["shapes"].keys()):
        before, after = saved["shapes"].get(name), now["shapes"].get(name)
        if before != after:
            return f"{name} has {_shape(before)} there and {_shape(after)} in this run's model"
    if saved["tokenizer"] != now["tokenizer"]:
        return "it was trained with another tokenizer than this run's"
    for key, value in now["recipe"].items():
        if saved["recipe"].get(key, value) != value:  # a setting that is newer than the checkpoint is at its default
            return f"{key} was {saved['recipe'][key]!r} there and is {value!r} in this run"
    if saved["data"] != now["data"]:
        return "it was trained with other data (judgments, pairs, dev pairs or rubrics) than this run's"
    if saved.get("reward", now["reward"]) != now["reward"]:  # one that is older does not say
        return f"{now['recipe']['rlhf.reward.model']} (rlhf.reward.model) or its rubrics have changed since"
    return None


def _shapes(config: DecoderConfig) -> dict[str, list[int]]:
    """Of the master weights, which are float32 throughout."""
    with torch.device("meta"):
        decoder = Decoder(config)
    return {name: list(parameter.shape) for name, parameter in decoder.named_parameters()}


def _shape(shape: list[int] | None) -> str:
    return "no place" if shape is None else f"shape {shape}"


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    probe = tokenizer.encode(_PROBE, add_special_tokens=False)
    vocabulary = [f"{token} {index}" for token, index in sorted(tokenizer.get_vocab().items())]
    return _sha256([*vocabulary, str(probe), str(tokenizer.eos_token_id), tokenizer.chat_template or ""])


def _reward_hash(recipe: Recipe) -> str | None:
    """Of what scores a policy's answers, by content: a judge that is trained again leaves the same path.

    Of an endpoint only the rubrics are here; of a function nothing.
    """
    reward = recipe.rlhf.reward
    if not recipe.is_rewarded or reward.kind not in ("judge", "scalar", "endpoint"):
        return None
    lines = [] if reward.kind == "scalar" else [repr(load_rubrics(reward.prompt.rubrics_file))]
    for file in sorted(Path(reward.model).iterdir()) if reward.kind != "endpoint" else ():
        if file.suffix in _READ:
            with open(file, "rb") as content:
                lines.append(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}")
    return _sha256(lines)


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
