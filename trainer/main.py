"""Trains a judge: `torchrun trainer/main.py RECIPE.toml [RECIPE.toml …] [key=value …]`."""

from __future__ import annotations

import json
import sys
import time

from eval.contexts import read_text
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
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def read_arguments(arguments: list[str]) -> Recipe:
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    return read_recipe(Recipe, [(file, read_text(file)) for file in files], overrides)


def run(recipe: Recipe) -> None:
    # Imported here so that a mistyped recipe is told in a second, not after torch has loaded.
    import torch

    from eval.pairs_command import write_judgments
    from eval.tables import accuracy_table, task_table
    from rollout.weights import save_decoder
    from trainer.data import write_data
    from trainer.dev import DevMeter
    from trainer.distributed import world as join_world
    from trainer.grpo import run_grpo
    from trainer.inputs import load_inputs
    from trainer.learner import Learner
    from trainer.report import draw_curves, time_table
    from trainer.run_folder import RunFolder, write_text
    from trainer.sft import run_sft
    from trainer.tiny import make_model

    start = time.perf_counter()
    with join_world(recipe.num_processes) as world:
        say = print if world.is_main else (lambda *_: None)
        with world.agreed():
            folder = RunFolder.open(recipe, world)
        if all(map(folder.is_finished, recipe.stages)) and (folder.path / "report.md").is_file():
            say(read_text(folder.path / "report.md"))
            return
        model = recipe.model.path or (str(folder.model("initial")) if folder.is_finished("initial") else "")
        with world.agreed():
            inputs = load_inputs(recipe, model)
            # A checkpoint of another shape is told here, and not after hours.
            untrained = Learner(model, recipe.model, recipe.sft.optim, 1, world) if model else None
        folder.create(recipe)
        say(f"run folder: {folder.path}")
        data, contexts = inputs.data, inputs.contexts
        if world.is_main and recipe.data.source == "embedded":
            write_data(data, folder.path / "data")
        if not model:
            model = str(folder.model("initial"))
            if world.is_main:
                make_model(model, inputs.model_config, inputs.tokenizer, recipe.seed, recipe.model.small.init_std)
            world.gather(None)
            untrained = Learner(model, recipe.model, recipe.sft.optim, 1, world)
        meter = DevMeter(recipe, model, contexts, world)
        report = json.loads(read_text(folder.path / "report.json")) if (folder.path / "report.json").is_file() else {}
        results = report.get("held_out", {})
        earlier_s = {name: report.get(name, 0.0) for name in ("wall_s", "cpu_s")}  # of a run that resumes

        def spent() -> dict[str, float]:
            now = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time()}
            return {name: earlier_s[name] + seconds for name, seconds in now.items()}

        def measure(name: str, learner: Learner) -> None:
            if not data.held_out or name in results:
                return
            judged = meter.judge(learner, data.held_out, recipe.eval.num_judgments, f"held-out, {name}")
            results[name] = summary(judged, recipe.eval.votes)
            if world.is_main:
                write_judgments(folder.path / "judgments" / f"{name}.jsonl", judged)
                write_text(folder.path / "report.json", json.dumps({"held_out": results, **spent()}, indent=1))

        measure("initial", untrained)
        del untrained  # its memory is the stages' now
        for stage in recipe.stages:
            if not folder.is_finished(stage):
                if stage == "sft":
                    learner = run_sft(recipe, folder, model, inputs.judgments, data.dev, meter)
                else:
                    learner = run_grpo(recipe, folder, model, data.pairs, data.dev, meter)
                measure(stage, learner)
                if world.is_main:
                    inputs.tokenizer.save_pretrained(folder.model(stage))
                save_decoder(learner.decoder, folder.model(stage), is_writer=world.is_main)
                world.gather(None)
                del learner
                torch.cuda.empty_cache()
            model = str(folder.model(stage))
        if world.is_main:
            records = folder.records("metrics.jsonl")
            parts = ["## Held-out pairs", accuracy_table(results), "", task_table(results)] if results else []
            parts += ["", "## Time (median over steps)", time_table(records)] if records else []
            wall_s, cpu_s = spent().values()
            parts += ["", f"Wall time {wall_s:.0f} s, process CPU time {cpu_s:.0f} s (rank 0 of {world.size})."]
            if draw_curves(records, results, folder.path / "curves.png"):
                parts.append(f"Curves: {folder.path / 'curves.png'}")
            parts.append(f"The trained judge: {model}")
            text = "\n".join(parts) + "\n"
            write_text(folder.path / "report.md", text)  # last: with it, the run is complete
            say("\n" + text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
