"""The program as its user meets it: one line for a mistake, a folder of results for a run."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patarm_core.judgment import ALL_TAGS
from tests.tiny_runs import SMALL, arguments, judgment, judgment_text, pair, records, settings, write_jsonl
from trainer.main import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE, CURATE = (str(ROOT / "trainer" / "recipes" / f"{name}.toml") for name in ("own_data", "curate_example"))


@pytest.fixture
def job(tiny_files, tiny_judge, tmp_path):
    """A recipe that would run; what a test changes in it is the mistake."""
    return settings(tiny_files) | {"model.path": tiny_judge, "out": tmp_path / "out" / "run", "sft.steps": 1,
                                   "grpo.steps": 1}  # fmt: skip


@pytest.fixture
def told(capfd, tmp_path):
    """Runs a job that holds a mistake; returns the one line it says after `error: `."""

    def run(job: dict | list[str]) -> str:
        status = main(arguments(job) if isinstance(job, dict) else job)
        printed = capfd.readouterr()
        assert status == 1
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.endswith("\n")
        assert len(printed.err.splitlines()) == 1
        assert not (tmp_path / "out").exists()  # nothing half-written
        return printed.err.removeprefix("error: ").removesuffix("\n")

    return run


def test_a_missing_recipe_file(told, tmp_path):
    assert told([str(tmp_path / "none.toml")]) == f"{tmp_path / 'none.toml'}: no such file"


def test_a_setting_without_a_value(told):
    assert told([RECIPE, "resume"]) == "resume: no such file; a setting is written as in resume=VALUE"


def test_a_recipe_of_the_other_kind(told):
    line = told([CURATE, "rollouts.num_rollouts=4"])
    assert line == f"{CURATE}: is a recipe that makes data: trainer/main.py curate {CURATE}"
    assert told(["curate", RECIPE]) == f"{RECIPE}: is a recipe that trains a model: trainer/main.py {RECIPE}"


def test_a_recipe_that_is_a_folder(told, tmp_path):
    assert told([str(tmp_path)]) == f"{tmp_path}: cannot be read: Is a directory"


def test_an_unknown_key_in_a_file(told, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('out = "x"\n[rollout]\nnum_rolouts = 4\n')
    assert told([str(file)]) == f"{file}: unknown key 'rollout.num_rolouts'; the nearest is 'rollout.num_rollouts'"


def test_an_unknown_key_on_the_command_line(told, job):
    assert told(job | {"grpo.step": 3}) == "command line: unknown key 'grpo.step'; the nearest is 'grpo.steps'"


def test_a_stage_that_is_named_twice(told, job):
    line = told(job | {"stages": ["sft", "grpo", "sft"]})
    assert line == "command line: stages=['sft', 'grpo', 'sft']: sft is named twice; a run has each stage once"


def test_malformed_toml(told, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('out = "x"\nstages = ["sft"\n')
    assert told([str(file)]).startswith(f"{file}:3: not TOML: ")


def test_a_value_out_of_range(told, job):
    assert (
        told(job | {"eval.votes": [4]}) == "command line: [eval]: votes=[4] must be numbers from 1 to num_judgments=3"
    )


@pytest.mark.parametrize("key", ["data.judgments", "data.pairs", "data.held_out", "prompt.rubrics_file"])
def test_a_missing_file(told, job, tmp_path, key):
    assert told(job | {key: tmp_path / "none"}) == f"{tmp_path / 'none'}: no such file"


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("data.judgments", "data.judgments: no file is given; stages sft, grpo need one"),
        ("data.pairs", "data.pairs: no file is given; stages sft, grpo need one"),
    ],
)
def test_a_file_that_a_stage_needs_and_nobody_gave(told, job, key, problem):
    assert told(job | {key: ""}) == problem


def test_a_dev_file_is_needed_where_something_is_measured_on_it(told, job):
    problem = "data.dev: no file is given; stages sft, grpo need one"
    assert told(job | {"data.dev": "", "grpo.dev_every": 1}) == problem


BAD_ROWS = [
    ("{", "not JSON: Expecting property name enclosed in double quotes at column 2; expected one object per line"),
    ({"rejected": None}, "rejected: is null; expected a text"),
    ({"chosen": ""}, "chosen: is empty; expected some text"),
    ({"rejected": "A good road."}, "rejected: equal to chosen, so no preference is expressed; give two different "
     "responses"),
    ({"task": "chess"}, "task: unknown task 'chess'; known tasks are chat (nearest: 'chat')"),
    ({"id": "0"}, "id: '0' of source 'tiny' is already used on line 1; (source, id) must be unique"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS)
@pytest.mark.parametrize("key", ["data.pairs", "data.held_out"])
def test_a_bad_pair(told, job, tmp_path, key, row, problem):
    file = write_jsonl(tmp_path / "pairs.jsonl", [pair(0), pair(1)])
    with file.open("a") as rows:
        rows.write((row if isinstance(row, str) else json.dumps(pair(7) | row)) + "\n")
    assert told(job | {key: file}) == f"{file}:3: {problem}"


def test_a_pair_without_a_side(told, job, tmp_path):
    row = pair(3)
    del row["rejected"]
    file = write_jsonl(tmp_path / "pairs.jsonl", [pair(0), row])
    assert told(job | {"data.pairs": file}) == f"{file}:2: rejected: missing; expected a text"


def test_a_bad_judgment(told, job, tmp_path):
    file = write_jsonl(tmp_path / "judgments.jsonl", [judgment(0), judgment(1) | {"response": " \n"}])
    assert told(job | {"data.judgments": file}) == f"{file}:2: response: is empty; expected some text"


def test_a_file_without_rows(told, job, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    problem = f"{tmp_path / 'empty.jsonl'}: holds no pairs; expected one JSON object per line"
    assert told(job | {"data.pairs": tmp_path / "empty.jsonl"}) == problem


@pytest.mark.parametrize("key", ["data.pairs", "data.held_out", "data.dev"])
def test_a_prompt_over_the_length_limit(told, job, tmp_path, key):
    long = pair(65) | {"prompt": "Say it. " * 90}
    file = write_jsonl(tmp_path / "pairs.jsonl", [pair(64), long])
    line = told(job | {key: file, "prompt.max_context_tokens": 150, "grpo.dev_every": 1})
    assert line.startswith("pair 65 of tiny: prompt and response make a context of ")
    assert line.endswith(" tokens; prompt.max_context_tokens is 150")


@pytest.mark.parametrize(
    ("text", "rubrics", "problem"),
    [
        ("9", "primary", 'tag error; with prompt.rubrics = "primary" these are right, each once and in this order: '
         "<think>…</think> <eval>…</eval> <answer>…</answer>"),
        (judgment_text(9), "adaptive", 'tag error; with prompt.rubrics = "adaptive" these are right, each once and in '
         "this order: <think>…</think> <generate_rubrics>…</generate_rubrics> <eval>…</eval> <answer>…</answer>"),
        (judgment_text(11), "primary", "score error; right is a number from 0 to 10 in <answer>…</answer>"),
    ],
)  # fmt: skip
def test_a_judgment_that_grpo_would_punish(told, job, tmp_path, text, rubrics, problem):
    file = write_jsonl(tmp_path / "judgments.jsonl", [judgment(1) | {"judgment": text}])
    line = told(job | {"data.judgments": file, "prompt.rubrics": rubrics})
    assert line == f"{file}: judgment 1 of tiny: {problem}"


@pytest.mark.parametrize("key", ["data.dev", "data.held_out"])
@pytest.mark.parametrize(("number", "trained"), [(3, "data.pairs"), (150, "data.judgments")])
def test_a_prompt_that_is_measured_on_and_trained_on(told, job, tmp_path, key, number, trained):
    seen = pair(number)
    seen["prompt"] = [{"role": "user", "content": seen["prompt"]}]  # the same prompt, written otherwise
    file = write_jsonl(tmp_path / "pairs.jsonl", [pair(64), seen])
    line = told(job | {key: file, "grpo.dev_every": 1})
    assert line == f"{file}: pair {number} of tiny: its prompt is trained on, in {job[trained]}"


def test_a_judgment_over_the_length_limit(told, job, tmp_path):
    file = write_jsonl(tmp_path / "judgments.jsonl", [judgment(0) | {"prompt": "Say it. " * 90, "id": "j0"}])
    line = told(job | {"data.judgments": file, "prompt.max_context_tokens": 150})
    assert line.startswith("judgment j0 of tiny: prompt and response make a context of ")


def test_a_context_that_leaves_no_room_for_a_judgment(told, job):
    line = told(job | {"rollout.max_completion_tokens": 230})
    assert line.startswith("pair 0 of tiny: context and rollout.max_completion_tokens make 3")
    assert line.endswith(" tokens; the model's max_position_embeddings is 256")


def test_what_would_not_fit_a_micro_batch_is_told_before_training(told, job, tmp_path):
    line = told(job | {"grpo.tokens_per_micro_batch": 60})
    assert line.startswith("pair 0 of tiny: ")
    assert line.endswith(" tokens; grpo.tokens_per_micro_batch in whole tiles of 16 is 48")
    file = write_jsonl(tmp_path / "j.jsonl", [judgment(0), judgment(1) | {"judgment": " x" * 60 + judgment_text(5)}])
    line = told(job | {"data.judgments": file, "sft.tokens_per_micro_batch": 120})
    assert line.startswith("judgment 1 of tiny: context and judgment make 2")
    assert line.endswith(" tokens; sft.tokens_per_micro_batch in whole tiles of 16 is 112")


def test_keys_and_values_that_hold_no_judgment(told, job):
    line = told(job | {"rollout.kv_gib": 1e-5})
    assert line.startswith("pair 0 of tiny: context and rollout.max_completion_tokens make 1")
    assert line.endswith(" tokens; room in rollout.kv_gib=1e-05 is 0")


def changed(tiny_judge: Path, path: Path, **config: object) -> Path:
    shutil.copytree(tiny_judge, path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return path


def test_a_checkpoint_of_another_shape(told, job, tiny_judge, tmp_path):
    model = changed(tiny_judge, tmp_path / "model", intermediate_size=48)
    line = told(job | {"model.path": model})
    assert line.startswith(f"{model / 'model.safetensors'}: model.layers.0.mlp.")
    assert "64" in line and "48" in line


def test_a_checkpoint_with_fewer_layers(told, job, tiny_judge, tmp_path):
    model = changed(tiny_judge, tmp_path / "model", num_hidden_layers=3)
    assert "model.layers.2." in told(job | {"model.path": model})


def test_a_checkpoint_that_was_cut_short(told, job, tiny_judge, tmp_path):
    model = changed(tiny_judge, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert str(weights) in told(job | {"model.path": model})


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_that_lacks_a_file(told, job, tiny_judge, tmp_path, file):
    model = changed(tiny_judge, tmp_path / "model")
    (model / file).unlink()
    if file == "tokenizer.json":
        (model / "tokenizer_config.json").unlink()
    assert file in told(job | {"model.path": model})


def test_a_model_folder_that_is_not_there(told, job, tmp_path):
    assert str(tmp_path / "none") in told(job | {"model.path": tmp_path / "none"})


def test_a_tokenizer_of_another_model(told, job, tiny_judge, tmp_path):
    model = changed(tiny_judge, tmp_path / "model", vocab_size=300)
    assert told(job | {"model.path": model}) == f"{model}: 320 tokens in the tokenizer, the model has 300"


def test_more_processes_than_there_are(told, job):
    assert told(job | {"num_processes": 16}) == (
        "num_processes: the recipe asks for 16 processes and 1 are running; "
        "start it with torchrun --nproc-per-node N so that nodes x N = 16"
    )


def test_a_vocabulary_too_small_for_the_bytes(told, job):
    line = told(job | {"model.path": "", "model.small.vocab_size": 100})
    assert line.startswith(f"model.small: vocab_size=100 must be at least {256 + 3 + 2 * len(ALL_TAGS)}: all bytes, ")


def test_a_shape_that_no_decoder_has(told, job):
    line = told(job | {"model.path": "", "model.small.head_dim": 15})
    assert line == "model.small: head_dim=15 must be even for rotary embedding"


def test_a_small_model_needs_texts_for_its_tokenizer(told, job):
    line = told(job | {"model.path": "", "stages": ["grpo"]})
    assert line.startswith("model.path: not given, and without SFT judgments there are no texts")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.embedded.num_rl_pairs": 0}, "data.embedded.num_rl_pairs: is 0; stages sft, grpo need some"),
        ({"data.embedded.min_margin": 11}, "too few pairs are judged more than min_margin=11.0 apart"),
    ],
)
def test_an_embedded_set_that_cannot_be(told, job, changes, problem):
    embedded = {key: value for key, value in job.items() if not key.startswith("data.")}
    embedded |= {"data.source": "embedded", "prompt.rubrics_file": ""}
    embedded |= {f"data.embedded.num_{name}_pairs": 4 for name in ("sft", "rl", "dev", "held_out")}
    assert told(embedded | changes) == problem


def test_a_folder_that_cannot_be_made(told, job, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = told(job | {"out": tmp_path / "file" / "run"})
    assert str(tmp_path / "file") in line and "Not a directory" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("kib", "changes", "line"),
    [
        (1, {}, "recipe.toml."),
        (9, {"model.path": ""}, "models/initial: cannot be written: File too large (os error 27)"),
        (9, {"stages": ["grpo"], "grpo.steps": 20}, "metrics.jsonl: cannot be written: File too large"),
        (99, {"stages": ["grpo"]}, "checkpoints/grpo: a checkpoint could not be written: rank 0: "),
    ],
)
def test_a_disk_that_is_full_is_one_line_that_names_the_file(job, tmp_path, capfd, kib, changes, line):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, before[1]))
    try:
        assert main(arguments(job | {"data.held_out": ""} | changes)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (told,) = [row for row in re.split("[\r\n]", capfd.readouterr().err) if row.startswith("error: ")]
    assert told.startswith(f"error: {tmp_path / 'out' / 'run' / line}")
    assert "checkpoint" not in line or told.endswith(" GiB are free there")
    assert not list((tmp_path / "out" / "run").glob("*.partial"))


def test_without_arguments_the_usage_is_shown(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("usage: torchrun ")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart recipe in miniature, run twice: (first folder, second folder)."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    small = {f"model.small.{key}": value for key, value in SMALL.items()} | {
        "model.small.vocab_size": 400, "out": out, "prompt.rubrics_file": ROOT / "patarm_core/embedded/rubrics.toml",
        "data.embedded.num_sft_pairs": 40, "data.embedded.num_rl_pairs": 12, "data.embedded.num_dev_pairs": 6,
        "data.embedded.num_held_out_pairs": 8, "rollout.num_rollouts": 3, "rollout.max_completion_tokens": 24,
        "sft.steps": 3, "sft.dev_every": 2, "grpo.steps": 2, "grpo.pairs_per_step": 4, "grpo.dev_every": 1,
        "eval.num_judgments": 2, "eval.votes": [1, 2], "eval.num_dev_judgments": 1,
    }  # fmt: skip
    recipe = [str(ROOT / "trainer" / "recipes" / "quickstart.toml")]
    assert main(recipe + arguments(small)) == 0
    assert main(recipe + arguments(small | {"stages": ["sft"], "sft.steps": 1})) == 0
    return out, out.with_name("out-2")


def test_a_run_leaves_everything_in_its_folder(quickstart):
    first, _ = quickstart
    files = {file.relative_to(first).as_posix() for file in first.rglob("*") if file.is_file()}
    assert {file for file in files if not file.startswith(("models/", "checkpoints/", "judgments/"))} == {
        "recipe.toml", "metrics.jsonl", "samples.jsonl", "report.json", "report.md", "report.html", "curves.png",
        "data/judgments.jsonl", "data/pairs.jsonl", "data/dev.jsonl", "data/held_out.jsonl",
    }  # fmt: skip
    for name in ("initial", "sft", "grpo"):
        assert {f"models/{name}/{file}" for file in ("config.json", "model.safetensors", "tokenizer.json")} <= files
    assert not any("partial" in file or file.endswith(".old") for file in files)


def test_a_second_run_gets_a_folder_of_its_own(quickstart):
    first, second = quickstart
    assert sorted(path.name for path in first.parent.iterdir()) == ["out", "out-2"]
    assert len(records(first)) == 5
    assert [(r["stage"], r["step"]) for r in records(second)] == [("sft", 1)]
    assert f"The trained judge: {second / 'models' / 'sft'}" in (second / "report.md").read_text()


def test_every_step_reports_what_there_is_to_know(quickstart):
    first, _ = quickstart
    rows = records(first)
    assert [(r["stage"], r["step"]) for r in rows] == [("sft", 1), ("sft", 2), ("sft", 3), ("grpo", 1), ("grpo", 2)]
    common = {"loss", "entropy", "grad_norm", "lr", "num_tokens", "skipped", "tokens_per_s", "step_s"}
    dev = {"dev_accuracy", "dev_accuracy_low", "dev_accuracy_high", "dev_margin", "dev_valid_rate", "dev_s"}
    assert [dev <= r.keys() for r in rows] == [False, True, True, True, True]  # every so often, and at the end
    for row in rows:
        assert common <= row.keys()
        assert all(isinstance(value, str | list) or abs(value) < 1e9 for value in row.values())
    for row in rows[3:]:
        assert row.keys() >= {
            "reward", "reward_par", "reward_format", "pair_accuracy", "pair_ties", "pair_unscored",
            "valid_rate", "tag_error_rate", "score_error_rate", "zero_advantage_groups", "zero_advantage_share",
            "clip_share", "kl", "logprob_gap", "max_logprob_gap", "completion_tokens", "cut_short_rate",
            "sync_s", "rollout_s", "wait_s", "reward_s", "update_s",
        }  # fmt: skip
        assert ("score_mean" in row, "score_std" in row) == (row["valid_rate"] > 0,) * 2
        assert ("margin" in row) == (row["pair_unscored"] < 1)
        assert (row["pairs_by_rank"], row["rollout_idle_share"]) == ([4], 0.0)
        assert row["reward"] == pytest.approx(row["reward_par"] + row["reward_format"])
        assert row["valid_rate"] + row["tag_error_rate"] + row["score_error_rate"] == pytest.approx(1)
        assert row["max_logprob_gap"] < 1e-4  # rollout and trainer are one function of the same weights
        phases = sum(row[name] for name in ("sync_s", "rollout_s", "wait_s", "reward_s", "update_s"))
        assert 0 < phases <= row["step_s"]
    assert rows[3]["kl"] == pytest.approx(0, abs=1e-9)  # the reference is where GRPO starts


def test_samples_are_kept_of_both_sides(quickstart):
    rows = records(quickstart[0], "samples.jsonl")
    assert [(r["step"], r["side"]) for r in rows] == [(s, side) for s in (1, 2) for side in ("chosen", "rejected") * 2]
    assert all(isinstance(r["judgment"], str) and r["reward"] in (-1.5, -1.0, 0.0, 1.2, 1.4) for r in rows)
    pairs = {row["id"]: row for row in records(quickstart[0], "data/pairs.jsonl")}
    assert all((r["prompt"], r["response"]) == (pairs[r["id"]]["prompt"], pairs[r["id"]][r["side"]]) for r in rows)


def test_the_page_of_a_run_is_made_again_byte_by_byte(quickstart, capsys):
    file = quickstart[0] / "report.html"
    before = file.read_bytes()
    file.unlink()
    assert main(["--report", str(quickstart[0])]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert file.read_bytes() == before
    assert b"finished; sft at step 3, grpo at step 2 on " in before


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (["{0}/none"], "{0}/none: no run is here (no recipe.toml); name the folder that a run printed"),
        ([], "--report takes the folder of one run, got 0"),
        (["{0}", "{0}"], "--report takes the folder of one run, got 2"),
    ],
)
def test_a_page_of_no_run(tmp_path, capsys, folders, problem):
    assert main(["--report", *(folder.format(tmp_path) for folder in folders)]) == 1
    assert capsys.readouterr().err == f"error: {problem.format(tmp_path)}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_report_measures_each_model_on_the_held_out_pairs(quickstart):
    report = json.loads((quickstart[0] / "report.json").read_text())
    assert list(report["held_out"]) == ["initial", "sft", "grpo"]
    for result in report["held_out"].values():
        assert [(row["votes"], row["num_pairs"]) for row in result["votes"]] == [(1, 8), (2, 8)]
        assert all(row["low"] <= row["accuracy"] <= row["high"] for row in result["votes"])
    text = (quickstart[0] / "report.md").read_text()
    assert all(name in text for name in ("before SFT", "after SFT", "after GRPO", "95 % interval", "Wall time"))
    assert (quickstart[0] / "curves.png").stat().st_size > 20_000


def test_the_data_of_a_run_is_what_it_was_trained_and_measured_on(quickstart, tmp_path):
    """The files it leaves are read by a run of its own, without a prompt in two of them."""
    data = quickstart[0] / "data"
    rows = {file.stem: [json.loads(line) for line in file.open()] for file in data.iterdir()}
    assert {name: len(kept) for name, kept in rows.items()} == {"judgments": 80, "pairs": 12, "dev": 6, "held_out": 8}
    prompts = [{row["prompt"] for row in kept} for kept in rows.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    ids = {row["id"] for row in rows["pairs"]}
    assert {row["id"] for row in records(quickstart[0], "samples.jsonl")} <= ids


@pytest.mark.parametrize("stage", ["initial", "sft", "grpo"])
def test_transformers_loads_what_a_stage_leaves_and_computes_the_same(quickstart, stage):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rollout.decoder import all_logits, causal_attention
    from rollout.weights import load_decoder

    path = quickstart[0] / "models" / stage
    theirs, ours = AutoModelForCausalLM.from_pretrained(path), load_decoder(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Is it good?"}], tokenize=False)
    token_1T = torch.tensor([tokenizer.encode(chat, add_special_tokens=False)])
    with torch.no_grad():
        expected = theirs(token_1T).logits
        found = ours(token_1T, torch.arange(token_1T.shape[1])[None], causal_attention, all_logits)
    assert tokenizer.decode(token_1T[0]) == chat
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_sft_changes_the_model(quickstart):
    files = [quickstart[0] / "models" / stage / "model.safetensors" for stage in ("initial", "sft")]
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.fixture(scope="module")
def from_a_judge(tiny_files, tiny_judge, tmp_path_factory):
    """GRPO alone as in the quickstart, in miniature, from a judge whose judgments are mostly valid."""
    out = tmp_path_factory.mktemp("from_a_judge") / "out"
    job = settings(tiny_files) | {
        "out": out, "data.source": "files", "stages": ["grpo"], "model.path": tiny_judge,
        "grpo.steps": 2, "grpo.dev_every": 0,
    }  # fmt: skip
    assert main([str(ROOT / "trainer" / "recipes" / "quickstart.toml"), *arguments(job)]) == 0
    return out


def test_grpo_changes_a_judge_that_writes_valid_judgments(from_a_judge, tiny_judge):
    steps = records(from_a_judge)
    assert [(r["stage"], r["step"]) for r in steps] == [("grpo", 1), ("grpo", 2)]
    assert min(r["valid_rate"] for r in steps) > 0.5
    assert all(r["zero_advantage_share"] < 1 and r["reward_par"] > 0 and r["grad_norm"] > 0 for r in steps)
    before, after = (load_file(path / "model.safetensors") for path in (tiny_judge, from_a_judge / "models" / "grpo"))
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items())


def test_without_sft_the_report_begins_at_the_start(from_a_judge):
    report = (from_a_judge / "report.md").read_text()
    assert "| start | 1 |" in report and "| after GRPO | 1 |" in report and "SFT" not in report


def test_a_run_that_judges_nothing_makes_no_replica(job, monkeypatch):
    """At 8B a replica is 16 GB on every rank."""
    monkeypatch.setattr("trainer.replica.Engine", None)
    assert main(arguments(job | {"stages": ["sft"], "data.held_out": ""})) == 0


def test_options_with_dashes_are_told_how_settings_are_written(capsys):
    assert main(["recipe.toml", "--sft.steps", "3"]) == 1
    told = capsys.readouterr().err
    assert told == "error: --sft.steps: there are no options; settings are written as in sft.steps=3\n"
