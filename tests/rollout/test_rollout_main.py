"""The door: one item and files of them, runs that were cut, and what a mistake looks like."""

import json
import shutil

import pytest

from rollout import resumable
from rollout.judge import Judge
from rollout.main import main
from tests.tiny_runs import pair, records, write_jsonl

ROWS = [
    {"prompt": pair(i)["prompt"], "response": pair(i)["chosen" if i % 2 else "rejected"], "id": f"r{i}", "mine": i}
    for i in range(9)
]
SETTINGS = {"rubrics": "primary", "template": "bare", "max-completion-tokens": 24, "votes": 3, "seed": 5}


@pytest.fixture
def run(tiny_judge, tiny_files):
    """Runs a command with the tiny judge; `changes` are further options, None leaves one out."""

    def run(command: str, **changes) -> int:
        options = {"model": tiny_judge, "rubrics-file": tiny_files["prompt.rubrics_file"]} | SETTINGS
        options |= {key.replace("_", "-"): value for key, value in changes.items()}
        parts = [
            (f"--{key}",) if value is True else (f"--{key}", str(value))
            for key, value in options.items()
            if value is not None
        ]
        return main([command, *(part for option in parts for part in option)])

    return run


@pytest.fixture
def judge(tiny_judge, tiny_files):
    return Judge.from_pretrained(
        tiny_judge, rubrics="primary", template="bare", rubrics_file=str(tiny_files["prompt.rubrics_file"]),
        num_votes=3, max_completion_tokens=24, seed=5,
    )  # fmt: skip


def test_one_response_is_scored(run, judge, capsys):
    item = {"prompt": ROWS[0]["prompt"], "response": ROWS[0]["response"]}
    (judged,) = judge.judgments([item["prompt"]], [item["response"]])
    assert run("score", **item, json=True) == 0
    assert json.loads(capsys.readouterr().out) == judged.record()
    assert run("score", **item) == 0
    shown = capsys.readouterr().out
    assert judged.texts[0] in shown and "of 3 judgments have one" in shown


@pytest.mark.parametrize("method", ["mean", "majority", "pairwise"])
def test_two_responses_are_compared(run, judge, capsys, method):
    prompt, a, b = pair(3)["prompt"], "A good tea.", "A bad tea."
    (compared,) = judge.comparisons([prompt], [a], [b], method=method)
    assert run("compare", prompt=prompt, response_a=a, response_b=b, method=method, json=True) == 0
    assert json.loads(capsys.readouterr().out) == compared.record()
    assert run("compare", prompt=prompt, response_a=a, response_b=b, method=method) == 0
    assert f"winner {compared.winner or 'none'}" in capsys.readouterr().out


def test_a_file_of_rows_is_scored_row_by_row(run, judge, tmp_path):
    data, out = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "new" / "scores.jsonl"
    assert run("score", data=data, out=out) == 0
    judged = judge.judgments([row["prompt"] for row in ROWS], [row["response"] for row in ROWS])
    assert records(out.parent, out.name) == [row | item.record() for row, item in zip(ROWS, judged, strict=True)]
    assert [file.name for file in out.parent.iterdir()] == ["scores.jsonl"]


def test_a_file_of_pairs_is_compared(run, judge, tmp_path):
    data, out = write_jsonl(tmp_path / "pairs.jsonl", [pair(i) for i in range(4)]), tmp_path / "verdicts.jsonl"
    assert run("compare", data=data, out=out) == 0
    winners = judge.compare(*([pair(i)[key] for i in range(4)] for key in ("prompt", "chosen", "rejected")))
    assert [row["winner"] for row in records(tmp_path, out.name)] == winners


@pytest.mark.parametrize("num_done, tail", [(0, b""), (4, b""), (4, b'{"prompt": "Say so'), (9, b"")])
def test_a_run_that_was_cut_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch, num_done, tail):
    data, whole, out = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run("score", data=data, out=whole) == 0

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable.os, "replace", cut)
        assert run("score", data=data, out=out) == 130
    assert not out.exists()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(b"".join(partial.read_bytes().splitlines(keepends=True)[:num_done]) + tail)
    assert run("score", data=data, out=out) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl", "whole.jsonl"]


def test_what_was_begun_otherwise_does_not_go_on(run, tmp_path, monkeypatch, capsys):
    data, out = write_jsonl(tmp_path / "rows.jsonl", ROWS[:2]), tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.partial").write_text("")
    assert run("score", data=data, out=out) == 1
    assert "there is no out.jsonl.partial.settings" in capsys.readouterr().err
    (tmp_path / "out.jsonl.partial").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(resumable.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("score", data=data, out=out) == 130
    capsys.readouterr()
    assert run("score", data=data, out=out, seed=6) == 1
    assert "begun with seed 5, now 6" in capsys.readouterr().err
    write_jsonl(data, ROWS[:3])
    assert run("score", data=data, out=out) == 1
    assert "begun with data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, change, message",
    [
        ("score", {}, "name one item, --prompt … --response …, or a file of them"),
        ("score", {"prompt": "x"}, "name one item"),
        ("score", {"data": "rows.jsonl", "out": "o.jsonl", "prompt": "x"}, "name one item"),
        ("score", {"data": "rows.jsonl"}, "--data and --out go together"),
        ("score", {"data": "nowhere.jsonl", "out": "o.jsonl"}, "nowhere.jsonl: no such file"),
        ("score", {"data": "empty.jsonl", "out": "o.jsonl"}, "empty.jsonl: holds no rows"),
        ("score", {"data": "broken.jsonl", "out": "o.jsonl"}, "broken.jsonl:3: not JSON: "),
        ("score", {"data": "missing.jsonl", "out": "o.jsonl"}, "missing.jsonl:1: response: missing; expected a text"),
        ("score", {"data": "task.jsonl", "out": "o.jsonl"}, "task.jsonl:2: task: unknown task 'chess'"),
        ("score", {"data": "long.jsonl", "out": "o.jsonl"}, "long.jsonl:2: the context has"),
        ("score", {"data": "rows.jsonl", "out": "rows.jsonl"}, "rows.jsonl: exists already"),
        ("score", {"prompt": " ", "response": "x"}, "prompt: is empty"),
        ("score", {"prompt": "x", "response": "x" * 999}, "this item: the context has"),
        ("score", {"prompt": "x", "response": "x", "max_context_tokens": 5}, "prompt.max_context_tokens is 5"),
        ("score", {"prompt": "x", "response": "x", "task": "chess"}, "task: unknown task 'chess'"),
        ("score", {"prompt": "x", "response": "x", "votes": -1, "model": "nowhere"}, "--votes must be at least 1"),
        ("score", {"prompt": "x", "response": "x", "model": "nowhere"}, "config.json: no such file"),
        ("score", {"prompt": "x", "response": "x", "rubrics_file": "nowhere.toml"}, "nowhere.toml: no such file"),
        ("compare", {"prompt": "x", "response_a": "x"}, "--response-b"),
        ("compare", {"data": "rows.jsonl", "out": "o.jsonl"}, "rows.jsonl:1: response_a: missing"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, capsys, command, change, message):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "Why?", "response": "So."}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    write_jsonl(tmp_path / "missing.jsonl", [{"prompt": "Why?"}])
    write_jsonl(tmp_path / "task.jsonl", [row, row | {"task": "chess"}])
    write_jsonl(tmp_path / "long.jsonl", [row, row | {"response": "x" * 999}])
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text(f"{json.dumps(row)}\n\n{{\n")
    before = sorted(tmp_path.iterdir())
    assert run(command, **change) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(tmp_path.iterdir()) == before


def broken_model(tiny_judge, folder, how: str):
    shutil.copytree(tiny_judge, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "missing shard":
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        weights.rename(folder / "model-00002-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "noise":
        weights.write_bytes(b"\x00\xff" * 500)
    elif how == "family":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mamba"}))
    elif how == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing shard", "model-00001-of-00002.safetensors: no such file"),
        ("cut", "model.safetensors: not a complete safetensors file"),
        ("noise", "model.safetensors: not a complete safetensors file"),
        ("family", "mamba"),
        ("tokenizer", "the tokenizer cannot be read"),
    ],
)
def test_a_broken_model_is_told_in_one_line(run, tiny_judge, tmp_path, capsys, how, message):
    assert run("score", prompt="x", response="x", model=broken_model(tiny_judge, tmp_path / "model", how)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_mask_makes_every_judgment_well_formed(run, capsys):
    item = {"prompt": "Something else altogether.", "response": "Zzz.", "temperature": 3.0, "votes": 8}
    assert run("score", **item, json=True, max_completion_tokens=60) == 0
    assert json.loads(capsys.readouterr().out)["num_valid"] < 8
    assert run("score", **item, json=True, max_completion_tokens=60, well_formed=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["num_valid"] == 8 and answer["errors"] == [None] * 8
