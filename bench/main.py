"""Benchmarks.

python bench/main.py step [--rollouts 4,8,16] [--only flat,trl] [--out DIR] time of a GRPO step against n, and TRL's
python bench/main.py compile [--arch sm_80,sm_90] [--out DIR]               what each kernel takes of a GPU, without one
python bench/main.py kernels [--only sample,...] [--repeats 5] [--out DIR]  time and memory of each kernel beside others
python bench/main.py rollout [--models 10m,50m] [--pairs 4] [--out DIR]     tokens per second of ours and other engines
python bench/main.py judging [--data FILE] [--prompts 129] [--out DIR]      judgments per second of a benchmark run
python bench/main.py serve [--clients 64] [--seconds 60] [--out DIR]        many clients at once on the server
python bench/main.py faults [--kills 30] [--seed 0] [--out DIR]            kills runs at any moment, resumes, compares
python bench/main.py downstream --judge DIR [--seeds 0,1,2] [--out DIR]    a policy trained in every way, and checked
python bench/main.py curation --data DIR [--judge DIR] [--out DIR]     the data pipeline on real data
python bench/main.py paper all [--seeds 1,2,3] [--jobs 2] [--out DIR]       the paper's tables and figures, and verdicts
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from rollout.mistakes import tell
from rollout.threads import wait_briefly


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bench/main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="time and memory of a GRPO step against n: on trees, flat, and TRL's")
    step.add_argument("--rollouts", help="n, comma-separated (default: 1,2,4,8,16; on a GPU 4,8,16)")
    step.add_argument("--steps", type=int, default=3, help="timed turns of each, after one that warms up (default: 3)")
    step.add_argument("--pairs", type=int, default=8, help="pairs per step (default: 8, the share of a GPU in table 8)")
    step.add_argument("--shorten", type=float, help="divides all lengths (default: 12; on a GPU 1)")
    step.add_argument("--only", help="beside ours on trees, some of flat, trl, scaling, invariance; comma-separated")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: ours at the shapes of Qwen3")
    step.add_argument("--models", default="1.7b,4b,8b", help="of --device cuda: some of 1.7b, 4b, 8b")
    step.set_defaults(run=_step)
    compiled = commands.add_parser("compile", help="registers, spills and shared memory of every kernel, with no GPU")
    compiled.add_argument("--arch", default="sm_80,sm_90", help="architectures, comma-separated")
    compiled.set_defaults(run=_compile)
    kernels = commands.add_parser("kernels", help="time and memory of each kernel beside plain torch, here")
    names = "sample, linear_sample, linear_logprob, grpo_loss, linear_grpo_loss, paged_attention, tree_attention"
    fused = "rms_norm, add_rms_norm, swiglu, norm_rotary, write_pages"
    kernels.add_argument("--only", help=f"some of {names}, {fused}; comma-separated")
    kernels.add_argument("--repeats", type=int, default=5, help="timed turns of each form (default: 5)")
    kernels.set_defaults(run=_kernels)
    rollout = commands.add_parser("rollout", help="tokens per second of the rollout engine beside other engines")
    rollout.add_argument("--models", default="10m,50m", help="10m, 50m; on a GPU 8b, 14b too; comma-separated")
    rollout.add_argument("--pairs", type=int, default=4, help="pairs judged, two contexts each (default: 4)")
    rollout.add_argument("--rollouts", type=int, default=8, help="judgments of each context (default: 8)")
    rollout.add_argument("--repeats", type=int, default=3, help="timed turns of each engine (default: 3)")
    rollout.add_argument("--only", help="some of generate, generate_batch, ctranslate2; comma-separated")
    rollout.add_argument("--shorten", type=int, default=4, help="divides all lengths (default: 4)")
    rollout.add_argument("--data", type=Path, help="RM-Bench's JSON or pairs as JSON lines; else the embedded set")
    rollout.add_argument("--tokenizer", type=Path, help="a tokenizer.json; else one made of the contexts")
    rollout.set_defaults(run=_rollout)
    judging = commands.add_parser("judging", help="judgments per second of a benchmark run beside a transformers loop")
    judging.add_argument("--data", type=Path, help="RM-Bench's chat_filtered.json; else made-up rows of its size")
    judging.add_argument("--model", default="10m", help="10m or 50m (default: 10m)")
    judging.add_argument("--prompts", type=int, default=12, help="of its 129, six responses each (default: 12)")
    judging.add_argument("--votes", type=int, default=8, help="judgments of each response (default: 8)")
    judging.add_argument("--repeats", type=int, default=3, help="timed turns of each way (default: 3)")
    judging.add_argument("--shorten", type=int, default=8, help="divides all lengths (default: 8)")
    judging.set_defaults(run=_judging)
    serve = commands.add_parser("serve", help="many clients at once on the server: nothing lost, every reply right")
    serve.add_argument("--clients", type=int, default=64, help="that ask at the same time (default: 64)")
    serve.add_argument("--seconds", type=float, default=60, help="that they go on (default: 60)")
    serve.set_defaults(run=_serve)
    faults = commands.add_parser("faults", help="kills tiny runs at any moment; resumed, they must end as if unbroken")
    faults.add_argument("--kills", type=int, default=30, help="runs that are killed once each (default: 30)")
    faults.add_argument("--seed", type=int, default=0, help="of the moments")
    faults.set_defaults(run=_faults)
    downstream = commands.add_parser("downstream", help="a small policy by SFT, DPO and RL with three rewards, checked")
    downstream.add_argument("--judge", required=True, help="such as runs/quickstart/models/grpo")
    downstream.add_argument("--seeds", default="0,1,2", help="comma-separated (default: 0,1,2)")
    downstream.add_argument("--runs", type=Path, default=Path("runs/downstream"), help="where the runs are, and go on")
    downstream.add_argument("settings", nargs="*", metavar="key=value", help="of every run, over quickstart_rlhf.toml")
    downstream.set_defaults(run=_downstream)
    paper = commands.add_parser(
        "paper", help="the paper's experiments, beside its numbers, with a verdict on each finding"
    )
    paper.add_argument(
        "name",
        help="table1, table3, table4, figure3, figure4, figure5, table8, table9; comma-separated, or all. table8 and "
        "table9 read what `step` and `downstream` left in bench/results",
    )
    paper.add_argument(
        "--recipe", default="bench/paper/embedded.toml", help="of every run; comma-separated, the last one wins"
    )
    paper.add_argument("--seeds", default="1,2,3", help="comma-separated (default: 1,2,3; settings were chosen on 0)")
    paper.add_argument("--work", type=Path, default=Path("runs/paper"), help="where the runs are, and go on")
    paper.add_argument(
        "--jobs", type=int, default=1, help="processes side by side; with more, each has its share of cores"
    )
    paper.add_argument(
        "--without", default="", help="runs to leave out, as bench/paper/plan.py names them; comma-separated"
    )
    paper.add_argument("--launcher", default="", help="of a training, such as 'torchrun --nproc-per-node 8'")
    paper.add_argument("settings", nargs="*", metavar="key=value", help="of every run, over the recipe")
    paper.set_defaults(run=_paper)
    curation = commands.add_parser(
        "curation", help="the data pipeline on real data: counts, rows/s, kills, planted prompts"
    )
    curation.add_argument("--data", required=True, type=Path, help="folder with rmb, gsm8k and hep")
    curation.add_argument(
        "--judge", default="", help="such as runs/quickstart/models/grpo; default: recorded scores alone"
    )
    curation.add_argument("--pairs", type=int, default=200, help="rows of each source in runs that are killed")
    curation.add_argument("--questions", type=int, default=8, help="of GSM8K that the judge is asked about")
    curation.set_defaults(run=_curation)
    for command in (step, compiled, kernels, rollout, judging, serve, faults, downstream, paper, curation):
        command.add_argument("--out", type=Path, help="folder for the result as JSON and as a Markdown table")
    options = parser.parse_args(arguments)
    wait_briefly()
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        tell(error)
        return 1
    return 0


def _step(options: argparse.Namespace) -> None:
    from bench.step_gpu import run_step_gpu
    from bench.step_time import PARTS, Options, run_step_time

    on_gpu = options.device == "cuda"
    rollouts = options.rollouts or ("4,8,16" if on_gpu else "1,2,4,8,16")
    if not all(n.isascii() and n.isdigit() for n in rollouts.split(",")):
        raise ValueError(f"--rollouts {rollouts}: must be whole numbers, comma-separated")
    chosen = Options(
        rollouts=tuple(int(n) for n in rollouts.split(",")), steps=options.steps, pairs=options.pairs,
        shorten=options.shorten or (1.0 if on_gpu else 12.0),
        parts=PARTS if options.only is None else tuple(filter(None, options.only.split(","))),
    )  # fmt: skip
    if on_gpu:
        run_step_gpu(chosen, options.models.split(","), options.out)
    else:
        run_step_time(chosen, options.out)


def _compile(options: argparse.Namespace) -> None:
    from bench.kernel_resources import run_compile

    run_compile(options.arch.split(","), options.out)


def _kernels(options: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would tell of every start and stop
    from bench.kernel_speed import run_kernel_speed

    run_kernel_speed([] if options.only is None else options.only.split(","), options.repeats, options.out)


def _rollout(options: argparse.Namespace) -> None:
    from bench.rollout_speed import run_rollout_speed

    only = [] if options.only is None else options.only.split(",")
    run_rollout_speed(
        options.models.split(","), options.pairs, options.rollouts, options.repeats, only, options.shorten,
        options.data, options.tokenizer, options.out,
    )  # fmt: skip


def _judging(options: argparse.Namespace) -> None:
    from bench.judging_speed import run_judging_speed

    run_judging_speed(
        options.data, options.model, options.prompts, options.votes, options.shorten, options.repeats, options.out
    )


def _serve(options: argparse.Namespace) -> None:
    if not (options.clients > 0 and 0 < options.seconds < float("inf")):
        raise ValueError("--clients and --seconds must be positive")
    from bench.serve_load import run_serve_load

    run_serve_load(options.clients, options.seconds, options.out)


def _faults(options: argparse.Namespace) -> None:
    if options.kills < 1:
        raise ValueError("--kills must be at least 1")
    from bench.faults import run_faults

    run_faults(options.kills, options.seed, options.out)


def _downstream(options: argparse.Namespace) -> None:
    seeds = _seeds(options)
    from bench.downstream import run_downstream

    run_downstream(options.judge, seeds, options.settings, options.runs, options.out)


def _paper(options: argparse.Namespace) -> None:
    seeds = _seeds(options)
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    from bench.paper.command import run_paper
    from bench.paper.runs import Scale
    from bench.training import PYTHON

    scale = Scale(
        recipes=tuple(options.recipe.split(",")), settings=tuple(options.settings),
        launcher=tuple(shlex.split(options.launcher)) or PYTHON,
        threads=max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else 0,
    )  # fmt: skip
    without = tuple(filter(None, options.without.split(",")))
    run_paper(options.name.split(","), scale, seeds, options.work, options.out, options.jobs, without)


def _seeds(options: argparse.Namespace) -> list[int]:
    if not all(seed.isascii() and seed.isdigit() for seed in options.seeds.split(",")):
        raise ValueError(f"--seeds {options.seeds}: must be whole numbers, comma-separated")
    return [int(seed) for seed in options.seeds.split(",")]


def _curation(options: argparse.Namespace) -> None:
    if options.pairs < 1 or options.questions < 1:
        raise ValueError("--pairs and --questions must be at least 1")
    from bench.curation import run_curation

    run_curation(options.data, options.judge, options.pairs, options.questions, options.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
