"""The run's data: files that the recipe names, or the embedded set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.data.files import read_rows
from patarm_core.embedded.policy import make_policy_splits
from patarm_core.embedded.splits import make_splits
from patarm_core.fields import Fields
from patarm_core.pairs import Example, Pair, judgment_to_json, pair_to_json, prompt_key
from patarm_core.policy_rows import PolicyPrompt, ResponseExample, row_to_json
from patarm_core.rubrics import RubricBook
from patarm_core.sampling import flip_sides
from rollout.contexts import load_judgments, load_pairs
from trainer.config import PAIR_STAGES, DataConfig, Recipe
from trainer.run_folder import write_text


@dataclass(frozen=True, slots=True)
class RunData:
    judgments: list[Example]
    pairs: list[Pair]
    dev: list[Pair]
    held_out: list[Pair]
    # of a policy
    responses: list[ResponseExample] = field(default_factory=list)
    prompts: list[PolicyPrompt] = field(default_factory=list)
    dev_prompts: list[PolicyPrompt] = field(default_factory=list)
    held_out_prompts: list[PolicyPrompt] = field(default_factory=list)


def load_data(recipe: Recipe, book: RubricBook) -> RunData:
    """Reads or draws what the recipe's stages need.

    Raises:
        ValueError: one line with file, line and field; or the name of what a stage needs and nobody gave.
    """
    if recipe.role == "policy":
        return load_policy_data(recipe, book)
    config, stages = recipe.data, ", ".join(recipe.stages)
    needs_dev = any(getattr(recipe, stage).dev_every for stage in recipe.stages)
    needs_pairs = not set(PAIR_STAGES).isdisjoint(recipe.stages)
    needed = {"judgments": "sft" in recipe.stages, "pairs": needs_pairs, "dev": needs_dev}
    if config.source == "embedded":
        splits = make_splits(config.embedded)
        data = RunData(splits.sft, splits.rl, splits.dev, splits.held_out)
        keys = {"judgments": "num_sft_pairs", "pairs": "num_rl_pairs", "dev": "num_dev_pairs"}
        for name, key in keys.items():
            if needed[name] and not getattr(data, name):
                raise ValueError(f"data.embedded.{key}: is 0; stages {stages} need some")
        return data
    for name, is_needed in needed.items():
        if is_needed and not getattr(config, name):
            raise ValueError(f"data.{name}: no file is given; stages {stages} need one")

    def pairs(file: str) -> list[Pair]:
        return load_pairs(file, book) if file else []

    data = RunData(
        load_judgments(config.judgments, book, recipe.mode) if needed["judgments"] else [],
        pairs(config.pairs) if needed["pairs"] else [],
        pairs(config.dev) if needed["dev"] else [],
        pairs(config.held_out),
    )
    _check_unseen(data, config)
    return data


def load_policy_data(recipe: Recipe, book: RubricBook) -> RunData:
    """As `load_data`, of a policy."""
    config, stages = recipe.data, recipe.stages
    needed = {
        "responses": "sft" in stages,
        "pairs": "dpo" in stages and recipe.dpo.preferences == "data",
        "dev": "dpo" in stages and recipe.dpo.dev_every > 0,
        "prompts": recipe.is_rewarded,
        "dev_prompts": any(getattr(recipe, stage).dev_every for stage in stages if stage != "dpo"),
    }
    if config.source == "embedded":
        splits = make_policy_splits(config.embedded_policy)
        dev, held_out = splits.dev, splits.held_out
        data = RunData([], splits.pairs, splits.dev_pairs, [], splits.responses, splits.prompts, dev, held_out)
        keys = {"responses": "num_responses", "pairs": "num_prompts", "prompts": "num_prompts"}
        for name, key in (keys | {"dev": "num_dev", "dev_prompts": "num_dev"}).items():
            if needed[name] and not getattr(data, name):
                raise ValueError(f"data.embedded_policy.{key}: is 0; stages {', '.join(stages)} need some")
        return data
    for name, is_needed in needed.items():
        if is_needed and not getattr(config, name):
            raise ValueError(f"data.{name}: no file is given; stages {', '.join(stages)} need one")

    def responses(file: str) -> list[ResponseExample]:
        return read_rows(Path(file), lambda row: ResponseExample.of(row, Path(file).stem))

    def prompts(file: str) -> list[PolicyPrompt]:
        seen: set[tuple[str, str]] = set()

        def new(row: Fields) -> PolicyPrompt:
            prompt = PolicyPrompt.of(row, Path(file).stem)
            if prompt.key in seen:  # two prompts of one name would share their noise
                taken = f"{prompt.id!r} of source {prompt.source!r} is already used above"
                raise ValueError(f"id: {taken}; (source, id) must be unique")
            seen.add(prompt.key)
            return prompt

        return read_rows(Path(file), new) if file else []

    data = RunData(
        [],
        load_pairs(config.pairs, book) if needed["pairs"] else [],
        load_pairs(config.dev, book) if needed["dev"] else [],
        [],
        responses(config.responses) if needed["responses"] else [],
        prompts(config.prompts) if needed["prompts"] else [],
        prompts(config.dev_prompts) if needed["dev_prompts"] else [],
        prompts(config.held_out_prompts),
    )
    trained_on = {prompt_key(row): config.responses for row in data.responses}
    trained_on |= {prompt_key(pair): config.pairs for pair in data.pairs}
    trained_on |= {prompt_key(prompt): config.prompts for prompt in data.prompts}
    for file, measured in ((config.dev_prompts, data.dev_prompts), (config.held_out_prompts, data.held_out_prompts)):
        for prompt in measured:
            if (other := trained_on.get(prompt_key(prompt))) is not None:
                raise ValueError(f"{file}: prompt {prompt.id} of {prompt.source}: is trained on, in {other}")
    _refuse_trained(config.dev, data.dev, trained_on)
    return data


def noisy(pairs: Sequence[Pair], recipe: Recipe) -> list[Pair]:
    """The pairs as every stage that trains on them sees them: the same sides flipped (METHOD: sec. 5, fig. 4)."""
    return flip_sides(pairs, recipe.data.label_noise, recipe.seed)[0]


def _check_unseen(data: RunData, config: DataConfig) -> None:
    """No prompt that a judge is measured on is one that it is trained on."""
    trained_on = {prompt_key(row): config.judgments for row in data.judgments}
    trained_on |= {prompt_key(pair): config.pairs for pair in data.pairs}
    for file, measured in ((config.dev, data.dev), (config.held_out, data.held_out)):
        _refuse_trained(file, measured, trained_on)


def _refuse_trained(file: str, measured: Sequence[Pair], trained_on: Mapping[str, str]) -> None:
    for pair in measured:
        if (other := trained_on.get(prompt_key(pair))) is not None:
            raise ValueError(f"{file}: pair {pair.id} of {pair.source}: its prompt is trained on, in {other}")


def write_data(data: RunData, folder: Path) -> None:
    """Writes judgments.jsonl, pairs.jsonl, dev.jsonl and held_out.jsonl, which `source = "files"` reads.

    Of a policy's data: pairs, dev, responses, prompts, dev_prompts and held_out_prompts, each as .jsonl.
    """

    def write(name: str, rows: list, to_json: Callable[[Any], str]) -> None:
        write_text(folder / f"{name}.jsonl", "".join(to_json(row) + "\n" for row in rows))

    for name in ("pairs", "dev"):
        write(name, getattr(data, name), pair_to_json)
    if data.held_out_prompts or data.responses or data.prompts:
        for name in ("responses", "prompts", "dev_prompts", "held_out_prompts"):
            write(name, getattr(data, name), row_to_json)
    else:
        write("held_out", data.held_out, pair_to_json)
        write("judgments", data.judgments, judgment_to_json)
