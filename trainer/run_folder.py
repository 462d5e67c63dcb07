"""The run's folder: resolved recipe, metrics.jsonl, samples.jsonl, models, checkpoints, report. Written by rank 0."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from uuid import uuid4

import torch

from patarm_core.recipe import read_recipe, to_toml
from rollout.text_files import naming, read_record, read_records, record_line, write_text
from trainer.config import Recipe
from trainer.distributed import World

# What changes no result, beyond rounding.
_MAY_CHANGE = {
    "out", "resume", "num_processes", "activation_checkpointing", "max_rows", "tokens_per_micro_batch",
    "checkpoint_every", "checkpoint_keep", "stop_within_s", "reduce_each_micro_batch", "shard_size", "cpu_offload",
    "kv_gib", "url", "api_key_env", "concurrency",
}  # fmt: skip
_MAY_CHANGE_TABLES = ("watch", "log")
STEP_LOGS = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl")  # lines that name their stage and step
_RECIPE, _LAUNCH = "recipe.toml", "launch.json"
SEEN_WITHIN_S = 90.0  # on another node: what it remembers of a network file system may be a minute old


class RunFolder:
    """Paths and append-only logs of one run."""

    def __init__(
        self, path: Path, is_writer: bool, is_resumed: bool = False, agents: Sequence[str] = (), mark: str = ""
    ) -> None:
        self.path, self.is_writer, self.is_resumed = path, is_writer, is_resumed
        self.identity: dict = {}  # of the run, for its checkpoints (trainer/identity.py)
        self._agents = agents  # that started the run
        self._mark = mark  # a file by which other ranks know the folder; "": there are none

    @classmethod
    def open(cls, recipe: Recipe, world: World, agent: str = "") -> RunFolder:
        """The folder `recipe.out`, or `out-2`, `out-3`, … if that is taken; of a run that resumes, always `out`.

        When torchrun starts the processes anew after one of them has died, it is the folder that they made before, and
        the run is resumed if it has begun. Nothing is made yet, so that a mistake found before `create` leaves nothing
        behind.

        Args:
            agent: that started this process (trainer/launch.py).

        Raises:
            ValueError: `resume` is set and there is no run to go on with, or it was started with another recipe, or its
                logs cannot be read.
        """
        path, is_resumed, problem = Path(recipe.out), recipe.resume, None
        agents = sorted(set(world.gather(agent)) - {""})
        if world.is_main:
            try:
                if not is_resumed:
                    taken, path = folders(recipe.out)
                    if ours := _made_by(agents, taken):
                        path, is_resumed = ours, True
                if is_resumed:
                    problem = obstacle(path / _RECIPE, recipe)
                    for file in STEP_LOGS:  # which will be read when everything has been loaded
                        read_records(path / file)
                    read_record(path / "report.json")
            except (ValueError, OSError) as error:  # a recipe cut short or of an older version; what cannot be read
                problem = f"{path}: cannot be {'resumed' if is_resumed else 'used'}: {error}"
        path, is_resumed, problem, mark = world.gather((path, is_resumed, problem, f"seen-{uuid4().hex}"))[0]
        if problem:
            raise ValueError(problem)
        return cls(path, world.is_main, is_resumed, agents, mark if world.size > 1 else "")

    def create(self, recipe: Recipe) -> None:
        """Makes the folder of a new run; with the recipe there is something to resume.

        Raises:
            ValueError: another run, started at the same time, has made it first.
        """
        if not self.is_writer:
            return
        if not self.is_resumed:
            self._create(recipe)
        if self._mark:
            for old in self.path.glob("seen-*"):  # of a run that was killed while it was looked for
                old.unlink()
            (self.path / self._mark).touch()

    def refuse_unshared(self, world: World) -> None:
        """Raises ValueError, on every rank, if one of them does not see the folder that has been created."""
        if not self._mark:
            return
        deadline = time.monotonic() + SEEN_WITHIN_S
        # By os.path, whose answer is "no" where a file system raises (a stale handle): all ranks come to the gather.
        while not (is_seen := os.path.exists(self.path / self._mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        seen = world.gather(is_seen)
        if self.is_writer:
            (self.path / self._mark).unlink(missing_ok=True)
        if not all(seen):
            raise ValueError(
                f"{self.path}: rank {seen.index(False)} does not see what rank 0 writes there; "
                "all nodes need one file system for `out`, and the same working directory if it is relative"
            )

    def _create(self, recipe: Recipe) -> None:
        file = self.path / _RECIPE
        aside = self.path / f"{_RECIPE}.{uuid4().hex}"  # another run's would be replaced
        write_text(aside, to_toml(recipe))
        try:
            os.link(aside, file)
        except FileExistsError:
            raise ValueError(f"{self.path}: another run has just begun in it; start this one again") from None
        except OSError:  # a file system without links
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)
        if self._agents:  # once the folder is this run's: a restart would take another's for its own
            write_text(self.path / _LAUNCH, json.dumps({"agents": self._agents}))

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def is_finished(self, stage: str) -> bool:
        return (self.model(stage) / "config.json").is_file()

    def append(self, file: str, *records: dict) -> None:
        path = self.path / file
        if self.is_writer and records:
            with naming(path), open(path, "a", encoding="utf-8") as log:
                log.write("".join(map(record_line, records)))

    def sync(self) -> None:
        """Waits until the logs are on disk: a checkpoint may not be newer than they are."""
        for file in STEP_LOGS if self.is_writer else ():
            if (self.path / file).is_file():
                with open(self.path / file, "rb") as log:
                    os.fsync(log.fileno())

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


def refuse_another_recipe(recipe: Recipe, world: World) -> None:
    """Raises ValueError, on every rank, if one was started with other settings: each node has its own command line."""
    rank_0, *others = world.gather(_flat(recipe))
    for rank, theirs in enumerate(others, 1):
        for key, value in rank_0.items():
            if theirs[key] != value:
                raise ValueError(
                    f"{key}: is {value!r} on rank 0 and {theirs[key]!r} on rank {rank}; "
                    "all nodes are started with the same recipe and settings"
                )


def obstacle(file: Path, recipe: object) -> str | None:
    """Why the run of this recipe file, of the same kind as `recipe`, cannot be gone on with, if so."""
    if not file.is_file():
        return f"{file.parent}: there is no run to resume (no {file.name})"
    began = settings_that_matter(read_recipe(type(recipe), [(str(file), file.read_text(encoding="utf-8"))]))
    for key, value in settings_that_matter(recipe).items():
        if value != began[key]:
            return f"{file}: {key}: the run began with {began[key]!r}, not with {value!r}; start a new one to change it"
    return None


def settings_that_matter(recipe: object) -> dict[str, object]:
    """Values by dotted key, less those that change no result."""
    return {
        key: value
        for key, value in _flat(recipe).items()
        if key.rpartition(".")[2] not in _MAY_CHANGE and key.partition(".")[0] not in _MAY_CHANGE_TABLES
    }


def _flat(recipe: object, prefix: str = "") -> dict[str, object]:
    flat = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        flat |= _flat(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name: value}
    return flat


def folders(out: str) -> tuple[list[Path], Path]:
    """(those of `out`, `out-2`, … that are taken, the first that is not).

    What a run has left that was killed before it wrote its recipe takes no folder.
    """
    taken, path = [], Path(out)
    while path.exists() and not (path.is_dir() and all(_is_unbegun(file) for file in path.iterdir())):
        taken.append(path)
        path = Path(f"{out}-{len(taken) + 1}")
    return taken, path


def _is_unbegun(file: Path) -> bool:
    return file.name.startswith(_RECIPE + ".")


def _made_by(agents: Sequence[str], folders: list[Path]) -> Path | None:
    """The last of the folders of a run that one of these agents started."""
    for path in reversed(folders):
        file = path / _LAUNCH
        if file.is_file() and not set(json.loads(file.read_text(encoding="utf-8"))["agents"]).isdisjoint(agents):
            return path
    return None


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
