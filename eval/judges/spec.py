"""The options that name a judge, and the judge that they name."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.judges.baselines.deepseek_grm import DEEPSEEK_GRM
from eval.judges.baselines.judgelrm import JUDGELRM
from eval.judges.baselines.mt_bench import MT_BENCH
from eval.judges.baselines.r3 import R3
from eval.judges.baselines.rewardanything import REWARDANYTHING
from eval.judges.baselines.rm_r1 import RM_R1, RM_R1_DISTILLED
from eval.judges.baselines.rrm import RRM
from eval.judges.form import Form, Sampling, Template
from eval.judges.patarm import patarm_form
from patarm_core.fields import FieldError, Fields, read_object
from patarm_core.judgment import RubricSetting
from rollout.contexts import load_rubrics, read_text
from rollout.options import add_engine_options, add_form_options, add_seed_option, model_files

if TYPE_CHECKING:
    from eval.judges.endpoint import EndpointJudge
    from eval.judges.judge import Judge
    from eval.judges.local import EngineJudge

BASELINES = {
    form.name: form
    for form in (DEEPSEEK_GRM, JUDGELRM, RRM, RM_R1, RM_R1_DISTILLED, R3, REWARDANYTHING, MT_BENCH)
}  # fmt: skip
JUDGES = ("patarm", "general", "scalar", *BASELINES)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("judge", "a model on disk, or an OpenAI-compatible endpoint")
    what.add_argument("--model", default="", help="a Hugging Face directory")
    what.add_argument("--endpoint", default="", help="such as https://api.openai.com/v1")
    what.add_argument("--judge", default="", choices=("", *JUDGES), help="default: patarm; of an endpoint general")
    what.add_argument("--mode", default="", choices=("", "pointwise", "pairwise"), help="default: the judge's first")
    what.add_argument(
        "--order", default="drawn", choices=("drawn", "both", "given"), help="pairwise: which response is read first"
    )
    add_form_options(what)
    what.add_argument("--prompt-file", default="", help="TOML: pointwise, pairwise, system, opening of a baseline")
    drawing = parser.add_argument_group("judgments", "defaults are the judge's own")
    drawing.add_argument("--temperature", type=float, help="0: greedy")
    drawing.add_argument("--top-p", type=float, help="the share of probability that is drawn from")
    drawing.add_argument("--top-k", type=int, help="the number of tokens that are drawn from")
    drawing.add_argument("--max-completion-tokens", type=int, help="of a judgment")
    add_seed_option(drawing)
    here = parser.add_argument_group("a model on disk")
    here.add_argument("--well-formed", action="store_true", help="patarm: draw only tokens that keep the format")
    add_engine_options(here)
    here.add_argument("--trust-remote-code", action="store_true", help="scalar: run code that the directory holds")
    add_endpoint_options(parser)


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """But for --endpoint, which says that there is one."""
    there = parser.add_argument_group("an endpoint")
    there.add_argument("--endpoint-model", default="", help="its name there")
    there.add_argument("--api-key-env", default="", help="the environment variable that holds the key")
    there.add_argument("--concurrency", type=int, default=8, help="requests that are open at a time")
    there.add_argument("--requests-per-minute", type=float, help="at most; default: as fast as they are answered")
    there.add_argument("--timeout", type=float, default=120.0, help="seconds for one reply")
    there.add_argument("--max-tries", type=int, default=6, help="of one request")
    there.add_argument("--price-in", type=float, help="of a million tokens that are read, for the estimate")
    there.add_argument("--price-out", type=float, help="of a million tokens that are written")
    there.add_argument("--endpoint-extra", default="", help="JSON: more fields of every request; null leaves one out")


def open_judge(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Judge:
    """
    Raises:
        ValueError: one line; the options contradict one another, or what they name cannot be opened.
    """
    if bool(options.model) == bool(options.endpoint):
        raise ValueError("name one judge: --model DIR, or --endpoint URL with --endpoint-model NAME")
    name = options.judge or ("general" if options.endpoint else "patarm")
    if name == "scalar":
        return _scalar(options)
    if options.prompt_file and name not in BASELINES:
        raise ValueError(f"--prompt-file {options.prompt_file}: is for a baseline, not for the judge {name}")
    form = judge_form(name, options.rubrics, options.template, options.rubrics_file)
    form = _with_prompts(form, options.prompt_file) if options.prompt_file else form
    mode = options.mode or next(iter(form.asks))
    form.check(mode)
    sampling = _sampling(form.sampling, options)
    if not options.endpoint:
        return _local(form, mode, sampling, options)
    return open_named_endpoint(form, mode, sampling, options, environment)


def judge_form(name: str, rubrics: RubricSetting = "adaptive", template: str = "full", rubrics_file: str = "") -> Form:
    """How the generative judge of that name is asked; baselines pass over rubrics and template.

    Raises:
        ValueError: one line; there is no such judge, or no such file of rubrics.
    """
    if name in BASELINES:
        return BASELINES[name]
    if name not in ("patarm", "general"):
        raise ValueError(f"{name!r} is no judge that writes; expected one of patarm, general, {', '.join(BASELINES)}")
    return patarm_form(load_rubrics(rubrics_file), rubrics, "general" if name == "general" else template)


def _with_prompts(form: Form, file: str) -> Form:
    """A baseline with templates of the user's, such as those that its authors publish."""
    try:
        fields = Fields(tomllib.loads(read_text(file)))
        fields.only({"system", "opening", *form.asks})
        given = {mode: fields.text(mode) for mode in form.asks if mode in fields.data}
        system, opening = fields.text("system", ""), fields.text("opening", form.opening)
    except (tomllib.TOMLDecodeError, FieldError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not given:
        raise ValueError(f"{file}: has no template; expected {' or '.join(form.asks)}")
    for mode, user in given.items():
        for place in ["prompt", *(["response"] if mode == "pointwise" else ["response_a", "response_b"])]:
            if f"{{{place}}}" not in user:
                raise ValueError(f"{file}: {mode}: has no {{{place}}}, where a text is put")
    reads = {mode: form.reads[mode] for mode in given}
    asks = {mode: Template(user, system) for mode, user in given.items()}
    return replace(form, asks=asks, reads=reads, opening=opening)


def _sampling(default: Sampling, options: argparse.Namespace) -> Sampling:
    given = {
        "temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k,
        "max_tokens": options.max_completion_tokens,
    }  # fmt: skip
    if options.max_completion_tokens is not None and options.max_completion_tokens < 1:
        raise ValueError(f"--max-completion-tokens must be at least 1, got {options.max_completion_tokens}")
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _local(form: Form, mode: str, sampling: Sampling, options: argparse.Namespace) -> Judge:
    if options.well_formed and form.name != "patarm":
        raise ValueError(f"--well-formed: is for the format of the judge patarm, not for {form.name}")
    judge = open_local(form, mode, sampling, options, options.model)
    if not options.well_formed:
        return judge
    from rollout.grammar import JudgmentGrammar

    kind, engine = "score" if mode == "pointwise" else "choice", judge.engine
    grammar = JudgmentGrammar(engine.tokenizer, engine.decoder.config.vocab_size, options.rubrics, kind)
    return replace(judge, grammar=grammar)


def open_local(form: Form, mode: str, sampling: Sampling, options: argparse.Namespace, model: str) -> EngineJudge:
    """Any form on our engine, with the weights of the directory `model`; errors as in `open_judge`."""
    import torch

    from eval.judges.local import EngineJudge
    from rollout.engine import Engine, EngineConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = EngineConfig(max_rows=options.max_rows)
    return EngineJudge(
        engine=Engine.from_pretrained(model, getattr(torch, options.dtype), device, config), form=form, mode=mode,
        sampling=sampling, seed=options.seed, model=weights_name(model, options.dtype),
        name=f"{Path(model).resolve().name} ({form.name}, {mode})", order=options.order,
        max_context_tokens=options.max_context_tokens,
    )  # fmt: skip


def weights_name(model: str, dtype: str) -> str:
    """Stands for the weights of a directory: its files' names, sizes and times, and the type they are computed in."""
    files = json.dumps([model_files(model), dtype])
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def _scalar(options: argparse.Namespace) -> Judge:
    if options.endpoint:
        raise ValueError("--judge scalar: reads the weights themselves; name --model DIR")
    if options.mode == "pairwise":
        raise ValueError("--judge scalar: scores one response at a time; --mode pointwise is right")
    from eval.judges.scalar import open_scalar

    return open_scalar(
        options.model, weights_name(options.model, options.dtype), options.dtype, options.trust_remote_code
    )


def open_named_endpoint(
    form: Form, mode: str, sampling: Sampling, options: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> EndpointJudge:
    """Any form at the endpoint that the options name; errors as in `open_judge`."""
    from eval.judges.endpoint import Price

    if not options.endpoint_model:
        raise ValueError("--endpoint-model: missing; name the model as the endpoint knows it")
    for name, least in (("max_tries", 1), ("timeout", 0.001)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    try:
        api_key = read_api_key(options.api_key_env, environment)
    except ValueError as error:
        raise ValueError(f"--api-key-env {error}") from None
    try:
        extra = read_object(options.endpoint_extra) if options.endpoint_extra else {}
    except ValueError as error:
        raise ValueError(f"--endpoint-extra: {error}") from None
    return open_endpoint(
        form, mode, sampling, url=options.endpoint, model=options.endpoint_model, api_key=api_key, seed=options.seed,
        order=options.order, concurrency=options.concurrency, requests_per_minute=options.requests_per_minute,
        timeout_s=options.timeout, max_tries=options.max_tries, extra=extra,
        price=Price(tokens_in=options.price_in, tokens_out=options.price_out),
    )  # fmt: skip


def read_api_key(variable: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key that an environment variable holds; empty where none is named. ValueError if it cannot be one."""
    if not variable:
        return ""
    key = environment.get(variable, "").strip()
    if not key or not key.isascii() or len(key.split()) != 1:
        raise ValueError(f"{variable}: expected a variable that holds one word of ASCII")
    return key


def open_endpoint(
    form: Form,
    mode: str,
    sampling: Sampling,
    *,
    url: str,
    model: str,
    api_key: str = "",
    requests_per_minute: float | None = None,
    timeout_s: float = 120.0,
    max_tries: int = 6,
    **settings: object,
) -> EndpointJudge:
    """Any form at an OpenAI-compatible endpoint.

    Args:
        url: of the API, such as https://api.openai.com/v1.
        model: its name there.
        timeout_s: for one reply.
        max_tries: of one request.
        settings: further fields of EndpointJudge.

    Raises:
        ValueError: one line; the URL is none, or a number is out of its range.
    """
    from eval.judges.chat_client import ChatClient, Retries
    from eval.judges.endpoint import EndpointJudge
    from eval.judges.rate_limit import RateLimit

    client = ChatClient(
        url, api_key=api_key, timeout_s=timeout_s, retries=Retries(max_tries=max_tries),
        limit=RateLimit(requests_per_minute),
    )  # fmt: skip
    return EndpointJudge(
        client=client, form=form, mode=mode, sampling=sampling, model=model, name=f"{model} ({form.name}, {mode})",
        requests_per_minute=requests_per_minute, **settings,
    )  # fmt: skip
