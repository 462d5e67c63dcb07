"""What a stage tells of its steps: metrics.jsonl, samples.jsonl, warnings.jsonl and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from trainer.config import Recipe
from trainer.distributed import World
from trainer.failure_signs import FailureWatch, warning_line
from trainer.over_optimisation import OverOptimisationWatch
from trainer.run_folder import RunFolder
from trainer.tensorboard_log import TensorboardLog


class StageLog(AbstractContextManager):
    """The stage's logs from step `first` on; what an earlier process logged after it is forgotten.

    `past` holds the stage's lines of metrics.jsonl up to there, on every rank.
    """

    def __init__(self, stage: str, first: int, recipe: Recipe, folder: RunFolder, world: World) -> None:
        self._stage, self._folder = stage, folder
        folder.rewind(stage, first)
        kept = [r for r in folder.records("metrics.jsonl") if r["stage"] == stage] if folder.is_writer else []
        self.past: list[dict] = world.gather(kept)[0]
        self._watches = (FailureWatch(recipe.watch), OverOptimisationWatch(recipe.watch))
        for record in self.past:
            for watch in self._watches:
                watch.see(record)
        is_drawn = recipe.log.tensorboard and folder.is_writer
        self._tensorboard = TensorboardLog(folder.path / "tensorboard" / stage, first) if is_drawn else None

    def write(self, step: int, metrics: dict, samples: Sequence[dict]) -> list[str]:
        """Logs one step; returns the lines of the warnings that begin or end with it."""
        record = {"stage": self._stage, "step": step, **metrics}
        events = [event for watch in self._watches for event in watch.see(record)]
        self._folder.append("metrics.jsonl", record)
        self._folder.append("samples.jsonl", *samples)
        if events:
            self._folder.append("warnings.jsonl", *events)
        if self._tensorboard:
            self._tensorboard.write(record)
        return [warning_line(event) for event in events]

    def __exit__(self, *_error: object) -> None:
        if self._tensorboard:
            self._tensorboard.close()
