"""Evaluates judges, and the models that they judge.

python eval/main.py pairs --model DIR --data PAIRS.jsonl [--votes 1,8]             accuracy on preference pairs
python eval/main.py rm_bench --model DIR --data PATH --out DIR [--votes 1,2,4,8]   a benchmark; `--help` lists all
python eval/main.py ifeval --model DIR --data input_data.jsonl --out DIR           a policy answers, rules judge
python eval/main.py aggregate BENCHMARK ROWS.jsonl                                 official numbers of anyone's scores
"""

from __future__ import annotations

import argparse
import sys

from eval.aggregate_command import add_aggregate_command
from eval.run_command import add_run_commands
from rollout.mistakes import tell
from rollout.options import add_engine_options, add_form_options, add_seed_option

EPILOG = "A tie and an unscored pair count as wrong; both are shown. Intervals are 95 % Wilson intervals."


def main(arguments: list[str]) -> int:
    """Runs a command. A mistake of the user's is one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="eval/main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs", help="accuracy on preference pairs, with voting@n", epilog=EPILOG)
    pairs.add_argument("--model", required=True, help="a Hugging Face directory, such as runs/quickstart/models/grpo")
    pairs.add_argument("--data", required=True, help="pairs as JSON lines: prompt, chosen, rejected, task")
    pairs.add_argument("--votes", default="1,8", help="numbers of judgments to vote with; the largest is drawn")
    pairs.add_argument(
        "--mode", default="pointwise", choices=("pointwise", "pairwise"), help="score responses, or choose between two"
    )
    add_form_options(pairs)
    pairs.add_argument("--max-completion-tokens", type=int, default=4096, help="of a judgment (default: 4096)")
    pairs.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default: 1)")
    add_seed_option(pairs)
    add_engine_options(pairs, max_rows=512)
    pairs.add_argument("--out", default="", help="new file for every judgment, as JSON lines")
    pairs.set_defaults(run=_run_pairs)
    add_run_commands(commands)
    add_aggregate_command(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where judgments were being written", file=sys.stderr)
        return 130
    return 0


def _run_pairs(options: argparse.Namespace) -> None:
    from eval.pairs_command import run_pairs

    run_pairs(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
