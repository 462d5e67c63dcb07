"""The run's data: files that the recipe names, or the embedded set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from patarm_core.embedded.splits import make_splits
from patarm_core.pairs import Example, Pair, judgment_to_json, pair_to_json, prompt_key
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


def load_data(recipe: Recipe, book: RubricBook) -> RunData:
    """Reads or draws what the recipe's stages need.

    Raises:
        ValueError: one line with file, line and field; or the name of what a stage needs and nobody gave.
    """
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


def noisy(pairs: Sequence[Pair], recipe: Recipe) -> list[Pair]:
    """The pairs as every stage that trains on them sees them: the same sides flipped (METHOD: sec. 5, fig. 4)."""
    return flip_sides(pairs, recipe.data.label_noise, recipe.seed)[0]


def _check_unseen(data: RunData, config: DataConfig) -> None:
    """No prompt that a judge is measured on is one that it is trained on."""
    trained_on = {prompt_key(row): config.judgments for row in data.judgments}
    trained_on |= {prompt_key(pair): config.pairs for pair in data.pairs}
    for file, measured in ((config.dev, data.dev), (config.held_out, data.held_out)):
        for pair in measured:
            if (other := trained_on.get(prompt_key(pair))) is not None:
                raise ValueError(f"{file}: pair {pair.id} of {pair.source}: its prompt is trained on, in {other}")


def write_data(data: RunData, folder: Path) -> None:
    """Writes judgments.jsonl, pairs.jsonl, dev.jsonl and held_out.jsonl, which `source = "files"` reads."""
    write_text(folder / "judgments.jsonl", "".join(judgment_to_json(row) + "\n" for row in data.judgments))
    for name, pairs in (("pairs", data.pairs), ("dev", data.dev), ("held_out", data.held_out)):
        write_text(folder / f"{name}.jsonl", "".join(pair_to_json(pair) + "\n" for pair in pairs))
