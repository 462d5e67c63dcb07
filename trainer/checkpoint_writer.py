"""Writes checkpoints behind the training: a copy is taken, and a thread writes it while the next steps run."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rollout.weights import replace_directory
from trainer.checkpoint import (
    STATE,
    checkpoints,
    file_facts,
    path_of,
    prune,
    state_of,
    write_durably,
    write_manifest,
)
from trainer.distributed import World
from trainer.learner import Learner
from trainer.mistakes import Halt

PATIENCE_S = 60.0  # of a run that fails, with a checkpoint that is being written


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy in host memory of all that a checkpoint holds; of the tensors, this rank's shards."""

    step: int  # steps done
    tensors: dict
    state: str  # JSON
    dev_accuracy: float | None  # measured at this step


class CheckpointWriter(AbstractContextManager):
    """At most one checkpoint of the stage is being written. It is complete when it has its name, and never before.

    The thread's collectives run over a process group of their own (gloo), so that they meet no other ones. A process
    alone has none: a thread of gloo's that has once handled a large message keeps OpenMP threads of its own, and with
    more of these than cores all wait by sleeping, which took twice the time of a small model's rollout.
    """

    def __init__(self, folder: Path, identity: dict, keep: int, world: World) -> None:
        self.folder, self.identity, self.keep, self.world = folder, identity, keep, world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def snapshot(self, learner: Learner, step: int, state: str, dev_accuracy: float | None = None) -> Snapshot:
        """The copy, once the checkpoint before is complete; every rank calls it.

        Raises:
            Halt: the checkpoint before could not be written.
        """
        self.wait()
        model, optimizer = state_of(learner)
        tensors = tree_map_only(Tensor, _copied, {"model": model, "optimizer": optimizer})
        return Snapshot(step, tensors, state, dev_accuracy)

    def start(self, snapshot: Snapshot) -> None:
        """Begins to write. All that was logged up to the snapshot's step must be on disk."""
        self._thread = threading.Thread(target=self._try, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until nothing is being written; Halt if it could not be, RuntimeError if a peer has left meanwhile."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, RuntimeError):  # of a collective
                raise error
            there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            free = f"{shutil.disk_usage(there).free / 2**30:.2f} GiB are free there"  # torch tells no full disk as such
            raise Halt(f"{self.folder}: a checkpoint could not be written: {error}; {free}")

    def __exit__(self, *_error: object) -> None:
        # Also of a run that fails: what is still being written has a while to be completed.
        if self._thread is not None:
            self._thread.join(PATIENCE_S)

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is in place, in the eyes of rank 0; every rank calls it."""
        return self.world.gather(any(number == step for number, _ in checkpoints(self.folder)))[0]

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except dcp.CheckpointException as error:  # no Exception; of all that failed, the first
            rank, (cause, _) = min(error.failures.items())
            self._error = OSError(f"rank {rank}: {cause}")
        except Exception as error:  # told by the thread that waits for this one
            self._error = error

    def _write(self, snapshot: Snapshot) -> None:
        path = path_of(self.folder, snapshot.step)
        aside, is_main = path.with_name(path.name + ".partial"), self.world.is_main
        if is_main and self.folder.is_dir():
            for attempt in self.folder.glob("step-*.partial"):
                shutil.rmtree(attempt)
        self._gather(None)  # nobody writes before the old attempts are gone
        # DCP waits for the disk, and tells all ranks if one of them fails. Nothing is left on a GPU to be copied ahead:
        # for that this thread would wait for a stream of GPU 0, where threads begin, and each rank take memory there.
        storage = dcp.FileSystemWriter(aside, per_thread_copy_ahead=0)
        is_alone = self.world.size == 1
        dcp.save(snapshot.tensors, storage_writer=storage, process_group=self._group, no_dist=is_alone)
        mine = f"__{self.world.rank}_*"
        facts = self._agreed(lambda: {file.name: file_facts(file) for file in aside.glob(mine)})
        files = {name: fact for rank_facts in facts for name, fact in rank_facts.items()}
        self._agreed(lambda: self._finish(snapshot, files, aside, path) if is_main else None)

    def _finish(self, snapshot: Snapshot, files: dict, aside: Path, path: Path) -> None:
        write_durably(aside / STATE, snapshot.state)
        files |= {name: file_facts(aside / name) for name in (STATE, ".metadata")}
        write_manifest(
            aside,
            {
                "step": snapshot.step, "num_processes": self.world.size, "dev_accuracy": snapshot.dev_accuracy,
                "identity": self.identity, "files": files,
            },
        )  # fmt: skip
        _sync(aside)
        replace_directory(aside, path)
        _sync(self.folder)
        prune(self.folder, self.keep)

    def _agreed(self, work: Callable) -> list:
        """What `work` returns on each rank; an OSError of one is everybody's."""
        try:
            done = work(), None
        except OSError as error:
            done = None, error
        everyone = self._gather(done)
        for _, error in everyone:
            if error is not None:
                raise error
        return [result for result, _ in everyone]

    def _gather(self, item: object) -> list:
        if self._group is None:
            return [item]
        items: list = [None] * self.world.size
        dist.all_gather_object(items, item, group=self._group)
        return items


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
