"""The runs that experiments share: every arm is a training of its own that differs from others in one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patarm_core.judgment import JudgeMode, RubricSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    name: str
    label: str
    stage: str
    start: str = "sft"  # the arm whose model it begins with; "" begins with the recipe's
    rubrics: RubricSetting = "adaptive"
    mode: JudgeMode = "pointwise"
    settings: tuple[str, ...] = ()  # what it differs in
    at_small_scale: tuple[str, ...] = ()  # of the embedded set, where a recipe of real weights has its own

    @property
    def is_scalar(self) -> bool:
        return self.stage == "bt"


# A format is quick to learn for a judge that knows another one; to choose between two takes longer.
_REFORMED = ("sft.steps=80", "sft.dev_every=80", "sft.optim.lr=1e-3", "sft.optim.warmup_steps=10")
_PAIRED = ("sft.steps=250", "sft.dev_every=250", "sft.optim.lr=1e-3", "sft.optim.warmup_steps=10")
_UNWATCHED = ("grpo.dev_every=0",)  # where no curve is shown
_LONGER = ("prompt.max_context_tokens=384", "rollout.max_completion_tokens=160")
NOISE = (20, 50, 100)

ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="sft", label="SFT only", stage="sft", start=""),
        Arm(name="sft_primary", label="SFT only, primary", stage="sft", rubrics="primary", at_small_scale=_REFORMED),
        Arm(name="sft_generated", label="SFT only, generated", stage="sft", rubrics="generated",
            at_small_scale=_REFORMED),
        Arm(name="sft_pair", label="SFT only, pairwise", stage="sft", mode="pairwise",
            at_small_scale=(*_PAIRED, *_LONGER)),
        Arm(name="patarm", label="PaTaRM", stage="grpo", settings=("grpo.margin.kind=graded",)),
        Arm(name="constant", label="PaTaRM, f constant", stage="grpo", settings=("grpo.margin.kind=constant",)),
        Arm(name="primary", label="only primary", stage="grpo", start="sft_primary", rubrics="primary",
            at_small_scale=_UNWATCHED),
        Arm(name="generated", label="only generated", stage="grpo", start="sft_generated", rubrics="generated",
            at_small_scale=_UNWATCHED),
        Arm(name="pair", label="PaTaRM, pairwise", stage="grpo", start="sft_pair", mode="pairwise",
            at_small_scale=(*_LONGER, *_UNWATCHED)),
        Arm(name="bt", label="BTRM", stage="bt"),
        *(Arm(name=f"patarm_noise{p}", label=f"PaTaRM, {p} % flipped", stage="grpo",
              settings=(f"data.label_noise={p / 100}",), at_small_scale=_UNWATCHED) for p in NOISE),
        *(Arm(name=f"bt_noise{p}", label=f"BTRM, {p} % flipped", stage="bt",
              settings=(f"data.label_noise={p / 100}",)) for p in NOISE),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What an experiment reads: arms measured on the held-out pairs with so many judgments, and on RM-Bench's form."""

    held_out: dict[str, int]
    rm_bench: tuple[str, ...] = ()


_NOISY = {f"patarm_noise{p}": 8 for p in NOISE} | {f"bt_noise{p}": 1 for p in NOISE}
NEEDS = {
    "table1": Needs(held_out={"sft": 16, "patarm": 16, "bt": 1}, rm_bench=("sft", "patarm", "bt")),
    "table3": Needs(held_out={"patarm": 16, "sft_pair": 8, "pair": 8}, rm_bench=("patarm", "pair")),
    "table4": Needs(
        held_out={"sft": 16, "sft_primary": 8, "sft_generated": 8, "patarm": 16, "primary": 8, "generated": 8}
    ),
    "figure3": Needs(held_out={"sft": 16, "patarm": 16, "constant": 8}),
    "figure4": Needs(held_out={"sft": 16, "patarm": 16, "bt": 1} | _NOISY),
    "figure5": Needs(held_out={"sft": 16, "patarm": 16}),
    "table8": Needs(held_out={}),  # they read what other commands measured
    "table9": Needs(held_out={}),
}


def with_starts(names: list[str]) -> list[str]:
    """The arms and those that they begin with, each after its start."""
    found: dict[str, None] = {}
    for name in names:
        chain = [name]
        while start := ARMS[chain[-1]].start:
            chain.append(start)
        found |= dict.fromkeys(reversed(chain))
    return list(found)


def needs_of(experiment: str, without: Sequence[str] = ()) -> Needs:
    """
    Args:
        without: arms that are left out; what compares them is not measured.

    Raises:
        ValueError: no such arm, or one that the others are compared with.
    """
    can_go = [name for name in ARMS if name not in ("sft", "patarm", "constant")]
    if unknown := [name for name in without if name not in can_go]:
        raise ValueError(f"--without {unknown[0]}: expected some of {', '.join(can_go)}")
    needs = NEEDS[experiment]
    return Needs(
        held_out={arm: n for arm, n in needs.held_out.items() if arm not in without},
        rm_bench=tuple(arm for arm in needs.rm_bench if arm not in without),
    )


def joined_needs(every: Sequence[Needs]) -> Needs:
    """Of several experiments at once; an arm that two of them measure is measured once, with the most judgments."""
    held_out: dict[str, int] = {}
    for needs in every:
        for arm, n in needs.held_out.items():
            held_out[arm] = max(n, held_out.get(arm, 0))
    rm_bench = dict.fromkeys(arm for needs in every for arm in needs.rm_bench)
    return Needs(held_out=held_out, rm_bench=tuple(rm_bench))
