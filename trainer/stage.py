"""The loop that all stages share: steps dealt by the sampler, dev measurements, log, checkpoints, resume."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tqdm import tqdm, trange

from patarm_core.pairs import Pair
from patarm_core.sampling import PairRandomSampler
from trainer.checkpoint import load_checkpoint_, put_in_place, write_checkpoint_aside
from trainer.config import BtConfig, GrpoConfig, Recipe, SftConfig
from trainer.early_stop import best, dev_measurements, has_stalled
from trainer.learner import Learner
from trainer.run_folder import RunFolder, Stopwatch
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


def count_steps(config: SftConfig | GrpoConfig | BtConfig, sampler: PairRandomSampler) -> int:
    return config.steps or config.epochs * sampler.steps_per_epoch


def run_steps(
    stage: str,
    config: SftConfig | GrpoConfig | BtConfig,
    sampler: PairRandomSampler,
    learner: Learner,
    folder: RunFolder,
    measures: Measures,
    dev: Sequence[Pair],
    recipe: Recipe,
) -> Iterator[Step]:
    """Yields the steps that are left; when the body of one is done, measures, logs and saves it.

    The last step is the one that the recipe counts to, or the one whose dev measurement ends the stage early.
    """
    world, num_steps = learner.world, count_steps(config, sampler)
    first = load_checkpoint_(folder.checkpoints(stage), learner) if recipe.resume else 0
    with StageLog(stage, first, recipe, folder, world) as log:
        measured = dev_measurements(log.past)
        if has_stalled(measured, config.patience, config.min_delta):
            return  # the checkpoint is of the step that ended the stage
        bar = trange(first, num_steps, initial=first, total=num_steps, desc=stage, disable=not world.is_main)
        for index in bar:
            step = Step(index, Stopwatch(world.device))
            yield step
            done = index + 1
            is_last = done == num_steps
            told = []
            if config.dev_every and (done % config.dev_every == 0 or is_last):
                with step.watch.phase("dev_s"):
                    step.metrics |= measures.measure(learner, dev)
                measured += dev_measurements([{"step": done, **step.metrics}])
                if not is_last and has_stalled(measured, config.patience, config.min_delta):
                    is_last, top = True, best(measured)
                    told.append(
                        f"{stage}: stops after step {done} of {num_steps}, {config.patience} dev measurements without "
                        f"a gain; the best accuracy, {top.accuracy:.1%}, was after step {top.step}"
                    )
            is_checkpoint = is_last or (config.checkpoint_every and done % config.checkpoint_every == 0)
            if is_checkpoint:
                with step.watch.phase("checkpoint_s"):
                    write_checkpoint_aside(folder.checkpoints(stage), learner, done, world)
            told += log.write(done, step.metrics | step.watch.seconds, step.samples)
            bar.set_postfix_str(step.note, refresh=False)
            if world.is_main:
                for line in told:
                    tqdm.write(line, file=sys.stderr)
            if is_checkpoint:  # after the log, which a run that resumes cuts back to the checkpoint
                put_in_place(folder.checkpoints(stage), done, world)
            if is_last:
                return
