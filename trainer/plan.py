"""What a recipe will need: memory and seconds per step, from shapes alone. No GPU is touched and no weight is read.

`trainer/main.py --plan RECIPE.toml [key=value …]`. The formulas stand in trainer/plan_memory.py and
trainer/plan_time.py, each beside its number.

Lengths, unless told. P = 600: a judge prompt's rubrics and instructions are about 350 tokens (a reward model, DPO and a
policy read none of these), and RM-Bench's prompts are short. R = 450: RM-Bench's responses have a median of 335 tokens
(chat) and 442 (code), and what a policy answers is taken to be as long. J = 1,000: the paper's Table 8 takes 311 s at a
limit of 1,024 tokens and 486 s at 4,096, so the mean judgment is at most 486 / 311 x 1,024.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rollout.decoder import DecoderConfig
from rollout.shapes import QWEN3, shape_named_in
from trainer.config import Recipe
from trainer.plan_job import GIB, GPUS, INSTRUCTIONS, Job, num_read, writes_judgments
from trainer.plan_memory import ALWAYS, PHASES, host_bytes, peak, room_for_keys_and_values
from trainer.plan_time import PAPER_S, paper_line, rows, seconds, step_s
from trainer.tiny import small_config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share in (0, 1]")


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the estimate, and `recipe`: the files and overrides.

    Raises:
        ValueError: one line about an option that makes no sense.
    """
    parser = _Parser(prog="trainer/main.py --plan", allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.toml|key=value")
    parser.add_argument("--gpu", choices=GPUS, default="A100", help="default: A100, 80 GB, SXM")
    parser.add_argument("--gpus", type=_at_least_one, help="default: the recipe's num_processes, or 1")
    parser.add_argument("--model", choices=QWEN3, help="the shape, where model.path is not there and does not name it")
    parser.add_argument("--prompt-tokens", type=_at_least_one, help="a judge's with instructions and rubrics (600)")
    parser.add_argument("--response-tokens", type=_at_least_one, help="default: 450")
    parser.add_argument("--judgment-tokens", type=_at_least_one, help="mean of what a judge writes (default: 1000)")
    parser.add_argument("--mfu", type=_share, default=0.4, help="share of a GPU's products (default: 0.4)")
    parser.add_argument("--bandwidth", type=_share, default=0.6, help="share of its bandwidth in decoding (0.6)")
    options = parser.parse_intermixed_args(arguments)
    if not options.recipe:
        raise ValueError("--plan: no recipe given")
    return options


def plan(recipe: Recipe, options: argparse.Namespace) -> tuple[str, bool]:
    """The report, and whether every stage fits.

    Raises:
        ValueError: one line about lengths or sizes that cannot be.
    """
    name, shape = _shape(recipe, options.model)
    reward = _reward_shape(recipe)
    jobs = [_job(recipe, stage, shape, reward, options) for stage in recipe.stages]
    lines = [line for job in jobs for line in _report(job, name)]
    return "\n".join(lines), all(map(fits, jobs))


def fits(job: Job) -> bool:
    return peak(job)[1] <= job.gpu.memory_gib * GIB


def _shape(recipe: Recipe, model: str | None) -> tuple[str, DecoderConfig]:
    path = recipe.model.path
    if model:
        return model, QWEN3[model]
    if not path:
        return "the recipe's small model", small_config(recipe.model.small)
    return _shape_at(path, "model.path", "--model says which")


def _shape_at(path: str, key: str, help_: str, is_scalar: bool = False) -> tuple[str, DecoderConfig]:
    if Path(path).is_dir():
        return path, DecoderConfig.from_pretrained(path, is_scalar)
    named = shape_named_in(path)
    if named is None:
        raise ValueError(f"{key}: {path} is not there and names none of {', '.join(QWEN3)}; {help_}")
    return named[0], replace(named[1], is_scalar=is_scalar)


def _reward_shape(recipe: Recipe) -> DecoderConfig | None:
    """Of the model that scores a policy's answers on the same GPUs; None where there is none."""
    reward = recipe.rlhf.reward
    if not recipe.is_rewarded or reward.kind not in ("judge", "scalar"):
        return None
    help_ = "name one, as in rlhf.reward.model=Qwen3-8B"
    return _shape_at(reward.model, "rlhf.reward.model", help_, reward.kind == "scalar")[1]


def _job(
    recipe: Recipe, stage: str, shape: DecoderConfig, reward: DecoderConfig | None, options: argparse.Namespace
) -> Job:
    """Lengths as told, or the defaults, shortened to what the recipe and the model let through."""
    if recipe.role == "policy":
        return _policy_job(recipe, stage, shape, reward, options)
    longest, most = recipe.rollout.max_completion_tokens, recipe.prompt.max_context_tokens
    judgment = options.judgment_tokens or min(1000, longest)
    if judgment > longest:
        raise ValueError(f"--judgment-tokens {judgment} is a mean above rollout.max_completion_tokens={longest}")
    num_responses = num_read(recipe, stage)
    writes = writes_judgments(recipe, stage)
    usual_prompt = 600 if writes else 600 - INSTRUCTIONS
    usual = usual_prompt + 450 * num_responses
    context = max(7, min(usual, most, shape.max_position_embeddings - judgment * writes))
    prompt = options.prompt_tokens or context * usual_prompt // usual
    response = options.response_tokens or context * 450 // usual
    if prompt + num_responses * response > most:
        told = f"--prompt-tokens {prompt} and {'twice ' * (num_responses == 2)}--response-tokens {response}"
        raise ValueError(f"{told} make more than prompt.max_context_tokens={most}")
    return _job_of(recipe, stage, replace(shape, is_scalar=stage == "bt"), options, prompt, response, judgment)


def _policy_job(
    recipe: Recipe, stage: str, shape: DecoderConfig, reward: DecoderConfig | None, options: argparse.Namespace
) -> Job:
    """As `_job`; a completion is a response here, and a judgment what rlhf.reward draws."""
    longest, of_judge = recipe.rollout.max_completion_tokens, recipe.rlhf.reward.max_completion_tokens
    response = options.response_tokens or (min(450, longest) if recipe.is_rewarded else 450)
    judgment = options.judgment_tokens or min(1000, of_judge)
    if stage == "rlhf" and response > longest:
        raise ValueError(f"--response-tokens {response} is a mean above rollout.max_completion_tokens={longest}")
    if judgment > of_judge:
        raise ValueError(f"--judgment-tokens {judgment} is a mean above rlhf.reward.max_completion_tokens={of_judge}")
    prompt = options.prompt_tokens or max(1, min(600 - INSTRUCTIONS, shape.max_position_embeddings - response))
    return _job_of(recipe, stage, shape, options, prompt, response, judgment, reward)


def _job_of(
    recipe: Recipe, stage: str, shape: DecoderConfig, options: argparse.Namespace, prompt: int, response: int,
    judgment: int, reward: DecoderConfig | None = None,
) -> Job:  # fmt: skip
    return Job(
        recipe=recipe, stage=stage, shape=shape, gpu=GPUS[options.gpu],
        num_gpus=options.gpus or recipe.num_processes or 1, prompt=prompt, response=response, judgment=judgment,
        mfu=options.mfu, bandwidth=options.bandwidth, reward=reward,
    )  # fmt: skip


def _report(job: Job, name: str) -> Iterator[str]:
    yield f"{job.stage} of {name}, N = {job.N:,} parameters, on {job.num_gpus} x {job.gpu.name} (s = {job.shards})"
    responses = f"{'2 x ' * (job.num_read == 2)}R {job.response}"
    judges = writes_judgments(job.recipe, job.stage)
    lengths = f"P {job.prompt} + {responses}{f' + J {job.judgment}' * judges} tokens"
    size = getattr(job.config, f"{job.unit}_per_step")
    yield f"  {size} {job.unit} a step, {f'n = {job.recipe.rollout.num_rollouts}, ' if job.rolls_out else ''}{lengths}"
    if job.recipe.is_rewarded:
        yield f"  {_scored_by(job)}"
    sizes = "V vocabulary, D and F widths of the model and of its feed-forward"
    yield f"  s GPUs share one copy; P prompt, R response, J judgment; T tokens of a micro-batch; {sizes}"
    yield from ("", "memory of one GPU, GiB")
    always = sum(quantity(job) for quantity in ALWAYS)
    for phase, quantities_ in ("always", ALWAYS), *PHASES.items():
        needed = [(quantity, quantity(job) / GIB) for quantity in quantities_]
        total = sum(gib for _, gib in needed) + (0 if phase == "always" else always / GIB)
        if not any(gib for _, gib in needed):
            continue
        yield f"  {phase + (' (with what is there always)' if phase != 'always' else ''):<48}{total:7.1f}"
        yield from (_line(quantity, f"{gib:7.1f}") for quantity, gib in needed if gib)
    if host_bytes(job):
        yield f"  of the host for each GPU{'':24}{host_bytes(job) / GIB:7.1f}"
    phase, num_bytes = peak(job)
    told = f"{num_bytes / GIB:.0f} GiB on each of {job.num_gpus} x {job.gpu.name}, of {job.gpu.memory_gib:g} ({phase})"
    if fits(job):
        yield f"fits: {told}"
    else:
        yield f"does not fit: {told}; {_help(job)}"
    yield from ("", f"seconds of a step, at {job.mfu:.0%} of the products and {job.bandwidth:.0%} of the bandwidth")
    for phase, of_phase in seconds(job).items():
        yield f"  {phase:<48}{sum(of_phase.values()):7.1f}"
        yield from (_line(quantity, f"{s:7.1f}") for quantity, s in of_phase.items() if s)
    total_s = step_s(job)
    yield f"  {'step':<48}{total_s:7.1f}  {job.tokens * job.num_gpus / total_s:,.0f} trained tokens/s"
    if job.rolls_out:
        yield f"  {rows(job):.0f} {'judgments' if judges else 'answers'} decode side by side on one GPU"
        if job.scoring and not job.scoring.shape.is_scalar:
            yield f"  {rows(job.scoring):.0f} judgments of them do, as many as rlhf.reward.kv_gib has room for"
        if judges and job.config.refill_rounds:
            yield f"  what dynamic sampling draws again is not counted: up to {job.config.refill_rounds} rounds a step"
        if judges and job.num_read == 1:  # Table 8 is of pointwise judges
            yield from ("", *_beside_the_paper(job, name))
    yield ""


def _scored_by(job: Job) -> str:
    reward = job.recipe.rlhf.reward
    by = f'scored by rlhf.reward.kind = "{reward.kind}"'
    if (it := job.scoring) is None:
        return f"{by}, which is not counted"
    written = "" if it.shape.is_scalar else f", {reward.votes} x J {job.judgment} tokens for each answer"
    when = "; all of dpo's pairs, once before the first step, which is not counted" * (job.stage == "dpo")
    return f"{by}: {reward.model}, N = {it.N:,}{written}{when}"


def _line(quantity: object, number: str) -> str:
    words = quantity.__name__.replace("_", " ")
    return f"    {words:<40}{number}    {quantity.__doc__.strip().partition(chr(10))[0]}"


def _help(job: Job) -> str:
    """What would bring a job nearer, with what it would then need; the first that make it fit, or else all."""
    model, config, recipe = job.recipe.model, job.config, job.recipe
    longest = job.tree.context + (recipe.rollout.max_completion_tokens if job.rolls_out else job.tree.leaf)
    changes: list[tuple[str, Job]] = []

    def change(text: str, **stage: object) -> None:
        changes.append((text, replace(job, recipe=replace(recipe, **{job.stage: replace(config, **stage)}))))

    def change_model(text: str, **values: object) -> None:
        changes.append((text, replace(job, recipe=replace(recipe, model=replace(model, **values)))))

    if not model.activation_checkpointing:
        change_model("model.activation_checkpointing=true", activation_checkpointing=True)
    if not model.reduce_each_micro_batch:
        change_model("model.reduce_each_micro_batch=true", reduce_each_micro_batch=True)
    if model.dtype == "float32":
        change_model("model.dtype=bfloat16", dtype="bfloat16")
    if job.has_replica and (room := int(room_for_keys_and_values(job) / GIB)) > 0:
        less = replace(recipe, rollout=replace(recipe.rollout, kv_gib=float(room)))
        changes.append((f"rollout.kv_gib={room}", replace(job, recipe=less)))
    if config.tokens_per_micro_batch > longest:
        change(f"{job.stage}.tokens_per_micro_batch={longest}", tokens_per_micro_batch=longest)
    if not config.optim.cpu_offload:
        change(f"{job.stage}.optim.cpu_offload=true", optim=replace(config.optim, cpu_offload=True))
    if job.has_reference:
        change(f"{job.stage}.kl_coef=0", kl_coef=0.0)
    if job.scoring and job.scoring.dtype == "float32":
        rewarded = replace(recipe.rlhf, reward=replace(recipe.rlhf.reward, dtype="bfloat16"))
        changes.append(("rlhf.reward.dtype=bfloat16", replace(job, recipe=replace(recipe, rlhf=rewarded))))
    if job.shards != job.num_gpus:
        change_model("model.shard_size=0", shard_size=0)
    changes.append((f"{2 * job.num_gpus} GPUs", replace(job, num_gpus=2 * job.num_gpus)))
    better = [(text, other) for text, other in changes if peak(other)[1] < peak(job)[1]]
    chosen = [(text, other) for text, other in better if fits(other)] or better
    if not chosen:
        return "nothing that --plan knows would help but a smaller model"
    word = "it would fit with" if fits(chosen[0][1]) else "each of these helps, none alone is enough:"
    return f"{word} " + " or ".join(f"{text} ({peak(other)[1] / GIB:.0f} GiB)" for text, other in chosen)


def _beside_the_paper(job: Job, name: str) -> Iterator[str]:
    yield "n    this estimate, s    Table 8 (16 A100s), s    5 + 30 n"
    for n in sorted({4, 8, 16, job.recipe.rollout.num_rollouts}):
        rollout = replace(job.recipe.rollout, num_rollouts=n)
        estimate = step_s(replace(job, recipe=replace(job.recipe, rollout=rollout)))
        measured = PAPER_S.get((name, n), "-")
        line = paper_line(n) if name == "Qwen3-8B" else "-"
        yield f"{n:<5}{estimate:<20.0f}{measured!s:<25}{line}"
