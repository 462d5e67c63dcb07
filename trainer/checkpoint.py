"""Checkpoints of a stage: what lies in one, which of them are whole, what is restored, which are kept.

    step-NNNNNN/
      .metadata, __RANK_N.distcp   model and optimiser by torch.distributed.checkpoint, resharded on load
      state.json                   what else spans steps (`Stateful`)
      manifest.json                step, number of processes, dev accuracy, whose run it is (trainer/identity.py), and
                                   size and CRC-32 of every other file
    step-NNNNNN.partial            is being written, or was when the run died: counts for nothing
    step-NNNNNN.old                was being replaced by another of the same step when the run died
    step-NNNNNN.refused            was newer than the one that a run went on from

Everything else of a run is a function of (recipe, step): the order of pairs, the rollout noise, the learning rate.
A checkpoint may be loaded by any number of processes. Sums are taken in another order then, so such a run is the same
to rounding; with the same number, on a CPU in float32, it is the same to the bit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from rollout.weights import settle_replacement
from trainer.distributed import World
from trainer.identity import difference
from trainer.learner import Learner
from trainer.mistakes import Halt, warn

MANIFEST, STATE = "manifest.json", "state.json"

# DCP says so of every checkpoint of a process alone, which is what it was asked for.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Stateful(Protocol):
    """What spans the steps of a stage beside weights and optimiser: a counter, a position, a best value so far.

    Hand `run_steps(…, state={"name": it})` an object with these two methods and a resumed stage gets it back. What is a
    function of (recipe, step) needs no state.
    """

    def state_dict(self) -> dict:
        """JSON: dicts with text keys, lists, numbers, text, None. The same on every rank; rank 0's is kept.

        It is called at every boundary between steps, so it is small; and what it returns may change afterwards.
        """

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave, on every rank, before the first step; ValueError if it does not fit."""


def restore_(folder: Path, learner: Learner, state: Mapping[str, Stateful], world: World) -> int:
    """Restores the newest whole checkpoint of a stage; those that are newer and broken are told and set aside.

    Returns:
        The number of steps done; 0 if there is no checkpoint.
    """
    if world.is_main:
        for old in folder.glob("step-*.old"):
            settle_replacement(old.with_suffix(""))
    step, path, problems = _newest(folder, world)
    if world.is_main:
        for problem in problems:
            warn(f"{problem}; it is not used, the stage goes on from {path.name if path else 'its beginning'}")
        for number, newer in checkpoints(folder):
            if number > step:
                refused = newer.with_name(newer.name + ".refused")
                shutil.rmtree(refused, ignore_errors=True)
                os.replace(newer, refused)
    world.gather(None)  # nobody loads before the names are right
    if path is None:
        return 0
    manifest = read_manifest(path)
    if world.is_main and manifest["num_processes"] != world.size:
        number = manifest["num_processes"]
        print(f"{path.name} is of {number} processes, here are {world.size}: the same to rounding, not to the bit")
    _load_(path, learner)
    saved = json.loads((path / STATE).read_text(encoding="utf-8"))
    if saved.keys() != state.keys():
        raise Halt(f"{path / STATE}: has {', '.join(saved)}; this version of the program needs {', '.join(state)}")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return step


def restore_weights_(folder: Path, step: int, learner: Learner, world: World) -> None:
    """Weights and optimiser as they were after `step` steps; Halt if that checkpoint is not whole."""
    path = path_of(folder, step)
    for problem in filter(None, world.gather(_damage(path, world))):
        raise Halt(f"{problem}; it holds the weights that the stage is to leave")
    _load_(path, learner)


def refuse_another_run(folder: Path, identity: dict) -> None:
    """Raises ValueError if a checkpoint of the stage is of another model, tokenizer, recipe or data; reads only."""
    for _, path in checkpoints(folder):
        try:
            manifest = read_manifest(path)
        except ValueError:
            continue  # `restore_` tells
        if told := difference(manifest["identity"], identity):
            raise ValueError(f"{path}: cannot be resumed: {told}")


def write_manifest(path: Path, manifest: dict) -> None:
    """Adds a checksum of the manifest itself, and waits until it is on disk."""
    text = json.dumps({"crc32": _crc_of(manifest), "manifest": manifest}, indent=1)
    write_durably(path / MANIFEST, text)


def read_manifest(path: Path) -> dict:
    """Raises ValueError, naming the checkpoint, if there is none or it is not what was written."""
    try:
        told = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest, crc = told["manifest"], told["crc32"]
    except FileNotFoundError:
        raise ValueError(f"{path}: has no {MANIFEST}: it was not finished") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: {MANIFEST} cannot be read") from None
    if crc != _crc_of(manifest):
        raise ValueError(f"{path}: {MANIFEST} does not have the checksum it was written with")
    return manifest


def file_facts(file: Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of a file."""
    crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return {"bytes": file.stat().st_size, "crc32": crc}


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of those in place, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def best_checkpoint(folder: Path) -> Path | None:
    """That of the highest dev accuracy, the earliest of equals; None if none was measured."""
    measured = []
    for step, path in checkpoints(folder):
        try:
            accuracy = read_manifest(path)["dev_accuracy"]
        except ValueError:
            continue
        if accuracy is not None:
            measured.append((-accuracy, step, path))
    return min(measured)[2] if measured else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the last `keep` checkpoints and the best one."""
    best = best_checkpoint(folder)
    for _, path in checkpoints(folder)[:-keep]:
        if path != best:
            # Renamed first: a removal that is cut short leaves nothing that looks like a checkpoint.
            gone = path.with_name(path.name + ".partial")
            os.replace(path, gone)
            shutil.rmtree(gone)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def write_durably(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def state_of(learner: Learner) -> tuple[dict, dict]:
    """Weights and optimiser state by name, as torch.distributed.checkpoint saves and loads them: no copies."""
    if not learner.optimizer.state:
        # Before the first update torch makes the moments by a step of nothing, which must not count as one.
        get_state_dict(learner.decoder, learner.optimizer)
        for moments in learner.optimizer.state.values():
            moments["step"].zero_()
    return get_state_dict(learner.decoder, learner.optimizer)


def _load_(path: Path, learner: Learner) -> None:
    model, optimizer = state_of(learner)
    is_alone = learner.world.size == 1  # and needs no process group: see `CheckpointWriter`
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=str(path), no_dist=is_alone)
    set_state_dict(learner.decoder, learner.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def _newest(folder: Path, world: World) -> tuple[int, Path | None, list[str]]:
    """Step and path of the newest checkpoint that is whole, and what is wrong with those after it."""
    problems: list[str] = []
    for step, path in reversed(world.gather(checkpoints(folder))[0]):
        found = [problem for problem in world.gather(_damage(path, world)) if problem]
        if not found:
            return step, path, problems
        problems.append(found[0])
    return 0, None, problems


def _damage(path: Path, world: World) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files."""
    try:
        manifest = read_manifest(path)
    except (ValueError, OSError) as error:
        return str(error)
    for name in world.share(sorted(manifest["files"])):
        expected = manifest["files"][name]
        try:
            found = file_facts(path / name)
        except OSError as error:
            return f"{path}: {name}: {error.strerror or error}"
        if found["bytes"] != expected["bytes"]:
            return f"{path}: {name} has {found['bytes']:,} bytes, not {expected['bytes']:,}"
        if found != expected:
            return f"{path}: {name} does not have the checksum it was written with"
    return None


def _crc_of(manifest: dict) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
