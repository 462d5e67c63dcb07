"""The recipe of the data pipeline (app. C). What the paper leaves open is a key here, with the choices there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from patarm_core.curation.correctness import Correctness, Definition, Ties, Unit, Unparsed
from patarm_core.curation.margin import Keep
from patarm_core.curation.sources import SCHEMAS
from rollout.contexts import PromptConfig
from trainer.stage_config import check, is_at_least

SOURCES = (*SCHEMAS, "embedded")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """Who judges. What belongs to another kind is passed over."""

    # "model": a Hugging Face directory on our engine; "endpoint": an OpenAI-compatible API; "recorded": judgments of a
    # file (trainer/curation/recorded.py); "embedded": the programmatic judge of the embedded set, for its pairs alone
    kind: Literal["model", "endpoint", "recorded", "embedded"] = "model"
    model: str = ""  # a directory; endpoint: the model's name there
    recorded: str = ""  # the file
    url: str = ""  # endpoint: such as http://127.0.0.1:8000/v1
    api_key_env: str = ""
    concurrency: int = 8
    judge: str = "patarm"  # how it is asked: one of eval/judges/spec.py; this one where judgments are to be imitated
    prompt: PromptConfig = field(default_factory=PromptConfig)  # (i) template "full" (figure 11) or "bare" (released)
    temperature: float = 1.0  # (e) the paper gives none
    max_completion_tokens: int = 4096
    well_formed: bool = False  # model: draw only tokens that keep a judgment readable
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_rows: int = 256

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "max_completion_tokens", "concurrency", "max_rows")
        check(self, lambda value: 0 <= value < math.inf, "at least 0", "temperature")

    def check_named(self, key: str) -> None:
        """ValueError if the kind lacks what names the judge."""
        needed = {"model": ("model",), "endpoint": ("url", "model"), "recorded": ("recorded",), "embedded": ()}
        for field_name in needed[self.kind]:
            if not getattr(self, field_name):
                raise ValueError(f'{key}.{field_name}: missing; {key}.kind = "{self.kind}" needs one')


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadConfig:
    drop_sources: tuple[str, ...] = ("magpie_ultra",)  # app. C, after RM-R1
    # (g) turns of a conversation: kept, as the judge's template then lays them out; the last user message alone; or
    # such pairs are dropped
    multi_turn: Literal["keep", "last_turn", "drop"] = "keep"
    max_prompt_chars: int = 0  # (h) longer prompts are dropped; 0: none
    # (j) pairs that are there already: the same texts, or the same but for case, white space and punctuation. A pair
    # that is there with its sides exchanged is dropped with either; "keep" drops nothing.
    duplicates: Literal["exact", "normalised", "keep"] = "exact"

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "max_prompt_chars")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig:
    # (d) of pairs whose row or schema names no task: "source" takes that of `of_source`, or the fallback; "judge" asks
    # (the paper asks Qwen2.5-32B-Instruct about Skywork's pairs)
    how: Literal["source", "judge"] = "source"
    tasks: tuple[str, ...] = ("math", "code", "chat")  # that are asked about; the paper leaves safety out at this stage
    # A source's task, over all else. The paper does not say if wildguard is judged as safety: { wildguard = "safety" }
    of_source: dict[str, str] = field(default_factory=dict)
    fallback: str = "chat"  # where there is no readable answer
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(temperature=0.0, max_completion_tokens=256))

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; name those that a pair may be of")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContaminationConfig:
    # (j) benchmarks whose prompts no pair may have: name of the benchmark = file or folder in its published layout
    against: dict[str, str] = field(default_factory=dict)
    ngram: int = 13  # words
    min_share: float = 0.0  # of a benchmark prompt's n-grams that a pair's prompt must have; 0: one is enough

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "ngram")
        check(self, lambda share: 0 <= share <= 1, "in [0, 1]", "min_share")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutsConfig:
    """Rejection sampling: which pairs are neither too easy nor too hard, for RL."""

    num_rollouts: int = 8
    # (a), (b): patarm_core/curation/correctness.py
    definition: Definition = "index"
    ties: Ties = "wrong"
    unparsed: Unparsed = "wrong"
    unit: Unit = "pair"
    low: str = "1/8"  # inclusive
    high: str = "6/8"
    # (c) what is left for SFT: all that is not kept for RL, or only the easy ones (the hard may be mislabelled)
    remaining: Literal["all", "easy"] = "all"
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "num_rollouts")
        for name in ("low", "high"):
            _fraction(name, getattr(self, name))
        if _fraction("low", self.low) > _fraction("high", self.high):
            raise ValueError(f"low={self.low} is above high={self.high}")

    def rule(self) -> Correctness:
        return Correctness(
            definition=self.definition, ties=self.ties, unparsed=self.unparsed, unit=self.unit,
            low=Fraction(self.low), high=Fraction(self.high),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SftDataConfig:
    """Judgments to imitate, by a stronger judge."""

    samples: int = 1  # (e) of each response
    keep: Keep = "first"  # (e) patarm_core/curation/margin.py
    margin: float = 2.0  # chosen - rejected must be above it
    # (f) what is imitated: the judgment as it was written, or from <think> on
    target: Literal["whole", "from_think"] = "whole"
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "samples")
        check(self, lambda value: 0 <= value < 10, "in [0, 10)", "margin")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseConfig:
    """Choices to imitate. The judge is asked about pairs of the pointwise set alone, which is their intersection."""

    samples: int = 1  # the first right one is kept; 0: no pairwise set
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "samples")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """By prompt: no prompt is in two of train, dev and held out."""

    dev: float = 0.0  # share of the prompts; the paper splits nothing off
    held_out: float = 0.0
    # "pair": a pair is in RL or in SFT (app. C); "prompt": so is a prompt, and pairs of SFT give way
    disjoint: Literal["pair", "prompt"] = "pair"

    def __post_init__(self) -> None:
        check(self, lambda share: 0 <= share <= 1, "in [0, 1]", "dev", "held_out")
        if self.dev + self.held_out > 1:
            raise ValueError(f"dev={self.dev} and held_out={self.held_out} make more than all prompts")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateRecipe:
    """`python trainer/main.py curate RECIPE.toml [key=value …]`."""

    out: str  # the run's folder; a number is added when it exists, unless the run resumes
    resume: bool = False
    seed: int = 0
    # name = "SCHEMA:FILE or FOLDER" (patarm_core/curation/sources.py), or "embedded:NUMBER OF PAIRS"
    sources: dict[str, str] = field(default_factory=dict)
    rubrics_file: str = ""  # of the tasks that there are, also for judges that name no other; empty: the paper's
    read: ReadConfig = ReadConfig()
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    sft: SftDataConfig = field(default_factory=SftDataConfig)
    pairwise: PairwiseConfig = field(default_factory=PairwiseConfig)
    split: SplitConfig = SplitConfig()
    # (i) of the released layout, whose rows hold what the judge reads
    template: Literal["full", "bare"] = "full"
    shard_rows: int = 10_000  # of a file of the output

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "shard_rows")
        if not self.out:
            raise ValueError("out is empty; it names the run's folder")
        if not self.sources:
            raise ValueError('sources is empty; such as [sources] mine = "plain:pairs.jsonl"')
        for name, source in self.sources.items():
            self._check_source(name, source)
        is_embedded = all(source.startswith("embedded:") for source in self.sources.values())
        for key, judge in self.judges().items():
            judge.check_named(key)
            is_imitated = key in ("sft.judge", "pairwise.judge") and judge.kind in ("model", "endpoint")
            if is_imitated and judge.judge != "patarm":
                raise ValueError(f'{key}.judge = "{judge.judge}": expected "patarm", whose format is to be imitated')
            if judge.kind == "embedded" and (key == "classify.judge" or not is_embedded):
                raise ValueError(f'{key}.kind = "embedded": judges pairs of the source "embedded:NUMBER" alone')

    def _check_source(self, name: str, source: str) -> None:
        schema, mark, where = source.partition(":")
        if schema not in SOURCES or not mark or not where:
            raise ValueError(f'sources.{name}: is "{source}"; expected "SCHEMA:PATH" with one of {", ".join(SOURCES)}')
        if schema == "embedded" and not (where.isascii() and where.isdigit() and int(where)):
            raise ValueError(f'sources.{name}: is "{source}"; expected a number of pairs, such as "embedded:100"')

    def judges(self) -> dict[str, JudgeConfig]:
        """Those that will be asked, by key, with the run's rubrics where they name none."""
        found = {"rollouts.judge": self.rollouts.judge, "sft.judge": self.sft.judge}
        if self.classify.how == "judge":
            found["classify.judge"] = self.classify.judge
        if self.pairwise.samples:
            found["pairwise.judge"] = self.pairwise.judge
        return {
            key: judge if judge.prompt.rubrics_file else replace(
                judge, prompt=replace(judge.prompt, rubrics_file=self.rubrics_file)
            )
            for key, judge in found.items()
        }  # fmt: skip

    def files(self) -> dict[str, Path]:
        """All that is read, by key."""
        found = {f"sources.{name}": source.partition(":")[2] for name, source in self.sources.items()
                 if not source.startswith("embedded:")}  # fmt: skip
        found |= {f"contamination.against.{name}": path for name, path in self.contamination.against.items()}
        found |= {f"{key}.recorded": j.recorded for key, j in self.judges().items() if j.kind == "recorded"}
        found |= {"rubrics_file": self.rubrics_file} if self.rubrics_file else {}
        return {key: Path(path) for key, path in found.items()}


def _fraction(name: str, text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'{name}="{text}" must be a fraction, such as "1/8"') from None
    if not 0 <= value <= 1:
        raise ValueError(f'{name}="{text}" must lie in [0, 1]')
    return value
