"""From raw preference pairs to training data (app. C): `python trainer/main.py curate RECIPE.toml [key=value …]`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from eval.data.files import find_files
from patarm_core.fields import read_object
from patarm_core.recipe import to_toml
from rollout.contexts import load_rubrics, read_text
from rollout.resumable import check_same
from rollout.text_files import write_text
from trainer.curation.config import CurateRecipe
from trainer.curation.input_rows import SUFFIXES
from trainer.curation.outputs import write_outputs
from trainer.curation.stage_files import StageFiles
from trainer.curation.stages import all_stages, check_names, check_sources
from trainer.run_folder import folders, obstacle

_INPUTS = "inputs.json"


def curate(recipe: CurateRecipe) -> Path:
    """Runs the stages that have not left their files yet; returns the run's folder.

    A run that was killed at any moment ends, resumed, in the bytes that it would have left (timings.jsonl and the
    seconds in judging/ aside).

    Raises:
        ValueError: one line; what the recipe names cannot be read or opened, or there is no such run to go on with.
    """
    book = load_rubrics(recipe.rubrics_file)
    check_names(recipe, book)
    inputs = {key: _digest(key, path) for key, path in recipe.files().items()}
    folder = _open_folder(recipe, inputs)
    files, rows, num_read = StageFiles(folder), [], None
    for number, (name, stage) in enumerate(all_stages(recipe, book, folder).items(), start=1):
        rows = files.run(number, name, lambda stage=stage, rows=rows: stage(rows))
        if num_read is None:
            num_read = Counter(row["source"] for row in (*rows, *files.dropped))
            check_sources(recipe, num_read)
    if not (folder / "report.json").is_file():
        write_outputs(recipe, book, folder, num_read, rows, files.dropped)
    print(read_text(folder / "report.md"), end="")
    print(f"\nThe folder of the run: {folder}")
    return folder


def _open_folder(recipe: CurateRecipe, inputs: dict[str, str]) -> Path:
    folder = Path(recipe.out)
    if recipe.resume:
        if (problem := obstacle(folder / "recipe.toml", recipe)) is not None:
            raise ValueError(problem)
        if (folder / _INPUTS).is_file():
            check_same(folder / _INPUTS, read_object(read_text(folder / _INPUTS)), inputs, "start a new run")
            return folder
    else:
        _, folder = folders(recipe.out)
        write_text(folder / "recipe.toml", to_toml(recipe))
    write_text(folder / _INPUTS, json.dumps(inputs, indent=1) + "\n")
    return folder


def _digest(key: str, path: Path) -> str:
    """Of the file, or of all files of the folder."""
    content = hashlib.sha256()
    try:
        for file in find_files(path, (*SUFFIXES, ".csv")):
            with open(file, "rb") as data:
                content.update(hashlib.file_digest(data, "sha256").digest())
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from None
    return content.hexdigest()
