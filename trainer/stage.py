"""The loop that all stages share: steps dealt by the sampler, dev measurements, log, checkpoints, resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from patarm_core.pairs import Pair
from patarm_core.sampling import PairRandomSampler
from trainer.checkpoint import Stateful, checkpoints, restore_, restore_weights_
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import Recipe, StageConfig
from trainer.early_stop import best, dev_measurements, has_stalled
from trainer.learner import Learner
from trainer.run_folder import RunFolder, Stopwatch
from trainer.skipped import save_evidence
from trainer.stage_log import StageLog


@dataclass(slots=True)
class Step:
    """One step of a stage; its body fills in metrics, samples and the note."""

    index: int  # from 0
    watch: Stopwatch
    metrics: dict[str, float | list[int]] = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)  # lines of samples.jsonl
    note: str = ""  # beside the progress bar


class Measures(Protocol):
    """How a stage's model does on the dev pairs: the replica that judges them, or a reward of single responses."""

    def measure(self, learner: Learner, dev: Sequence[Pair]) -> dict[str, float]: ...


def count_steps(config: StageConfig, sampler: PairRandomSampler) -> int:
    return config.steps or config.epochs * sampler.steps_per_epoch


def run_steps(
    stage: str,
    config: StageConfig,
    sampler: PairRandomSampler,
    learner: Learner,
    folder: RunFolder,
    measures: Measures,
    dev: Sequence[Pair],
    recipe: Recipe,
    state: Mapping[str, Stateful] | None = None,
) -> Iterator[Step]:
    """Yields the steps that are left; when the body of one is done, measures, logs and saves it.

    The last step is the one that the recipe counts to, or the one whose dev measurement ends the stage early. With
    `keep = "best"` the learner has the weights of the best dev accuracy in the end. A checkpoint is written behind the
    steps that follow it. A run that is asked to end (SIGTERM) saves the boundary that it is at: the end of a step, its
    beginning as long as no weight has changed, or the time before its dev measurement, with which it then goes on.

    Args:
        state: what the stage remembers from step to step beside the weights; it is saved and restored with them.

    Raises:
        Leaving: the run was asked to end; it can be resumed.
        Halt: a checkpoint could not be written.
    """
    world, num_steps, place = learner.world, count_steps(config, sampler), folder.checkpoints(stage)
    unmeasured = _Unmeasured()
    spans = {"skipped": learner.skipped, "unmeasured": unmeasured, **(state or {})}
    first = restore_(place, learner, spans, world) if recipe.resume else 0
    if unmeasured.told is not None:
        first -= 1  # its weights are there, and what is left of it is the measurement
    with (
        StageLog(stage, first, recipe, folder, world) as log,
        CheckpointWriter(place, folder.identity, config.checkpoint_keep, world) as writer,
        tqdm(initial=first, total=num_steps, desc=stage, disable=not world.is_main) as bar,
    ):
        measured = dev_measurements(log.past)
        # If it has, the checkpoint is of the step that ended the stage.
        end = first if has_stalled(measured, config.patience, config.min_delta) else num_steps
        boundary = _json(spans)
        for index in range(first, end):
            step, done = Step(index, Stopwatch(world.device)), index + 1
            is_last, is_best = done == num_steps, False
            told = []
            was_left = unmeasured.told is not None
            if was_left:
                step.metrics, step.samples, step.note = unmeasured.told
            else:
                leave = partial(_leave_if_asked, writer, learner, folder, index, learner.num_updates, boundary)
                learner.skipped.save = partial(_save_evidence, writer, folder, stage, done)
                with world.stop.paused_by(leave):
                    yield step
            if config.dev_every and (done % config.dev_every == 0 or is_last):
                unmeasured.told = step.metrics | step.watch.seconds, step.samples, step.note
                leave = partial(_leave_if_asked, writer, learner, folder, done, learner.num_updates, _json(spans))
                with world.stop.paused_by(leave), step.watch.phase("dev_s"):
                    step.metrics |= measures.measure(learner, dev)
                unmeasured.told = None
                measured += dev_measurements([{"step": done, **step.metrics}])
                is_best = config.keep == "best" and best(measured).step == done
                if not is_last and has_stalled(measured, config.patience, config.min_delta):
                    is_last, top = True, best(measured)
                    told.append(
                        f"{stage}: stops after step {done} of {num_steps}, {config.patience} dev measurements without "
                        f"a gain; the best accuracy, {top.accuracy:.1%}, was after step {top.step}"
                    )
            boundary, is_leaving = _json(spans), world.is_any(world.stop.is_requested)
            # One that was left before its measurement is saved with it: it is not measured a third time.
            is_due = is_last or is_best or was_left or (config.checkpoint_every and done % config.checkpoint_every == 0)
            if is_due or is_leaving:
                with step.watch.phase("checkpoint_s"):
                    snapshot = writer.snapshot(learner, done, boundary, step.metrics.get("dev_accuracy"))
            told += log.write(done, step.metrics | step.watch.seconds, step.samples)
            bar.set_postfix_str(step.note, refresh=False)
            bar.update()
            if world.is_main:
                for line in told:
                    tqdm.write(line, file=sys.stderr)
            if is_due or is_leaving:  # after the log, which a run that resumes cuts back to the checkpoint
                folder.sync()
                writer.start(snapshot)
                del snapshot  # the thread's alone: as large as weights and moments, it goes when it is written
            if is_last or is_leaving:
                writer.wait()
            if is_leaving:
                raise world.stop.leaving(f"{place.name} goes on after step {done}")
            if is_last:
                break
        if config.keep == "best":
            top = best(measured)
            restore_weights_(place, top.step, learner, world)
            if world.is_main:
                print(f"{stage}: leaves the weights after step {top.step}, the best accuracy: {top.accuracy:.1%}")


class _Unmeasured:
    """A step that is done but for its dev measurement, of a run that left then: it is not in the log yet."""

    told: tuple[dict, list[dict], str] | None = None  # its metrics, samples and note

    def state_dict(self) -> dict:
        return {"told": self.told}

    def load_state_dict(self, state: dict) -> None:
        self.told = state["told"]


def _leave_if_asked(
    writer: CheckpointWriter, learner: Learner, folder: RunFolder, done: int, num_updates: int, boundary: str
) -> None:
    """At a pause: saves the boundary before it, after `done` steps, unless a weight has changed since."""
    world = learner.world
    if not world.is_any(world.stop.is_requested) or learner.num_updates != num_updates:
        return
    writer.wait()
    if not writer.has(done):
        folder.sync()
        writer.start(writer.snapshot(learner, done, boundary))
        writer.wait()
    raise world.stop.leaving(f"{writer.folder.name} goes on after step {done}")


def _json(spans: Mapping[str, Stateful]) -> str:
    return json.dumps({name: part.state_dict() for name, part in spans.items()})


def _save_evidence(writer: CheckpointWriter, folder: RunFolder, stage: str, step: int, evidence: dict) -> Path:
    writer.wait()  # the checkpoint before may just be being written
    before = [path for _, path in checkpoints(folder.checkpoints(stage))]
    return save_evidence(folder, stage, step, before[-1] if before else None, evidence)
