"""Checkpoints of a stage through torch.distributed.checkpoint: model, optimiser and step, resharded on load.

Everything else of a run is a function of (recipe, step): the order of pairs, the rollout noise, the learning rate.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from rollout.weights import replace_directory
from trainer.distributed import World
from trainer.learner import Learner


def write_checkpoint_aside(folder: Path, learner: Learner, step: int, world: World) -> None:
    """The slow half: writes `folder/step-NNNNNN.partial`, which counts for nothing yet."""
    model, optimizer = get_state_dict(learner.decoder, learner.optimizer)
    if world.is_main and folder.is_dir():
        for attempt in folder.glob("step-*.partial"):
            shutil.rmtree(attempt)
    world.gather(None)  # nobody writes before the old attempts are gone
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=str(_aside(folder, step)))


def put_in_place(folder: Path, step: int, world: World) -> None:
    """The quick half: renames what was written aside, then removes older checkpoints."""
    if world.is_main:
        replace_directory(_aside(folder, step), _path(folder, step))
        for _, older in _checkpoints(folder)[:-1]:
            shutil.rmtree(older)
    world.gather(None)


def load_checkpoint_(folder: Path, learner: Learner) -> int:
    """Restores the newest checkpoint of a stage; returns the number of steps done, 0 if there is none."""
    found = _checkpoints(folder)
    if not found:
        return 0
    step, path = found[-1]
    model, optimizer = get_state_dict(learner.decoder, learner.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=str(path))
    set_state_dict(learner.decoder, learner.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    return step


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _aside(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.partial"


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)
