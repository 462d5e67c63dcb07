"""Asks a judge.

python rollout/main.py score --model DIR --prompt TEXT --response TEXT         one response, from 0 to 10
python rollout/main.py score --model DIR --data ROWS.jsonl --out FILE.jsonl    rows of prompt, response, task
python rollout/main.py compare --model DIR --prompt TEXT --response-a TEXT --response-b TEXT
python rollout/main.py compare --model DIR --data ROWS.jsonl --out FILE.jsonl  or rows of prompt, chosen, rejected, task
python rollout/main.py serve --model DIR [--port 8000]                         over HTTP, OpenAI-compatible
"""

from __future__ import annotations

import argparse
import sys

from rollout.mistakes import tell
from rollout.options import add_judge_options
from rollout.threads import wait_briefly


def main(arguments: list[str]) -> int:
    """Runs a command. A mistake of the user's is one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="rollout/main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score responses from 0 to 10: the mean of the valid judgments")
    score.add_argument("--response", help="to --prompt; or --data")
    score.set_defaults(run=_score)
    compare = commands.add_parser("compare", help="say which of two responses is better")
    compare.add_argument("--response-a", help="to --prompt; or --data")
    compare.add_argument("--response-b", help="the other one")
    compare.add_argument(
        "--method", default="mean", choices=("mean", "majority", "pairwise"),
        help="compare mean scores, let paired judgments vote, or show both responses to the judge at once",
    )  # fmt: skip
    compare.set_defaults(run=_compare)
    for command in (score, compare):
        command.add_argument("--prompt", help="what was asked")
        command.add_argument("--task", help="of what names none (default: chat)")
        command.add_argument("--data", help="JSON lines to judge")
        command.add_argument("--out", help="new file for these lines with their judgments; a run that was cut goes on")
        command.add_argument("--json", action="store_true", help="print one item's judgments as a JSON object")
        add_judge_options(command)
    serve = commands.add_parser(
        "serve", help="serve the judge over HTTP; /v1 is OpenAI-compatible, see rollout/server.py"
    )
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reached from elsewhere, too (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0: any that is free")
    serve.add_argument("--model-name", default="", help="what clients call the model (default: its folder's name)")
    serve.add_argument("--api-key-file", default="", help="holds the key that clients must send; default: none")
    serve.add_argument("--max-open-requests", type=int, default=256, help="running and waiting; more are refused (429)")
    serve.add_argument("--max-body-bytes", type=int, default=1 << 20, help="of one request (default: 1 MiB)")
    serve.add_argument("--max-n", type=int, default=64, help="completions or judgments of one request")
    serve.add_argument("--request-timeout", type=float, default=600.0, help="seconds")
    serve.add_argument(
        "--grace", type=int, default=30, help="seconds that open requests get when the server is stopped"
    )
    serve.set_defaults(run=_serve)
    add_judge_options(serve)
    options = parser.parse_args(arguments)
    wait_briefly()
    try:
        options.run(options)
    except (ValueError, OSError, FloatingPointError) as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where a file was being written", file=sys.stderr)
        return 130
    return 0


def _score(options: argparse.Namespace) -> None:
    from rollout.score_command import run_score

    run_score(options)


def _compare(options: argparse.Namespace) -> None:
    from rollout.score_command import run_compare

    run_compare(options)


def _serve(options: argparse.Namespace) -> None:
    from rollout.serve_command import run_serve

    run_serve(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
