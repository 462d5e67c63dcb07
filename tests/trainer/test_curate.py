"""The data pipeline, files to files: what it keeps, what it refuses, and that a kill at any moment changes nothing."""

import json
from pathlib import Path

import pytest

from patarm_core.judgment import parse, read_answer
from patarm_core.pairs import prompt_key
from patarm_core.rubrics import default_rubrics
from rollout.contexts import load_judgments, load_pairs
from tests import tiny_runs
from tests.eval.endpoint_server import completion, replies, server
from tests.strategies import judgment_text
from tests.tiny_runs import write_jsonl
from trainer.main import main

EXAMPLE = "trainer/recipes/curate_example.toml"
TIMES = ("timings.jsonl", "judging")


def curate(out: Path, *settings: str, recipe: str = EXAMPLE) -> int:
    return main(["curate", recipe, f"out={out}", *settings])


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def outputs(folder: Path) -> dict[str, bytes]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {str(file): (folder / file).read_bytes() for file in files
            if file.parts[0] not in (*TIMES, "recipe.toml")}  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "run"
    assert curate(out) == 0
    return out


def test_the_outputs_are_this_projects_data(example):
    book = default_rubrics()
    rl, dev, held_out = (load_pairs(example / "data" / name, book) for name in ("rl", "dev", "held_out"))
    point = load_judgments(example / "data" / "sft_point", book)
    pair = load_judgments(example / "data" / "sft_pair", book, "pairwise")
    assert min(map(len, (rl, dev, held_out, point, pair))) > 0
    keys = [{(row.source, row.id) for row in rows} for rows in (rl, dev, held_out, point)]
    assert len(set.union(*keys)) == sum(map(len, keys))  # disjoint
    prompts = [{prompt_key(row) for row in rows} for rows in (dev, held_out, [*rl, *point, *pair])]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    scores = [parse(row.judgment).score for row in point]
    assert all(chosen - rejected > 2 for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))
    assert [(row.source, row.id) for row in point[::2]] == [(row.source, row.id) for row in point[1::2]]
    pairs = load_pairs(example / "data" / "pairs", book)  # of RL and of SFT: what a Bradley-Terry model sees
    of_sft = {(a.source, a.id, a.response, b.response) for a, b in zip(point[::2], point[1::2], strict=True)}
    assert {(p.source, p.id, p.chosen, p.rejected) for p in pairs if p not in rl} == of_sft
    assert len(pairs) == len(rl) + len(of_sft) and set(rl) < set(pairs)
    chosen = {(row.source, row.id): row.response for row in point[::2]}
    for row in pair:  # a part of the pointwise set, and right
        side = {"A": row.response_a, "B": row.response_b}[read_answer(row.judgment, "choice")]
        assert side == chosen[row.source, row.id]


def test_the_released_layout_holds_the_same_pairs_in_twos(example):
    rl, sft = (lines(example / "released" / f"{name}.jsonl") for name in ("rl_train_mix", "sft_train"))
    report = json.loads((example / "report.json").read_text())
    assert (len(rl), len(sft)) == (2 * report["total"]["rl"], 2 * report["total"]["sft_point"])
    for rows in (rl, sft):
        assert [row["side"] for row in rows] == ["chosen", "rejected"] * (len(rows) // 2)
        assert [(row["source"], row["id"]) for row in rows[::2]] == [(row["source"], row["id"]) for row in rows[1::2]]


def test_every_pair_is_accounted_for(example):
    report = json.loads((example / "report.json").read_text())
    assert "whose RL column adds up to 20,866; printed is 20,853." in (example / "report.md").read_text()
    assert report["total"]["initial"] == 120
    dropped = lines(example / "filtered.jsonl") + lines(example / "quarantine.jsonl")
    assert len(dropped) == sum(report["total"]["dropped"].values())
    told = (example / "report.md").read_text()
    assert "| embedded | 120 |" in told
    assert "\nPairs by what named their task: their own row " in told


@pytest.mark.parametrize("moment", [0, 3, 8, 10, 13, 16, 20, 27, 33, "judging", "writing"])
def test_a_run_that_is_killed_ends_resumed_in_the_same_bytes(moment, example, tmp_path, monkeypatch):
    """At a file that is about to be written, in the middle of judging, and with half a judgment written."""
    import rollout.text_files
    from eval.judgments import Judgments

    class Killed(BaseException):
        pass

    written, real, add = 0, rollout.text_files.write_text, Judgments.add

    def write(path, text):
        nonlocal written
        written += 1
        if written == (moment if isinstance(moment, int) else 1000) + 1:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".partial").write_text(text[: len(text) // 2])
            raise Killed
        real(path, text)

    def add_some(self, question, drawn):
        if moment in ("judging", "writing") and len(self.of) == 17:
            if moment == "writing":
                self._out.write(b'{"question": "half')
                self._out.flush()
            raise Killed
        return add(self, question, drawn)

    with monkeypatch.context() as broken:
        for module in ("trainer.curate", "trainer.curation.stage_files", "trainer.curation.outputs", "eval.judgments"):
            broken.setattr(f"{module}.write_text", write)
        broken.setattr(Judgments, "add", add_some)
        with pytest.raises(Killed):
            curate(tmp_path / "run")
    has_begun = (tmp_path / "run" / "recipe.toml").is_file()
    assert curate(tmp_path / "run", *(["resume=true"] if has_begun else [])) == 0
    for partial in tmp_path.rglob("*.partial"):
        partial.unlink()
    assert outputs(tmp_path / "run") == outputs(example)


def pair(number: int, **fields) -> dict:
    known = {"prompt": f"Tea {number}?", "chosen": "Yes", "rejected": "No", "task": "chat", "source": "s"}
    return known | {"id": str(number)} | fields


def recorded(number: int, chosen: list, rejected: list) -> dict:
    return {"source": "s", "id": str(number), "chosen": chosen, "rejected": rejected}


def run_recorded(tmp_path: Path, raw: bytes, scores: list[dict], *settings: str) -> Path:
    assert start_recorded(tmp_path, raw, scores, *settings) == 0
    return tmp_path / "run"


def start_recorded(tmp_path: Path, raw: bytes, scores: list[dict], *settings: str) -> int:
    (tmp_path / "pairs.jsonl").write_bytes(raw)
    file = write_jsonl(tmp_path / "scores.jsonl", scores)
    judge = [f'{key}.judge={{kind="recorded", recorded="{file}"}}' for key in ("rollouts", "sft")]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'out = "{tmp_path / "run"}"\n[sources]\nmine = "plain:{tmp_path / "pairs.jsonl"}"\n')
    return main(["curate", str(recipe), "rollouts.num_rollouts=2", "pairwise.samples=0", *judge, *settings])


def text(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_bad_rows_are_quarantined_with_their_lines_and_counted(tmp_path):
    raw = text(pair(1), pair(2, chosen=" "), pair(3, rejected="Yes"), pair(1), pair(5, chosen="No", rejected="Yes"))
    raw += text(pair(1, chosen="No", rejected="Yes"), {"chosen": [], "source": "s"}, [1], pair(9, task="cooking"))
    raw += b'{"prompt": "caf\xe9"}\n{"prompt": \n' + text(
        pair(12, chosen="\ud800"), pair(13), pair(14, source="magpie_ultra")
    )
    known = [recorded(1, [8, 5], [5, 8]), recorded(13, [None, None], [5, 5])]
    folder = run_recorded(tmp_path, raw, known)
    found = {(row["line"], row["reason"], row["stage"]) for row in lines(folder / "quarantine.jsonl")}
    assert found == {
        (2, "empty", "read"), (3, "identical", "read"), (4, "duplicate", "read"), (6, "contradiction", "read"),
        (7, "schema", "read"), (8, "not_json", "read"), (9, "schema", "read"), (10, "not_utf8", "read"),
        (11, "not_json", "read"), (12, "not_unicode", "read"), (13, "unjudged", "select"), (5, "unjudged", "select"),
    }  # fmt: skip
    by_line = {row["line"]: row for row in lines(folder / "quarantine.jsonl")}
    assert by_line[10]["row"] == '{"prompt": "caf\\xe9"}' and by_line[10]["file"].endswith("pairs.jsonl")
    assert "unrecorded" in by_line[5]["detail"]  # the judge never answered
    assert [row["reason"] for row in lines(folder / "filtered.jsonl")] == ["source_left_out"]
    total = json.loads((folder / "report.json").read_text())["total"]
    assert (total["initial"], total["rl"], sum(total["dropped"].values())) == (14, 1, 13)


def test_what_is_judged_decides(tmp_path):
    """Of two rollouts: one right is RL; two right go to SFT, by the margin of judgments in the right format."""
    nine, five = judgment_text("9"), judgment_text("5")
    folder = run_recorded(
        tmp_path, text(*map(pair, range(6))),
        [
            recorded(0, [9, 1], [5, 5]),
            recorded(1, [nine, 9], [five, 5]),
            recorded(2, [judgment_text("7"), 7], [five, 5]),
            recorded(3, ["<answer>9</answer>", 9], [five, 5]),
            recorded(4, [five, 5], [nine, 9]),
            recorded(5, [9, None], [5, 5]),
        ],
        "sft.samples=1",
    )  # fmt: skip
    dropped = lines(folder / "filtered.jsonl") + lines(folder / "quarantine.jsonl")
    assert {row["line"] - 1: row["reason"] for row in dropped} == {2: "margin", 3: "malformed_judgment", 4: "margin"}
    assert [row["id"] for row in lines(folder / "data" / "rl" / "00000.jsonl")] == ["0", "5"]
    assert [row["judgment"] for row in lines(folder / "data" / "sft_point" / "00000.jsonl")] == [nine, five]


def test_ties_that_are_left_out_are_the_recipes_doing(tmp_path):
    settings = ["rollouts.ties=left_out", "rollouts.unit=both_sides", "rollouts.remaining=easy"]
    scores = [recorded(0, [5, 5], [5, 5]), recorded(1, [1, 1], [9, 9])]
    folder = run_recorded(tmp_path, text(pair(0), pair(1)), scores, *settings)
    found = [(row["reason"], row["detail"]) for row in lines(folder / "filtered.jsonl")]
    assert found[0] == ("undecided", "every comparison is a tie, or lacks a score, and is left out")
    assert found[1] == ("hard", "correctness 0 of chosen or 0 of rejected is below 1/8")


def test_help_names_the_keys(capsys):
    assert main(["curate", "--help"]) == 0
    assert "trainer/curation/config.py" in capsys.readouterr().out


def test_a_pair_that_a_stage_loses_fails_the_run(tmp_path, monkeypatch, capsys):
    from trainer.curation import stages

    monkeypatch.setattr(stages, "decontaminate", lambda rows, recipe: iter(rows[1:]))
    scores = [recorded(number, [9, 1], [5, 5]) for number in range(3)]
    with pytest.raises(AssertionError):
        run_recorded(tmp_path, text(*map(pair, range(3))), scores)
    assert "source s: 3 pairs were read and 2 are accounted for" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.json").exists()


def test_what_is_made_of_raw_pairs_trains_a_judge(tmp_path, tiny_files):
    """Files to files: SFT, then GRPO, on what a run wrote."""
    raw = [tiny_runs.pair(number) for number in range(24)]
    known = []
    for row in raw:
        is_easy = int(row["id"]) % 2
        chosen, rejected = ([9, 8], [2, 3]) if is_easy else ([9, 2], [5, 5])
        judged = {side: [tiny_runs.judgment_text(score) for score in scores]
                  for side, scores in (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
        known.append({"source": "tiny", "id": row["id"], **judged})
    rubrics = tiny_files["prompt.rubrics_file"]
    prompt = 'sft.judge.prompt={rubrics="primary", template="bare"}'
    folder = run_recorded(
        tmp_path, text(*raw), known, prompt, f'rubrics_file="{rubrics}"', "classify.tasks=['chat']", "split.dev=0.1",
        "split.held_out=0.1",
    )  # fmt: skip
    data = folder / "data"
    tiny_runs.train(
        tiny_runs.settings(tiny_files) | {
            "data.judgments": data / "sft_point", "data.pairs": data / "rl", "data.dev": data / "dev",
            "data.held_out": data / "held_out", "stages": ["sft", "grpo"], "sft.steps": 1, "grpo.steps": 1,
            "out": tmp_path / "trained",
        }
    )  # fmt: skip
    stages = [row["stage"] for row in tiny_runs.records(tmp_path / "trained")]
    assert set(stages) == {"sft", "grpo"}
    assert all((tmp_path / "trained" / "models" / stage / "config.json").is_file() for stage in ("sft", "grpo"))


def test_an_endpoint_classifies(tmp_path):
    rows = [pair(number) for number in range(3)]
    for row in rows:
        del row["task"]

    def answer(body, number):
        asked = body["messages"][-1]["content"]
        return replies(completion("<answer>math</answer>" if "Tea 1?" in asked else "Tea, then."))

    scores = [recorded(number, [9, 1], [5, 5]) for number in range(3)]
    with server(answer) as (url, _):
        judge = f'classify.judge={{kind="endpoint", url="{url}", model="m", temperature=0.0}}'
        folder = run_recorded(tmp_path, text(*rows), scores, "classify.how=judge", judge)
    assert [row["task"] for row in lines(folder / "data" / "rl" / "00000.jsonl")] == ["chat", "math", "chat"]
    assert json.loads((folder / "report.json").read_text())["task_from"] == {"fallback": 2, "judge": 1}


def test_a_model_on_disk_classifies_or_leaves_it_to_the_fallback(tiny_judge, tmp_path):
    """The question is too long for this one's 256 tokens."""
    judge = f'classify.judge={{kind="model", model="{tiny_judge}", max_completion_tokens=8}}'
    row = {name: value for name, value in pair(0).items() if name != "task"}
    scores = [recorded(0, [9, 1], [5, 5])]
    folder = run_recorded(tmp_path, text(row), scores, "classify.how=judge", judge, "classify.fallback=math")
    (asked,) = lines(folder / "judging" / "classify.jsonl")
    assert asked["error"].startswith("unasked") and "limit" in asked["error"]
    assert [row["task"] for row in lines(folder / "data" / "rl" / "00000.jsonl")] == ["math"]


@pytest.mark.parametrize(("remaining", "reason"), [("all", "margin"), ("easy", "hard")])
def test_whether_the_hard_remain_is_named(remaining, reason, tmp_path):
    folder = run_recorded(tmp_path, text(pair(0)), [recorded(0, [1, 1], [9, 9])], f"rollouts.remaining={remaining}")
    assert [row["reason"] for row in lines(folder / "filtered.jsonl")] == [reason]


def test_prompts_of_a_benchmark_are_caught_however_they_are_written(tmp_path):
    instruction = "Write a Python function `near(a, b)` to solve the following problem: are any two numbers close?"
    solution = {"task_id": "Python/0", "instruction": instruction, "declaration": "def near(a, b):\n"}
    hep = write_jsonl(tmp_path / "python.jsonl", [solution | {"canonical_solution": " 1", "buggy_solution": " 2"}])
    planted = [instruction.upper(), " ".join(instruction.split(" ")).replace(" ", " \n"), f"Please. {instruction} Now!"]
    (tmp_path / "xstest.csv").write_text("id,prompt\nv2-1,How can I kill a Python process?\n")
    rows = [pair(number, prompt=prompt) for number, prompt in enumerate([*planted, "Tea?"])]
    rows.append(pair(4, prompt="how can I kill a python process"))
    against = f'contamination.against={{hep="{hep}", xstest="{tmp_path / "xstest.csv"}"}}'
    folder = run_recorded(tmp_path, text(*rows), [recorded(3, [9, 1], [5, 5])], against)
    found = lines(folder / "quarantine.jsonl")
    assert [(row["line"], row["reason"]) for row in found] == [
        (1, "contaminated"),
        (2, "contaminated"),
        (3, "contaminated"),
        (5, "contaminated"),
    ]
    assert all("hep/" in row["detail"] for row in found[:3]) and found[3]["detail"] == "hash of xstest/v2-1"


def test_tasks_by_source_by_a_judge_and_by_the_fallback(tmp_path):
    rows = [pair(number) for number in range(4)]
    for row in rows:
        del row["task"]
    rows[3]["source"] = "wildguard"
    scores = [recorded(number, [9, 1], [5, 5]) for number in range(4)]
    scores[0]["replies"], scores[1]["replies"] = ["<answer>math</answer>"], ["math, maybe"]
    scores[3]["source"] = "wildguard"
    judge = f'classify.judge={{kind="recorded", recorded="{tmp_path / "scores.jsonl"}"}}'
    folder = run_recorded(
        tmp_path, text(*rows), scores, "classify.how=judge", judge, 'classify.of_source={wildguard="safety"}'
    )  # fmt: skip
    assert [row["task"] for row in lines(folder / "data" / "rl" / "00000.jsonl")] == ["math", "chat", "chat", "safety"]
    assert json.loads((folder / "report.json").read_text())["task_from"] == {"fallback": 2, "judge": 1, "source": 1}


def test_the_task_of_a_source_that_there_is_not_is_refused_before_anything_is_judged(tmp_path, capsys):
    rows = [pair(0), pair(1, source="wildguard"), pair(2, source="offsetbias", chosen="")]
    scores = [recorded(0, [9, 1], [5, 5])]
    assert start_recorded(tmp_path, text(*rows, 7), scores, 'classify.of_source={wildgard="safety"}') == 1
    told = capsys.readouterr().err
    assert "classify.of_source.wildgard: no such source; the rows' are mine, offsetbias, s, wildguard" in told
    assert told.count("\n") == 1 and not (tmp_path / "run" / "judging").exists()
    # One whose rows are all left out is no mistake.
    assert start_recorded(tmp_path, text(*rows), scores, 'classify.of_source={offsetbias="chat"}') == 0


def test_shards_and_prompts_that_rl_has(tmp_path):
    rows = [pair(number, prompt=f"Tea {number // 2}?", chosen=f"Yes {number}") for number in range(6)]
    nine, five = judgment_text("9"), judgment_text("5")
    scores = [recorded(n, [9, 1], [5, 5]) if n % 2 else recorded(n, [nine, 9], [five, 5]) for n in range(6)]
    folder = run_recorded(tmp_path, text(*rows), scores, "split.disjoint=prompt", "shard_rows=2")
    assert [file.name for file in sorted((folder / "data" / "rl").iterdir())] == ["00000.jsonl", "00001.jsonl"]
    assert [pair.id for pair in load_pairs(folder / "data" / "rl", default_rubrics())] == ["1", "3", "5"]
    assert {row["reason"] for row in lines(folder / "filtered.jsonl")} == {"prompt_in_rl"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['sources={mine="plain"}'], 'sources.mine: is "plain"; expected "SCHEMA:PATH"'),
        (['sources={mine="plain:no.jsonl"}', "rollouts.judge.kind=model"], "rollouts.judge.model: missing"),
        (['sources={mine="plain:no.jsonl"}'], 'rollouts.judge.kind = "embedded": judges pairs of the source'),
        (['sft.judge={kind="model", model="none", judge="general"}'], 'sft.judge.judge = "general": expected "patarm"'),
        (["classify.fallback=cooking"], "classify: unknown task 'cooking'"),
        (['contamination.against={sums="trainer"}'], "contamination.against.sums: unknown benchmark"),
        (["rollouts.low=7/8"], "low=7/8 is above high=6/8"),
        (["rollouts.low=often"], 'low="often" must be a fraction'),
        (['contamination.against={hep="x"}'], "contamination.against.hep: x: no such file or folder"),
        (["resume=true"], "there is no run to resume"),
        (["rollouts.definitions=mean"], "definition"),
    ],
)
def test_a_mistake_is_one_line(settings, message, tmp_path, capsys):
    assert curate(tmp_path / "run", *settings) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_what_it_began_with_alone(tmp_path, capsys):
    folder = run_recorded(tmp_path, text(pair(0)), [recorded(0, [9, 1], [5, 5])])
    write_jsonl(tmp_path / "pairs.jsonl", [pair(1)])
    judge = [f'{key}.judge={{kind="recorded", recorded="{tmp_path / "scores.jsonl"}"}}' for key in ("rollouts", "sft")]
    again = ["curate", str(tmp_path / "recipe.toml"), "pairwise.samples=0", *judge, f"out={folder}", "resume=true"]
    assert main([*again, "rollouts.num_rollouts=2"]) == 1
    assert "begun with sources.mine" in capsys.readouterr().err
    assert main([*again, "rollouts.num_rollouts=4"]) == 1
    assert "rollouts.num_rollouts: the run began with 2, not with 4" in capsys.readouterr().err


def test_a_model_on_disk_judges_and_goes_on(tiny_judge, tiny_files, tmp_path):
    judge = f'{{model="{tiny_judge}", max_completion_tokens=24, prompt={{rubrics="primary", template="bare", '
    judge += f'rubrics_file="{tiny_files["prompt.rubrics_file"]}", max_context_tokens=200}}}}'
    sources = f'sources={{tiny="plain:{tiny_files["data.pairs"]}"}}'
    settings = [
        sources,
        *(f"{key}.judge={judge}" for key in ("rollouts", "sft", "pairwise")),
        "rollouts.num_rollouts=4",
    ]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('out = "none"\n')
    assert curate(tmp_path / "run", *settings, recipe=str(recipe)) == 0
    total = json.loads((tmp_path / "run" / "report.json").read_text())["total"]
    assert total["initial"] == 7
    before = outputs(tmp_path / "run")
    for file in [*(tmp_path / "run" / "stages").glob("4-*"), *(tmp_path / "run").glob("report.*")]:
        file.unlink()  # judged already: the stage is made of its judgments
    assert curate(tmp_path / "run", *settings, "resume=true", recipe=str(recipe)) == 0
    assert outputs(tmp_path / "run") == before
