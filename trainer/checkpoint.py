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


def save_checkpoint(folder: Path, learner: Learner, step: int, world: World) -> None:
    """Writes `folder/step-NNNNNN` aside and renames it; then removes older ones."""
    model, optimizer = get_state_dict(learner.decoder, learner.optimizer)
    path = folder / f"step-{step:06d}"
    aside = path.with_name(path.name + ".partial")
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
    world.gather(None)  # nobody writes before the old attempt is gone
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=str(aside))
    if world.is_main:
        replace_directory(aside, path)
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


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)
