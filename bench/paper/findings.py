"""What the paper says of its tables and figures, each as a number per seed that is positive where it holds here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.paper.verdict import Word, estimate, verdict

Facts = dict
Number = Callable[[Facts], float | None]


@dataclass(frozen=True, slots=True)
class Finding:
    claim: str
    published: str
    number: Number  # of one seed, in `unit`; None: not measured
    unit: str = "points"
    is_ours: bool = False  # a control that the paper does not have


@dataclass(frozen=True, slots=True)
class Judged:
    finding: Finding
    values: list[float]
    word: Word | None  # None: nothing was measured

    def line(self) -> str:
        """As a line of text."""
        what = f"{'control of ours: ' if self.finding.is_ours else ''}{self.finding.claim} ({self.finding.published})"
        if self.word is None:
            return f"not measured: {what}"
        found = estimate(self.values)
        spread = (
            f" ± {found.half_width:.1f} {self.finding.unit}"
            if len(self.values) > 1
            else f" {self.finding.unit}, one seed"
        )
        return f"{self.word}: {what}: {found.mean:+.1f}{spread}"


def judge(findings: Sequence[Finding], facts: Sequence[Facts]) -> list[Judged]:
    judged = []
    for finding in findings:
        values = [value for of_seed in facts if (value := finding.number(of_seed)) is not None]
        judged.append(Judged(finding, values, verdict(values) if values else None))
    return judged


def held_out(arm: str, votes: int, key: str = "overall") -> Number:
    """Percent."""
    return percent(lambda facts: facts["held_out"].get(arm, {}).get(str(votes), {}).get(key))


def rm_bench(arm: str, votes: int, key: str = "Overall") -> Number:
    return percent(lambda facts: facts["rm_bench"].get(arm, {}).get(str(votes), {}).get(key))


def minus(first: Number, second: Number) -> Number:
    def difference(facts: Facts) -> float | None:
        a, b = first(facts), second(facts)
        return None if a is None or b is None else a - b

    return difference


def fixed(value: float) -> Number:
    return lambda _: value


def percent(share: Number) -> Number:
    return lambda facts: None if (value := share(facts)) is None else 100 * value


def on_curve(arm: str, key: str) -> Callable[[Facts], dict[int, float]]:
    """Step -> what was measured there; a seed may lack a step at which no pair had a score."""
    return lambda facts: dict(zip((curve := facts["curves"].get(arm, {})).get("step", []), curve.get(key, [])))


def at_step(arm: str, key: str, step: int) -> Number:
    return lambda facts: on_curve(arm, key)(facts).get(step)


def _curve(arm: str, key: str, of: Callable[[dict[int, float]], float]) -> Number:
    """None where the curve has no step 0, or nothing else."""
    return lambda facts: of(values) if 0 in (values := on_curve(arm, key)(facts)) and len(values) > 1 else None


def _mean_after_start(values: dict[int, float]) -> float:
    return 100 * fmean(value for step, value in values.items() if step)


def _entropy_left(arm: str) -> Number:
    """Percent of what there was in the first steps."""
    return lambda facts: 100 * ends[1] / ends[0] if (ends := facts["entropy"].get(arm)) and ends[0] else None


def _table1(votes: int) -> list[Finding]:
    at = f"voting@{votes}"
    patarm, sft = (held_out(arm, votes) for arm in ("patarm", "sft"))
    bt, rm_bt = held_out("bt", 1), rm_bench("bt", 1)
    rm_patarm, rm_sft = (rm_bench(arm, votes) for arm in ("patarm", "sft"))
    return [
        Finding(f"RL lifts the pointwise judge above SFT alone on RewardBench, {at}", "78.3 → 84.2, 80.5 → 86.3",
                minus(patarm, sft)),
        Finding(f"and on RM-Bench, {at}", "66.4 → 74.5, 67.2 → 76.1", minus(rm_patarm, rm_sft)),
        Finding(f"BTRM is above pointwise PaTaRM on RewardBench, {at}", "86.3 : 84.2, 89.9 : 86.3", minus(bt, patarm)),
        Finding(f"PaTaRM is above BTRM on RM-Bench, {at}", "74.5 : 70.3, 76.1 : 70.9", minus(rm_patarm, rm_bt)),
        Finding(f"and most where the wrong response has the richer style, Hard, {at}", "64.6 : 56.2, 65.4 : 56.2",
                minus(rm_bench("patarm", votes, "Hard"), rm_bench("bt", 1, "Hard"))),
    ]  # fmt: skip


_CLEAN, _NOISY = held_out("patarm", 8), held_out("patarm_noise50", 8)
_GRADED, _CONSTANT = (_curve(arm, "accuracy", _mean_after_start) for arm in ("patarm", "constant"))
_BT_CLEAN, _BT_NOISY = held_out("bt", 1), held_out("bt_noise50", 1)
_START = held_out("sft", 8)

FINDINGS: dict[str, list[Finding]] = {
    "table1": [*_table1(1), *_table1(8)],
    "table3": [
        Finding("the pairwise judge is above the pointwise one on RewardBench, voting@1", "87.9 : 84.2, 88.6 : 86.3",
                minus(held_out("pair", 1), held_out("patarm", 1))),
        Finding("the same, voting@8", "87.9 : 84.2, 88.6 : 86.3", minus(held_out("pair", 8), held_out("patarm", 8))),
        Finding("RL lifts the pairwise judge above SFT alone, voting@8", "no such row",
                minus(held_out("pair", 8), held_out("sft_pair", 8)), is_ours=True),
    ],
    "table4": [
        Finding("pointwise, both kinds of rubrics are above only primary, voting@8", "80.3 : 78.6",
                minus(held_out("patarm", 8), held_out("primary", 8))),
        Finding("and above only generated, voting@8", "80.3 : 80.2",
                minus(held_out("patarm", 8), held_out("generated", 8))),
        Finding("with only primary the entropy decays faster", "text",
                minus(_entropy_left("patarm"), _entropy_left("primary")), "percent of the start's entropy"),
    ],
    "figure3": [
        Finding("f graded is above f constant in the end, voting@8", "text",
                minus(held_out("patarm", 8), held_out("constant", 8))),
        Finding("and throughout training, mean over dev measurements", "text",
                minus(_GRADED, _CONSTANT)),
        Finding("the margin between chosen and rejected decreases as training goes on", "text",
                _curve("patarm", "margin", lambda values: values[0] - values[max(values)]), "points of score"),
        Finding("f graded keeps a larger margin than f constant, voting@8", "text",
                lambda facts: _margin_gap(facts), "points of score"),
    ],
    "figure4": [
        Finding("at 50 % flipped labels PaTaRM loses at most 4 points", "81.3, called a drop of 4.0 %",
                minus(fixed(4), minus(_CLEAN, _NOISY))),
        Finding("at 50 % BTRM is near chance, at most 55", "50.9",
                minus(fixed(55), held_out("bt_noise50", 1, "ties_half"))),
        Finding("at 50 % PaTaRM loses less than BTRM", "4.0 : 35.4",
                minus(minus(_BT_CLEAN, _BT_NOISY), minus(_CLEAN, _NOISY))),
        Finding("at 20 % PaTaRM rebounds above the clean run", "text, slight",
                minus(held_out("patarm_noise20", 8), _CLEAN)),
        Finding("at 20 % BTRM rebounds above the clean run", "text, slight",
                minus(held_out("bt_noise20", 1), _BT_CLEAN)),
        Finding("at 100 % PaTaRM collapses below chance", "text",
                minus(fixed(50), held_out("patarm_noise100", 8, "ties_half"))),
        Finding("at 100 % BTRM collapses below chance", "text",
                minus(fixed(50), held_out("bt_noise100", 1, "ties_half"))),
        Finding("without noise BTRM is above chance, so that there is something to lose", "not given",
                minus(held_out("bt", 1, "ties_half"), fixed(50)), is_ours=True),
        Finding("at 50 % PaTaRM is still above its own step 0", "not given", minus(_NOISY, _START), is_ours=True),
        Finding("without noise PaTaRM is above its step 0 by more than 4 points, so that flat is not idle", "not given",
                minus(minus(_CLEAN, _START), fixed(4)), is_ours=True),
    ],
    "figure5": [
        Finding("average voting gains from 1 to 8", "text", minus(held_out("patarm", 8), held_out("patarm", 1))),
        Finding("majority voting gains from 1 to 8", "text",
                minus(held_out("patarm", 8, "majority"), held_out("patarm", 1, "majority"))),
        Finding("average voting gains more than majority voting, 1 to 8", "text",
                minus(held_out("patarm", 8), held_out("patarm", 8, "majority"))),
    ],
}  # fmt: skip


def _margin_gap(facts: Facts) -> float | None:
    of_arm = [facts["held_out"].get(arm, {}).get("8", {}).get("margin") for arm in ("patarm", "constant")]
    return None if None in of_arm else of_arm[0] - of_arm[1]
