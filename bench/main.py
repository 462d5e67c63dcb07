"""Benchmarks: `python bench/main.py step [--rollouts 4,8,16] [--steps 5] [--out DIR]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from eval.mistakes import tell


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench/main.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="time of a GRPO step against the number of rollouts, and its layout")
    step.add_argument("--rollouts", default="4,8,16", help="rollouts per response, comma-separated")
    step.add_argument("--steps", type=int, default=5, help="timed steps of each setting, after one warm-up step")
    step.add_argument("--pairs", type=int, default=8, help="pairs per step")
    step.add_argument("--out", default="", help="folder for step.json and step.md")
    options = parser.parse_args(arguments)
    try:
        rollouts = [int(n) for n in options.rollouts.split(",")]
        if min(*rollouts, options.steps, options.pairs) < 1:
            raise ValueError("--rollouts, --steps and --pairs must be at least 1")
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in training, before torch is imported
        from bench.step_time import run_step_time

        run_step_time(rollouts, options.steps, options.pairs, Path(options.out) if options.out else None)
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
