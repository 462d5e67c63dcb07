"""The run's folder: resolved recipe, metrics.jsonl, samples.jsonl, models, checkpoints, report. Written by rank 0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch

from patarm_core.recipe import read_recipe, to_toml
from trainer.config import Recipe
from trainer.distributed import World
from trainer.text_files import read_records, record_line, write_text

# What changes no result, beyond rounding.
_MAY_CHANGE = {
    "out", "resume", "num_processes", "activation_checkpointing", "max_rows", "tokens_per_micro_batch",
    "checkpoint_every", "reduce_each_micro_batch",
}  # fmt: skip
_MAY_CHANGE_TABLES = ("watch", "log")
STEP_LOGS = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl")  # lines that name their stage and step


class RunFolder:
    """Paths and append-only logs of one run."""

    def __init__(self, path: Path, is_writer: bool) -> None:
        self.path, self.is_writer = path, is_writer

    @classmethod
    def open(cls, recipe: Recipe, world: World) -> RunFolder:
        """The folder `recipe.out`, or `out-2`, `out-3`, … if that is taken; of a run that resumes, always `out`.

        Nothing is made yet, so that a mistake found before `create` leaves nothing behind.

        Raises:
            ValueError: `resume` is set and there is no run to go on with, or it was started with another recipe.
        """
        path, number, problem = Path(recipe.out), 1, None
        if world.is_main:
            try:
                if recipe.resume:
                    problem = _obstacle(path / "recipe.toml", recipe)
                while not recipe.resume and path.exists() and not (path.is_dir() and not any(path.iterdir())):
                    number += 1
                    path = Path(f"{recipe.out}-{number}")
            except (ValueError, OSError) as error:  # a recipe cut short or of an older version; what cannot be read
                problem = f"{path}: cannot be {'resumed' if recipe.resume else 'used'}: {error}"
        path, problem = world.gather((path, problem))[0]
        if problem:
            raise ValueError(problem)
        return cls(path, world.is_main)

    def create(self, recipe: Recipe) -> None:
        """Makes the folder of a new run."""
        if self.is_writer and not recipe.resume:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "recipe.toml", to_toml(recipe))

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def is_finished(self, stage: str) -> bool:
        return (self.model(stage) / "config.json").is_file()

    def append(self, file: str, *records: dict) -> None:
        if self.is_writer and records:
            with open(self.path / file, "a", encoding="utf-8") as log:
                log.write("".join(map(record_line, records)))

    def records(self, file: str) -> list[dict]:
        return read_records(self.path / file)

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what a stage logged after `step`: it will be done again."""
        if not self.is_writer:
            return
        for file in STEP_LOGS:
            if (self.path / file).is_file():
                kept = [r for r in self.records(file) if r["stage"] != stage or r["step"] <= step]
                write_text(self.path / file, "".join(map(record_line, kept)))


def _obstacle(file: Path, recipe: Recipe) -> str | None:
    """Why the run of this recipe file cannot be gone on with, if so."""
    if not file.is_file():
        return f"{file.parent}: there is no run to resume (no {file.name})"
    began = _flat(read_recipe(Recipe, [(str(file), file.read_text(encoding="utf-8"))]))
    for key, value in _flat(recipe).items():
        may_change = key.rpartition(".")[2] in _MAY_CHANGE or key.partition(".")[0] in _MAY_CHANGE_TABLES
        if value != began[key] and not may_change:
            return f"{file}: {key}: the run began with {began[key]!r}, not with {value!r}; start a new one to change it"
    return None


def _flat(recipe: object, prefix: str = "") -> dict[str, object]:
    """Values by dotted key."""
    flat = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        flat |= _flat(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name: value}
    return flat


class Stopwatch:
    """Seconds per phase of a step, device work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
