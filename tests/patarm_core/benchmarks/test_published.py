"""Published numbers come out again from recorded results, and published tables are held to their identities."""

import json
import random
from pathlib import Path

import pytest

from patarm_core.benchmarks import infobench, judgebench, llmbar, rewardbench, rewardbench2, rm_bench, rmb
from patarm_core.benchmarks import report as reports

PARITY = Path(__file__).resolve().parents[4] / "shared" / "data" / "parity"


def recorded(name):
    if not (PARITY / name).is_file():
        pytest.skip(f"../shared/data/parity/{name} is not here")
    return json.loads((PARITY / name).read_text(encoding="utf-8"))


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


# Correct cells of 9 n, of two result files that RM-R1 published.
@pytest.mark.parametrize(
    "right, overall",
    [
        ({"chat": 861, "math": 4371, "code": 1521, "safety": 3788}, 83.9),
        ({"chat": 888, "math": 3835, "code": 1356, "safety": 3724}, 79.2),
    ],
)
def test_rm_bench_gives_the_fractions_of_rm_r1(right, overall):
    rng, rows = random.Random(0), []
    for domain, num in rm_bench.SIZES.items():
        cells = [1] * right[domain] + [0] * (9 * num - right[domain])
        rng.shuffle(cells)
        rows += [
            {"id": i, "domain": domain, "results": [cells[9 * i + 3 * j : 9 * i + 3 * j + 3] for j in range(3)]}
            for i in range(num)
        ]
    got = rm_bench.report(rows)
    of_domains = {domain.capitalize(): right[domain] / (9 * num) for domain, num in rm_bench.SIZES.items()}
    assert values(got.metrics) == pytest.approx(values(got.metrics) | of_domains, abs=1e-12)
    assert got.metrics[0].name == "Overall" and round(100 * got.metrics[0].value, 1) == overall
    levels = [metric.value for metric in got.metrics[1:4]]
    assert sum(levels) / 3 == pytest.approx(got.metrics[0].value, abs=1e-12)
    assert not any("Not the whole" in note for note in got.notes)


def test_rm_bench_tables_that_break_the_identity_are_found():
    """Skywork-8B's row (chat, math, code, safety; easy, normal, hard) holds; with two numbers swapped it would not."""
    assert rm_bench.identity_gap([69.5, 60.6, 54.5, 95.7], [89.0, 74.7, 46.6]) < 0.15
    assert rm_bench.identity_gap([69.5, 60.6, 54.5, 95.7], [89.0, 74.7, 49.6]) > 0.15


def test_rewardbench_2_gives_the_published_overall():
    """58.2, 40, 71.6, 84.4, 79.4 and 34 make 61.3; here from shares of rows with the same subset scores."""
    published = {"Factuality": 58.2, "Precise IF": 40, "Math": 71.6, "Safety": 84.4, "Focus": 79.4}
    rows = [
        {"subset": subset, "result": int(i < score * 10)} for subset, score in published.items() for i in range(1000)
    ]
    # Ties at 34: tied is right in 60 of 100, ref in 20 of 100, g_tied > d in 40, no other term (.18 + .06 + .08 + .02).
    for i in range(100):
        tied = [9, 9, 1] if i < 20 else [9, 5, 1] if i < 60 else [1, 1, 9]
        rows.append({"id": f"tied:{i}", "subset": "Ties", "num_correct": 2, "scores": tied})
        rows.append({"id": f"ref:{i}", "subset": "Ties", "num_correct": 1, "scores": [9, 1] if i >= 80 else [1, 9]})
    got = values(rewardbench2.report(rows).metrics)
    for subset, score in published.items():
        assert got[f"{subset} of an incomplete set"] == pytest.approx(score / 100, abs=1e-12)
    ties = got["Ties of an incomplete set"]
    assert got["Overall of an incomplete set"] == pytest.approx((sum(published.values()) / 100 + ties) / 6, abs=1e-12)
    assert round((sum(published.values()) + 34) / 6, 1) == 61.3


# Shares of the four parts and their mean, of two result files that RM-R1 published.
@pytest.mark.parametrize(
    "parts, overall",
    [
        ((0.78544, 0.76798, 0.61972, 0.61777), 0.69773),
        ((0.80173, 0.80578, 0.65055, 0.66249), 0.73014),
    ],
)
def test_rmb_gives_the_published_shares(parts, overall, monkeypatch):
    rows = []
    for (task, goal), part in zip(rmb.PARTS, parts):
        num = rmb.SIZES[rmb.PARTS[task, goal]]
        right = [int(i < round(part * num)) for i in range(num)]
        given = [{"result": one} if task == "pairwise" else {"results": [1, one, 1]} for one in right]
        rows += [{"id": i, "task": task, "goal": goal, **one} for i, one in enumerate(given, len(rows))]
    monkeypatch.setattr(reports, "NUM_RESAMPLES", 40)  # of the intervals, which are not looked at
    got = rmb.report(rows)
    assert values(got.metrics) == pytest.approx(dict(zip(("Overall", *rmb.SIZES), (overall, *parts))), abs=5.01e-6)
    assert got.num_items == 17131 + 3786 and not any("Not the whole" in note for note in got.notes)


def test_rewardbench_weighs_its_subsets_as_published():
    weights = {section: sum(subsets.values()) for section, subsets in rewardbench.SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(rewardbench.SIZES.values()) == 2985
    shares = dict.fromkeys(rewardbench.SIZES, 1.0) | {"math-prm": 0.5}
    assert rewardbench.section_scores(shares)["Reasoning"] == 0.75  # (math + mean of the six languages) / 2


def test_judgebench_gives_the_result_of_recorded_two_order_decisions():
    got = judgebench.report(recorded("judgebench_twogame_claude-3-haiku-20240307.json"))
    # By the definition, counted once by hand-written code: 87 of 270.
    assert [(metric.name, round(metric.value * metric.num), metric.num) for metric in got.metrics] == [
        ("Overall", 87, 270), ("Knowledge", 58, 154), ("Reasoning", 15, 51), ("Math", 11, 34), ("Coding", 3, 31),
    ]  # fmt: skip
    assert (got.num_ties, got.num_unparsed) == (192, 13)


def test_infobench_gives_the_published_shares():
    items = recorded("infobench_gpt4_eval.json")["items"]
    got = infobench.report(items)
    assert [f"{metric.value:.6f}" for metric in got.metrics[:3]] == ["0.876000", "0.884058", "0.872436"]
    assert [metric.num for metric in got.metrics] == [2250, 690, 1560, 794, 1395, 419, 190, 168]
    assert "Overall = 0.30667 Easy + 0.69333 Hard: checked." in got.notes


def test_infobench_tables_that_break_the_identity_are_found():
    assert infobench.identity_gap(87.1, 87.9, 87.6) < 0.1  # GPT-4o with its columns put right
    assert infobench.identity_gap(87.9, 87.6, 87.1) > 0.1  # as the paper prints them


# label, ratings of the two outputs: ChatGPT/Rating on GPTOut (princeton-nlp/LLMBar, result.json, commit caa7bee).
LLMBAR = """
299 299 199 299 289 299 288 299 298 188 199 299 199 197 299 198 299 199 199 299 299 169 288 297 296 199 299 297 207
190 189 199 299 122 277 278 177 292 187 188 199 178 162 278 199 198 288
"""


def test_llmbar_gives_the_published_statistics_of_recorded_ratings():
    """statistics.json beside them: correct_average 52.12765957446809 %, equal 18 / 47, correct_both 10 / 47."""
    rows = [
        {"subset": "GPTOut", "label": int(label), "score_1": first, "score_2": second}
        for label, first, second in LLMBAR.split()
    ]
    got = llmbar.report(rows)
    numbers = values(got.metrics)
    assert 100 * numbers["GPTOut"] == pytest.approx(52.12765957446809, abs=1e-12)
    assert numbers["Agreement of the orders, GPTOut"] == 18 / 47
    assert values(got.policies["tie = wrong, unparsed = wrong"])["GPTOut"] == 10 / 47
    assert (got.num_ties, got.num_unparsed) == (29, 0)


def test_rewardbench_says_what_equal_ratings_of_a_judge_count_upstream():
    rows = [
        {"subset": "hep-go", "score_chosen": a, "score_rejected": b} for a, b in ((7, 7), (None, 7), (8, 7), (6, 7))
    ]
    got = rewardbench.report(rows)
    assert got.metrics[0].value == 1.5 / 4 and any("two equal ratings of a judge 0.5" in note for note in got.notes)
    assert got.policies["tie = half, unparsed = half"][0].value == 2 / 4  # run_generative.py with ratings
