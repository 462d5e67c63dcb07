"""A run, from the recipe to the report: inputs are checked, the stages run, held-out pairs are measured around them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from rollout.contexts import read_text
from rollout.mistakes import tell
from rollout.vocabulary import load_tokenizer, save_tokenizer
from rollout.weights import save_decoder
from trainer.checkpoint import refuse_another_run
from trainer.config import JUDGE_STAGES, Recipe
from trainer.data import write_data
from trainer.distributed import World, world
from trainer.grpo import run_grpo
from trainer.held_out import HeldOut, PolicyHeldOut
from trainer.html_report import write_report
from trainer.identity import refuse_other_inputs, run_identity
from trainer.inputs import Inputs, load_inputs
from trainer.judged_pairs import judged_pairs, refuse_pairs_of_another_run
from trainer.learner import DTYPES, Learner
from trainer.machine import machine
from trainer.mistakes import Halt
from trainer.pair_stage import run_on_pairs
from trainer.policy import PolicyReplica
from trainer.replica import JudgeReplica, Replica
from trainer.report import draw_curves, time_table
from trainer.rlhf import run_rlhf
from trainer.run_folder import RunFolder, refuse_another_recipe, write_text
from trainer.sft import run_sft
from trainer.stop import Leaving
from trainer.tensorboard_log import check_tensorboard
from trainer.tiny import make_model

REAL_WEIGHTS = """The same job with Qwen3-8B, on 8 and 2 x 8 A100s (data: JSON lines, see README.md):
  torchrun --nproc-per-node 8 trainer/main.py trainer/recipes/qwen3_8b_sft_point.toml \\
    model.path=Qwen3-8B data.judgments=sft.jsonl
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
    trainer/main.py trainer/recipes/qwen3_8b_grpo_point.toml \\
    data.pairs=rl.jsonl data.dev=dev.jsonl data.held_out=held_out.jsonl"""


def run(recipe: Recipe, start: float, agent: str = "") -> None:
    """Trains what the recipe says, and prints the report.

    Args:
        start: when the program began, by time.perf_counter.
        agent: that started it (trainer/launch.py); a run that torchrun starts anew goes on by itself.

    Raises:
        ValueError: one line about a mistake in the recipe or in what it names, before anything is written.
        Leaving: SIGTERM or SIGINT asked the run to end.
    """
    with (
        world(recipe.num_processes, recipe.model.shard_size) as here,
        here.stop.on_signals(recipe.stop_within_s, here.is_main),
        _told_once(here),
    ):
        with here.agreed():
            refuse_another_recipe(recipe, here)
            folder = RunFolder.open(recipe, here, agent)
        recipe = replace(recipe, resume=folder.is_resumed)
        # In rank 0's eyes: what another node remembers of a network file system may be old.
        finished = here.gather({name for name in ("initial", *recipe.stages) if folder.is_finished(name)})[0]
        if here.gather(finished >= {*recipe.stages} and (folder.path / "report.md").is_file())[0]:
            if here.is_main:
                print(read_text(folder.path / "report.md"))
            return
        model = recipe.model.path or (str(folder.model("initial")) if "initial" in finished else "")
        with here.agreed():
            if recipe.log.tensorboard:
                check_tensorboard()
            inputs = load_inputs(recipe, model, here.device)
            for name in ("grpo", "rlhf"):
                if getattr(recipe, name).exact_logprobs and here.device.type != "cpu":
                    raise ValueError(f"{name}.exact_logprobs: is for a CPU; this run is on {here.device}")
            folder.identity = run_identity(recipe, inputs.data, inputs.contexts, inputs.model_config)
            for stage in recipe.stages:
                refuse_another_run(folder.checkpoints(stage), folder.identity)
            refuse_pairs_of_another_run(folder)
            # A checkpoint of another shape is told here, and not after hours.
            first = inputs.objectives.get(recipe.stages[0]) if recipe.stages else None
            head = first.head if first else None
            untrained = Learner(model, recipe.model, recipe.sft.optim, 1, here, head) if model else None
        with here.agreed():
            refuse_other_inputs(folder.identity, inputs.data, here)
        with here.agreed():
            folder.create(recipe)
        with here.agreed():
            folder.refuse_unshared(here)
        with _ours_to_blame():
            if here.is_main:
                num_parameters = inputs.model_config.num_parameters
                print(f"run folder: {folder.path}{' (resumed)' if recipe.resume else ''}")
                print(f"model parameters: {num_parameters:,}; processes: {here.size}", flush=True)
                if recipe.data.source == "embedded":
                    write_data(inputs.data, folder.path / "data")
                if not model:
                    seed, init_std = recipe.seed, recipe.model.small.init_std
                    make_model(folder.model("initial"), inputs.model_config, inputs.tokenizer, seed, init_std)
            here.gather(None)  # the model is there
            if untrained is None:
                model = str(folder.model("initial"))
                untrained = Learner(model, recipe.model, recipe.sft.optim, 1, here, head)
            of_model = recipe, inputs.model_config, inputs.contexts, here
            if recipe.role == "policy":
                replica = PolicyReplica(*of_model, inputs.examiner)
                held_out = PolicyHeldOut(recipe, folder, inputs, replica, start)
            else:
                replica = JudgeReplica(*of_model)
                held_out = HeldOut(recipe, folder, inputs, replica, start)
            if recipe.role == "policy":
                if recipe.model.path:  # a random one has nothing to say
                    held_out.measure("initial", untrained)
            elif head is not None:
                held_out.measure("initial", untrained, first)
            elif not recipe.stages or not set(JUDGE_STAGES).isdisjoint(recipe.stages):
                held_out.measure("initial", untrained)
            del untrained
            _free_memory()  # it is the stages' now
            for stage in recipe.stages:
                if stage not in finished:
                    _run_stage(stage, model, recipe, folder, inputs, replica, held_out)
                model = str(folder.model(stage))
            if here.is_main:
                _report(recipe, folder, held_out, model, here)


def _run_stage(
    stage: str, model: str, recipe: Recipe, folder: RunFolder, inputs: Inputs, replica: Replica, held_out: HeldOut
) -> None:
    """Trains a stage from the directory `model`, measures it and exports it; the export is what marks it finished."""
    objective, data = inputs.objectives.get(stage), inputs.data
    if stage == "dpo" and recipe.dpo.preferences == "reward":
        data = replace(data, pairs=judged_pairs(objective, recipe, folder, model, data.prompts, replica))
        _free_memory()
    if objective is not None:
        learner = run_on_pairs(objective, recipe, folder, model, data, replica.world)
    elif stage == "sft":
        learner = run_sft(recipe, folder, model, inputs.imitated, data.dev_prompts or data.dev, replica)
    elif stage == "rlhf":
        learner = run_rlhf(recipe, folder, model, data.prompts, data.dev_prompts, replica)
    else:
        learner = run_grpo(recipe, folder, model, data.pairs, data.dev, replica)
    held_out.measure(stage, learner, objective)
    if folder.is_writer:
        # From where the stage began: one that was made in memory would be written with other settings.
        save_tokenizer(load_tokenizer(model), folder.model(stage))
    replica.world.gather(None)
    dtype = DTYPES[recipe.model.export_dtype]
    save_decoder(learner.decoder, folder.model(stage), dtype, is_writer=folder.is_writer)
    replica.world.gather(None)
    del learner
    _free_memory()


def _free_memory() -> None:
    """Of a learner that nobody has any more: FSDP's modules refer to one another, and would stay for quite a while."""
    gc.collect()
    torch.cuda.empty_cache()


def _report(recipe: Recipe, folder: RunFolder, held_out: HeldOut, model: str, here: World) -> None:
    records, results = folder.records("metrics.jsonl"), held_out.results
    parts = [held_out.table()] if results else []
    parts += ["", "## Time (median over steps)", time_table(records)] if records else []
    wall_s, cpu_s = held_out.spent().values()
    where = machine()
    parts += ["", f"{where['device']}, {where['threads']} threads, torch {where['torch']}, commit {where['commit']}."]
    parts += [f"Wall time {wall_s:.0f} s, process CPU time {cpu_s:.0f} s (rank 0 of {here.size})."]
    is_judge = recipe.role == "judge"
    if draw_curves(records, results if is_judge else {}, folder.path / "curves.png"):
        parts.append(f"Curves: {folder.path / 'curves.png'}")
    trained = "policy" if recipe.stages[-1] == "dpo" else recipe.role  # DPO trains what answers the prompts
    parts += [f"The page of the run: {write_report(folder.path)}", f"The trained {trained}: {model}"]
    if recipe.data.source == "embedded" and "grpo" in recipe.stages:
        parts += ["", REAL_WEIGHTS]
    text = "\n".join(parts) + "\n"
    write_text(folder.path / "report.md", text)  # last: with it, the run is complete
    print("\n" + text)


@contextmanager
def _told_once(here: World) -> Iterator[None]:
    """All ranks halt and leave together; one of them tells."""
    try:
        yield
    except (Halt, Leaving) as ending:
        if not here.is_main:
            here.gather(None)  # the line is out
            raise SystemExit(getattr(ending, "status", 1)) from None
        if isinstance(ending, Halt):
            tell(ending)
        else:
            print(ending, file=sys.stderr, flush=True)
        here.gather(None)
        raise SystemExit(getattr(ending, "status", 1)) from None


@contextmanager
def _ours_to_blame() -> Iterator[None]:
    """What a user can cause has been checked by now: a ValueError in here is a fault of the program, with its trace."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(f"the run failed: {error}") from error
