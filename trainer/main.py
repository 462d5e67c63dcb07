"""Trains a judge: `torchrun trainer/main.py RECIPE.toml [RECIPE.toml …] [key=value …]`."""

from __future__ import annotations

import json
import sys
import time

from eval.contexts import ContextBuilder, load_rubrics, read_text
from eval.pair_accuracy import summary
from patarm_core.recipe import read_recipe
from trainer.config import Recipe

USAGE = "usage: torchrun [--nproc-per-node N] trainer/main.py RECIPE.toml [RECIPE.toml ...] [key=value ...]"


def main(arguments: list[str]) -> int:
    """Runs a recipe. A mistake of the user's is one line on standard error and exit status 1."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        recipe = read_arguments(arguments)
        run(recipe)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_arguments(arguments: list[str]) -> Recipe:
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    return read_recipe(Recipe, [(file, read_text(file)) for file in files], overrides)


def run(recipe: Recipe) -> None:
    # Imported here so that a mistyped recipe is told in a second, not after torch has loaded.
    from rollout.engine import load_tokenizer
    from rollout.weights import save_decoder
    from trainer.data import embedded_files, load_data, write_embedded
    from trainer.dev import DevMeter
    from trainer.distributed import world as join_world
    from trainer.grpo import run_grpo
    from trainer.learner import Learner
    from trainer.report import accuracy_table, draw_curves, task_table, time_table
    from trainer.run_folder import RunFolder, write_text
    from trainer.sft import run_sft
    from trainer.tiny import small_model

    start = time.perf_counter()
    with join_world(recipe.num_processes) as world:
        book = load_rubrics(recipe.prompt.rubrics_file)
        if recipe.data.source == "files":
            data = load_data(recipe, recipe.data, book)  # before the folder is made: a mistake leaves nothing behind
        folder = RunFolder.open(recipe, world)
        say = print if world.is_main else (lambda *_: None)
        say(f"run folder: {folder.path}")
        if recipe.data.source == "embedded":
            if world.is_main:
                write_embedded(recipe.data.embedded, folder.path / "data")
            world.gather(None)
            files = embedded_files(recipe.data, folder.path / "data")
            data = load_data(recipe, files, book)
        model = recipe.model.path
        if not model:
            model = str(folder.model("initial"))
            if world.is_main and not folder.is_finished("initial"):
                small_model(model, recipe, book, data.judgments)
            world.gather(None)
        tokenizer = load_tokenizer(model)
        contexts = ContextBuilder(tokenizer, recipe.prompt, book)
        for pairs in (data.pairs, data.dev, data.held_out):
            for pair in pairs:
                contexts.sides(pair)  # a prompt over the limit is told before any training
        meter = DevMeter(recipe, model, contexts, world)
        results_file = folder.path / "report.json"
        results = json.loads(read_text(results_file))["held_out"] if results_file.is_file() else {}

        def measure(name: str, learner: Learner) -> None:
            if not data.held_out or name in results:
                return
            judged = meter.judge(learner, data.held_out, recipe.eval.num_judgments, f"held-out, {name}")
            results[name] = summary(judged, recipe.eval.votes)
            if world.is_main:
                report = {"held_out": results, "wall_s": time.perf_counter() - start, "cpu_s": time.process_time()}
                write_text(results_file, json.dumps(report, indent=1))

        if "initial" not in results and data.held_out:
            measure("initial", Learner(model, recipe.model, recipe.sft.optim, 1, world))
        for stage in recipe.stages:
            if not folder.is_finished(stage):
                if stage == "sft":
                    learner = run_sft(recipe, folder, model, data.judgments, data.dev, meter)
                else:
                    learner = run_grpo(recipe, folder, model, data.pairs, data.dev, meter)
                measure(stage, learner)
                if world.is_main:
                    tokenizer.save_pretrained(folder.model(stage))
                world.gather(None)
                save_decoder(learner.decoder, folder.model(stage), is_writer=world.is_main)
                world.gather(None)
            model = str(folder.model(stage))
        if world.is_main:
            records = folder.records("metrics.jsonl")
            parts = ["## Held-out pairs", accuracy_table(results), "", task_table(results)] if results else []
            parts += ["", "## Time (median over steps)", time_table(records)] if records else []
            wall_s, cpu_s = time.perf_counter() - start, time.process_time()
            parts += ["", f"Wall time {wall_s:.0f} s, process CPU time {cpu_s:.0f} s (rank 0 of {world.size})."]
            write_text(folder.path / "report.md", "\n".join(parts) + "\n")
            if draw_curves(records, results, folder.path / "curves.png"):
                parts.append(f"Curves: {folder.path / 'curves.png'}")
            parts.append(f"The trained judge: {model}")
            say("\n" + "\n".join(parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
