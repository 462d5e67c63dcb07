"""Runs of the trainer, and other commands, each in a process of its own; what is there already is not made again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from patarm_core.recipe import read_recipe, with_bases
from rollout.contexts import read_text
from trainer.config import Recipe
from trainer.run_folder import obstacle

ROOT = Path(__file__).parent.parent
PYTHON = (sys.executable,)


def resolved(recipes: Sequence[str], settings: Sequence[str]) -> Recipe:
    """What the trainer makes of these arguments."""
    texts = {name: text for file in recipes for name, text in with_bases(os.path.normpath(file), read_text)}
    return read_recipe(Recipe, list(texts.items()), settings)


def check_run(recipes: Sequence[str], settings: Sequence[str], folder: Path) -> None:
    """Raises ValueError where the folder holds a run of another recipe, as the trainer does that is to resume it."""
    file = folder / "recipe.toml"
    if file.is_file() and (problem := obstacle(file, resolved(recipes, settings))):
        raise ValueError(problem)


def train(
    recipes: Sequence[str], settings: Sequence[str], folder: Path, launcher: Sequence[str] = PYTHON, threads: int = 0
) -> None:
    """The trainer's run in this folder, from its start or on from where it was interrupted, unless it is finished.

    Args:
        recipes, settings: of the run, but for its `out` and `resume`.
        launcher: what the trainer is started with, such as torchrun --nproc-per-node 8.
        threads: of the process; 0: as it likes.

    Raises:
        ValueError: one line; the folder holds a run of another recipe, or the run fails.
    """
    check_run(recipes, settings, folder)
    has_begun = (folder / "recipe.toml").is_file()
    if has_begun and (folder / "report.md").is_file():
        return
    where = [f"out={folder}", f"resume={'true' if has_begun else 'false'}"]
    run_process([*launcher, str(ROOT / "trainer" / "main.py"), *recipes, *settings, *where], threads)


def run_process(command: Sequence[str], threads: int = 0) -> None:
    """Raises ValueError with the last line that it said where it fails."""
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    told = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if told.returncode:
        last = (told.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"{shlex.join(command)}: failed with status {told.returncode}: {last}")
