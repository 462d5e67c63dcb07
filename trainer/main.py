"""Trains a judge: `torchrun trainer/main.py RECIPE.toml [RECIPE.toml …] [key=value …]`.

`python trainer/main.py --report RUN_FOLDER` makes the page of a run again, of one that is not finished too, and
`python trainer/main.py curate RECIPE.toml [key=value …]` makes training data of raw preference pairs.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import NoReturn, TypeVar

from patarm_core.recipe import RecipeError, read_recipe, with_bases
from rollout.contexts import read_text
from rollout.mistakes import tell
from rollout.threads import wait_briefly
from trainer.config import Recipe
from trainer.launch import agent
from trainer.mistakes import end_at_once, leave_it_to_rank_0

R = TypeVar("R")  # a recipe

USAGE = """usage: torchrun [--nproc-per-node N] trainer/main.py RECIPE.toml [RECIPE.toml ...] [key=value ...]
       python trainer/main.py --plan RECIPE.toml [RECIPE.toml ...] [key=value ...]   memory and time, estimated
       python trainer/main.py --report RUN_FOLDER
       python trainer/main.py curate RECIPE.toml [RECIPE.toml ...] [key=value ...]   raw pairs into training data

Recipes are in trainer/recipes/; trainer/recipes/quickstart.toml needs no data. key=value goes over the recipe, such as
sft.steps=100 or grpo.optim.lr=1e-6; out=FOLDER names the run's folder, and resume=true goes on with it.
Keys and their defaults: trainer/config.py; of curate: trainer/curation/config.py."""


def main(arguments: list[str]) -> int:
    """Runs a recipe. A mistake of the user's is one line on standard error and exit status 1.

    A run that SIGTERM or SIGINT ends saves a checkpoint and has exit status 143 or 130.
    """
    start = time.perf_counter()  # process CPU time, shown beside, counts the imports below too
    if "--plan" in arguments:  # with options and a help of its own
        return _plan([argument for argument in arguments if argument != "--plan"])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--report":
        return _report(arguments[1:])
    if arguments[0] == "curate":
        return _curate(arguments[1:])
    try:
        recipe = read_arguments(arguments)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") != "0":
            leave_it_to_rank_0(error)
        tell(error)
        return 1
    wait_briefly()
    from trainer.run import run  # here, so that a mistyped recipe is told before torch has loaded

    try:
        run(recipe, start, agent(os.environ))
    except SystemExit as ending:  # told by then: it was asked to end, or halted
        return ending.code
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    except RuntimeError as error:
        if not _is_left_alone(error):
            raise
        rank = os.environ["RANK"]
        print(f"rank {rank}: leaves, as another process has: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with resume=true goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _is_left_alone(error: RuntimeError) -> bool:
    """Whether another process of the run has left: that one tells why; where this one was then is of no interest."""
    return _is_one_of_several() and bool(re.search(r"(closed|reset) by (remote )?peer|Broken pipe", str(error)))


def _is_one_of_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _plan(arguments: list[str]) -> int:
    """Prints what a recipe will need. Status 0: it fits; 3: it does not."""
    from trainer.plan import parse_options, plan

    try:
        options = parse_options(arguments)
        report, does_fit = plan(read_arguments(options.recipe), options)
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    print(report)
    return 0 if does_fit else 3


def _report(folders: list[str]) -> int:
    from trainer.html_report import write_report

    if len(folders) != 1:
        tell(ValueError(f"--report takes the folder of one run, got {len(folders)}"))
        return 1
    try:
        print(write_report(Path(folders[0])))
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    return 0


def _curate(arguments: list[str]) -> int:
    from trainer.curate import curate
    from trainer.curation.config import CurateRecipe

    try:
        if not arguments:
            raise ValueError("curate: which recipe? Such as trainer/recipes/curate_example.toml")
        curate(read_arguments(arguments, CurateRecipe))
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with resume=true goes on", file=sys.stderr)
        return 130
    return 0


def read_arguments(arguments: list[str], kind: type[R] = Recipe) -> R:
    for argument in arguments:
        if argument.startswith("-"):
            raise ValueError(f"{argument}: there are no options; settings are written as in sft.steps=3")
        if "=" not in argument and not argument.endswith(".toml") and not os.path.exists(argument):
            raise ValueError(f"{argument}: no such file; a setting is written as in {argument}=VALUE")
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    # A base that several files share is read once, before the first of them.
    texts = list({name: text for file in files for name, text in with_bases(os.path.normpath(file), read_text)}.items())
    try:
        return read_recipe(kind, texts, overrides)
    except RecipeError:
        _refuse_the_other_kind(kind, texts)
        raise


def _refuse_the_other_kind(kind: type, texts: list[tuple[str, str]]) -> None:
    """Told by its first key that the other kind does not know, a recipe would seem misspelt."""
    from trainer.curation.config import CurateRecipe

    other = CurateRecipe if kind is Recipe else Recipe

    def reads(kind: type) -> bool:
        try:
            read_recipe(kind, texts)
        except RecipeError:
            return False
        return True

    if reads(other) and not reads(kind):
        what = "makes data: trainer/main.py curate" if kind is Recipe else "trains a model: trainer/main.py"
        raise ValueError(f"{texts[-1][0]}: is a recipe that {what} {texts[-1][0]}")


def leave(status: int) -> NoReturn:
    """Ends the process: one of several at once, without Python's own end.

    In that one a thread of gloo's that lets go of a tensor is unwound through code that must not be, and aborts the
    process ("terminate called without an active exception"): to torchrun a run that has finished would have failed.
    """
    if _is_one_of_several():
        end_at_once(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
