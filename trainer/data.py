"""The run's data: files that the recipe names, or the embedded set, written to such files in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from eval.contexts import load_judgments, load_pairs
from patarm_core.embedded.splits import EmbeddedConfig, make_splits
from patarm_core.pairs import JudgmentExample, Pair, judgment_to_json, pair_to_json
from patarm_core.rubrics import RubricBook
from trainer.config import DataConfig, Recipe
from trainer.run_folder import write_text


@dataclass(frozen=True, slots=True)
class RunData:
    judgments: list[JudgmentExample]
    pairs: list[Pair]
    dev: list[Pair]
    held_out: list[Pair]


def embedded_files(config: DataConfig, folder: Path) -> DataConfig:
    """The data section with the names of the files that `write_embedded` makes; a split of no pairs has none."""
    counts = config.embedded
    sizes = {
        "judgments": counts.num_sft_pairs,
        "pairs": counts.num_rl_pairs,
        "dev": counts.num_dev_pairs,
        "held_out": counts.num_held_out_pairs,
    }
    return replace(config, **{name: str(folder / f"{name}.jsonl") if size else "" for name, size in sizes.items()})


def write_embedded(config: EmbeddedConfig, folder: Path) -> None:
    """Writes the embedded splits as judgments.jsonl, pairs.jsonl, dev.jsonl and held_out.jsonl."""
    splits = make_splits(config)
    write_text(folder / "judgments.jsonl", "".join(judgment_to_json(row) + "\n" for row in splits.sft))
    for name, pairs in (("pairs", splits.rl), ("dev", splits.dev), ("held_out", splits.held_out)):
        write_text(folder / f"{name}.jsonl", "".join(pair_to_json(pair) + "\n" for pair in pairs))


def load_data(recipe: Recipe, files: DataConfig, book: RubricBook) -> RunData:
    """Reads what the recipe's stages need.

    Raises:
        ValueError: one line with file, line and field; or the name of a file that a stage needs and nobody gave.
    """
    needed = {"judgments": "sft" in recipe.stages, "pairs": "grpo" in recipe.stages}
    needed["dev"] = any(getattr(recipe, stage).dev_every for stage in recipe.stages)
    for name, is_needed in needed.items():
        if is_needed and not getattr(files, name):
            raise ValueError(f"data.{name}: not given; stages {', '.join(recipe.stages)} need it")

    def pairs(file: str) -> list[Pair]:
        return load_pairs(file, book) if file else []

    return RunData(
        load_judgments(files.judgments, book) if needed["judgments"] else [],
        pairs(files.pairs) if needed["pairs"] else [],
        pairs(files.dev) if needed["dev"] else [],
        pairs(files.held_out),
    )
