"""Engines are given the same work, are held to it, and the tables say what came of it."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import apart, rollout_gpu, rollout_speed
from bench.apart import Apart, EngineError
from bench.main import main
from bench.rollout_peers import CONTENDERS, Generate, check_lengths
from bench.rollout_speed import measure, prepare
from bench.rollout_tables import decoding_table, tables
from bench.rollout_workload import Work, folded, judge_contexts, judging, num_shared, rmbench_pairs, static
from rollout.decoder import DecoderConfig
from tests.models import config, random_decoder

V = 96
PEERS = [name for name in CONTENDERS if name != "ours"]
tokens = st.integers(0, 151_935)
token_lists = st.lists(tokens, min_size=8, max_size=40)


# The work


@given(st.lists(tokens, max_size=40), token_lists, token_lists, st.integers(1, 8))
def test_shortened_contexts_share_what_they_shared(trunk, one, other, shorten):
    contexts = [trunk + one, trunk + other]
    work = judging(contexts, 3, shorten, V)
    assert [len(context) for context in work.contexts] == [len(context) // shorten for context in contexts]
    assert num_shared(*work.contexts) >= len(trunk) // shorten
    # A turn changes tokens and nothing else.
    turned = work.turned(5, V)
    assert num_shared(*turned.contexts) == num_shared(*work.contexts)
    assert turned.lengths == work.lengths
    assert all(a != b for context, moved in zip(work.contexts, turned.contexts) for a, b in zip(context, moved))
    assert all(0 <= token < V for context in turned.contexts for token in context)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_tree_holds_every_beginning_once(contexts):
    work = Work("", contexts, [(1,)] * len(contexts))
    beginnings = {tuple(context[:end]) for context in contexts for end in range(1, len(context) + 1)}
    assert work.num_distinct_tokens == len(beginnings)
    common = work.num_common_tokens
    assert all(context[:common] == contexts[0][:common] for context in contexts)
    assert any(context[: common + 1] != contexts[0][: common + 1] for context in contexts) or common == min(
        map(len, contexts)
    )


@given(st.lists(tokens, max_size=50), st.integers(1, 200))
def test_folding_keeps_equal_tokens_equal(token_ids, vocab_size):
    found = folded(token_ids, vocab_size)
    assert all(0 <= token < vocab_size for token in found)
    assert len(set(zip(token_ids, found))) == len(set(token_ids))


def test_folding_spreads_over_the_vocabulary():
    assert len(set(folded(list(range(8192)), 8192))) > 4096


def test_lengths_are_skewed_and_the_same_in_every_run():
    contexts = [[1] * 8] * 2000
    lengths = sorted(length for some in judging(contexts, 8, 4, V).lengths for length in some)
    assert (lengths[0], lengths[-1]) == (8, 400)
    assert median(lengths) == pytest.approx(60, abs=3)
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(200, abs=10)
    assert judging(contexts, 8, 4, V) == judging(contexts, 8, 4, V)
    assert judging(contexts[:3], 8, 4, V).lengths == judging(contexts, 8, 4, V).lengths[:3]


def test_nothing_is_shared_in_the_static_work():
    work = static(5, 30, 7, 8192)
    assert set(map(len, work.contexts)) == {30} and work.lengths == [(7,)] * 5
    assert work.num_distinct_tokens == work.num_context_tokens == 150
    assert work.num_new_tokens == 35


def test_sides_of_a_pair_follow_one_another():
    contexts = judge_contexts(None, None, 3)
    shared = [num_shared(a, b) for a, b in pairwise(contexts)]
    # Within a pair the prompt is shared too, besides the head of the template.
    assert len(contexts) == 6 and min(shared[::2]) > max(shared[1::2]) > 20


def test_pairs_of_rm_bench_take_its_styles_in_turn(tmp_path):
    row = {"prompt": "Why?", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    file = tmp_path / "some.json"
    file.write_text(json.dumps([row | {"id": i} for i in range(4)]))
    pairs = rmbench_pairs(file)
    assert [pair.chosen + pair.rejected for pair in pairs] == ["ax", "by", "cz", "ax"]
    assert len(judge_contexts(file, None, 2)) == 4
    with pytest.raises(ValueError, match=r"some.json: 4 pairs; --pairs 5 asks for more"):
        judge_contexts(file, None, 5)
    file.write_text(json.dumps([{"prompt": "Why?"}]))
    with pytest.raises(ValueError, match=r"some.json: not RM-Bench's rows"):
        rmbench_pairs(file)


# The engines


@pytest.fixture(scope="module")
def decoder():
    return apart.random_decoder(config(vocab_size=V))


@pytest.fixture(scope="module")
def engines(decoder):
    """All that are installed here; that they agree on greedy tokens is checked by `prepare`."""
    work = judging([[*range(9, 50), *range(i, i + 4 * i)] for i in range(2, 6)], 3, 1, V)
    engines, errors = prepare(list(CONTENDERS), lambda name: CONTENDERS[name](decoder), work)
    assert set(errors.values()) <= {"not installed"} and {"ours", "generate"} <= engines.keys()
    return engines


SHARED = list(range(40, 60))
UNEVEN = Work("", [[*SHARED, *range(k)] for k in (1, 3, 3, 9)], [(5, 1, 9), (2, 2, 2), (1, 12, 3), (4, 7, 6)])


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_every_engine_writes_the_lengths_that_it_is_given(name, engines):
    if name not in engines:
        pytest.skip("not installed")
    for arguments in [
        *engines[name].settings.values(),
        *([{"rows": 7}] if name in ("generate", "ctranslate2") else []),
    ]:
        for work in (UNEVEN, static(3, 12, 5, V)):
            written = engines[name].run(work, **arguments)
            check_lengths(written, work)
            assert all(0 <= token < V for samples in written for row in samples for token in row)
            assert len({tuple(row[:1]) for samples in written for row in samples}) > 1  # drawn, not the likeliest


def test_an_engine_that_computes_something_else_is_found(decoder):
    other = random_decoder(config(vocab_size=V), seed=1)
    with pytest.raises(ValueError, match="generate and ours differ in greedy tokens"):
        prepare(
            ["ours", "generate"], lambda name: CONTENDERS[name](decoder if name == "ours" else other),
            static(3, 12, 1, V),
        )  # fmt: skip


def test_an_engine_that_is_not_installed_or_fails_is_left_out(decoder):
    def make(name):
        if name == "ctranslate2":
            raise ModuleNotFoundError("No module named 'ctranslate2'")
        if name == "generate_batch":
            raise RuntimeError("no\nsuch device")
        return CONTENDERS[name](decoder)

    engines, errors = prepare(list(CONTENDERS), make, static(3, 12, 1, V))
    assert list(engines) == ["ours", "generate"]
    assert errors == {"ctranslate2": "not installed", "generate_batch": "RuntimeError: no such device"}


def test_an_engine_apart_writes_what_it_writes_here(decoder):
    work = static(3, 12, 5, V)
    engine = Apart(partial(apart.contender, "ours", config(vocab_size=V), "cpu"))
    try:
        here = CONTENDERS["ours"](decoder)
        for is_greedy in (True, False):  # noise is counter-based
            assert engine.run(work, is_greedy=is_greedy) == here.run(work, is_greedy=is_greedy)
        assert engine.counts == here.counts and engine.counts["num_decoded_tokens"] == 15
        # What it cannot run is told, and it goes on.
        with pytest.raises(EngineError, match=r"^ValueError: context 0 has token 96; the model has 96 tokens$"):
            engine.run(Work("", [[V]], [(1,)]))
        assert engine.run(work, is_greedy=True) == here.run(work, is_greedy=True)
    finally:
        engine.close()
    with pytest.raises(EngineError, match="its process has ended"):
        engine.run(work)


def test_a_wrong_length_is_told():
    check_lengths([[[1, 2], [3]]], Work("", [[1]], [(2, 1)]))
    with pytest.raises(ArithmeticError, match=r"wrote \(1, 2\) tokens where \(2, 1\) were asked for"):
        check_lengths([[[3], [1, 2]]], Work("", [[1]], [(2, 1)]))


# The measurement


class Fake:
    """Takes a given time for every run."""

    def __init__(self, clock, seconds, settings=("",), extra=0):
        self.clock, self.seconds, self.extra = clock, seconds, extra
        self.settings = {name: {"factor": factor} for factor, name in enumerate(settings, 1)}
        self.seen, self.counts = [], {}

    def run(self, work, factor):
        self.seen.append((work.contexts, factor))
        self.clock[0] += self.seconds * factor
        return [[[0] * (length + self.extra) for length in lengths] for lengths in work.lengths]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rollout_speed.time, "perf_counter", lambda: now[0])
    return now


def test_the_best_setting_of_each_engine_goes_on(clock):
    engines = {"ours": Fake(clock, 2.0), "slow": Fake(clock, 3.0, ("good", "bad")), "wrong": Fake(clock, 1.0, extra=1)}
    found = measure(engines, static(4, 10, 5, V), 3, "")["engines"]
    assert found["ours"]["tok_per_s"] == 10 and found["ours"]["s"] == [2, 2, 2]
    assert found["slow"]["tries"] == {"good": pytest.approx(20 / 3), "bad": pytest.approx(20 / 6)}
    assert found["slow"]["setting"] == "good" and found["slow"]["over_ours"] == 1.5
    assert found["wrong"]["error"] == "ArithmeticError: wrote (6,) tokens where (5,) were asked for"
    # Every turn has tokens of its own, the same for all engines.
    turns = [contexts for contexts, _ in engines["ours"].seen]
    assert all(a != b for a, b in pairwise(turns)) and len(turns) == 4
    assert [contexts for contexts, factor in engines["slow"].seen if factor == 1] == turns


def test_a_failure_of_ours_is_no_row_of_a_table(clock):
    with pytest.raises(ArithmeticError):
        measure({"ours": Fake(clock, 1.0, extra=1)}, static(4, 10, 5, V), 1, "")


SETTING = {
    "machine": {"device": "some CPU", "torch": "2", "threads": 2, "commit": "abc"}, "peers": {"transformers": "5"},
    "dtype": "float32", "repeats": 3, "data": "embedded", "shorten": 4,
}  # fmt: skip
RECORD = {
    "model": "10m", "num_parameters": 9_704_064, "workload": "judging", "num_contexts": 8, "num_sequences": 64,
    "num_context_tokens": 1000, "num_copied_tokens": 8000, "num_distinct_tokens": 400, "num_new_tokens": 5000,
    "longest": 321,
    "counts": {"num_prefilled_tokens": 500, "num_decoded_tokens": 5000, "num_steps": 400, "num_preemptions": 0},
    "engines": {
        "ours": {
            "error": None, "tries": {"": 490.0}, "setting": "", "tok_per_s": 500.0, "median_s": 10.0, "least_s": 9.0,
            "most_s": 12.0, "over_ours": 1.0,
        },
        "generate": {
            "error": None, "tries": {"8 rows": 90.0, "64 rows": 110.0}, "setting": "64 rows", "tok_per_s": 100.0,
            "median_s": 50.0, "least_s": 49.0, "most_s": 60.0, "over_ours": 5.0,
        },
        "ctranslate2": {"error": "not installed"},
    },
}  # fmt: skip


def test_a_table_says_what_was_measured():
    text = tables([RECORD], SETTING)
    assert "### 10m, judging" in text
    assert "8,000 with a copy per sample" in text
    assert "Ours computed 500 context tokens: 94% of the copies saved. It decoded 12.5 tokens a step" in text
    assert "| ours | default | 500 | 10.00 (9.00-12.00) | - | default: 490 |" in text
    assert "| generate | 64 rows | 100 | 50.00 (49.00-60.00) | 5.00 | 8 rows: 90, 64 rows: 110 |" in text
    assert "| ctranslate2 | - | - | - | - | not installed |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


# On a GPU


def test_a_step_reads_weights_once_and_contexts_once_per_group():
    shape = DecoderConfig(
        vocab_size=100, hidden_size=10, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    first = 1 + rollout_gpu._NUM_WARM
    own = 16 * sum(range(first, first + rollout_gpu._NUM_STEPS + 1)) / (rollout_gpu._NUM_STEPS + 1)  # on average
    wanted = 2 * (shape.num_parameters - 1000) + 2 * (2 * 3 * 4) * (2 * 50 + own)
    assert rollout_gpu.bytes_per_step(shape, 16, 50) == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "billions"), [("8b", 8.19), ("14b", 14.77)])
def test_large_shapes_are_those_of_qwen3(name, billions):
    assert rollout_gpu.MODELS[name].num_parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_table_of_decoding_says_what_did_not_fit():
    case = {"model": "8b", "num_samples": 256, "context": 4096}
    times = {"first_s": 3.2, "step_s": 0.02, "least_step_s": 0.019, "most_step_s": 0.03}
    text = decoding_table(
        [
            case | {"engine": "ours", "tok_per_s": 12_800, "floor_s": 0.01, "of_floor": 0.5, "outside": 0.07} | times,
            case | {"engine": "generate", "error": "out of memory"},
        ]
    )
    assert "| 8b | 256 | 4,096 | ours | 3.20 | 12,800 | 20.00 (19.00-30.00) | 10.00 | 50% | 7% |" in text
    assert "| 8b | 256 | 4,096 | generate | out of memory | - | - | - | - | - |" in text
    assert decoding_table([]) == ""


@pytest.mark.parametrize("name", rollout_gpu.ENGINES)
def test_decoding_is_timed_once_all_samples_decode(name, decoder, monkeypatch):
    monkeypatch.setattr(rollout_gpu, "_NUM_STEPS", 4)
    monkeypatch.setattr(rollout_gpu.torch.cuda, "synchronize", lambda: None)
    make, _ = rollout_gpu.ENGINES[name]
    record = rollout_gpu._measured(make(decoder), decoder.config, (16, 12), 2, 1e9)
    assert record["first_s"] > 0 and record["least_step_s"] <= record["step_s"] <= record["most_step_s"]
    assert record["tok_per_s"] == pytest.approx(16 / record["step_s"])
    floor_s = rollout_gpu.bytes_per_step(decoder.config, 16, 12) / 1e9
    assert record["of_floor"] == pytest.approx(floor_s / record["step_s"])


# The command


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    tiny = config(vocab_size=8192, num_hidden_layers=1, max_position_embeddings=4096)
    monkeypatch.setitem(rollout_speed.MODELS, "10m", tiny)
    monkeypatch.setattr(rollout_speed.torch.cuda, "is_available", lambda: False)
    arguments = ["--models", "10m", "--pairs", "1", "--rollouts", "2", "--repeats", "2", "--shorten", "32"]
    assert main(["rollout", *arguments, "--only", "generate", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "rollout.md").read_text()
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "rollout.json").read_text())
    assert found["repeats"] == 2 and found["peers"]["transformers"][0].isdigit() and "commit" in found["machine"]
    assert [record["workload"] for record in found["records"]] == ["judging", "static"]
    for record in found["records"]:
        assert list(record["engines"]) == ["ours", "generate"]
        assert all(len(engine["s"]) == 2 and engine["error"] is None for engine in record["engines"].values())
        assert set(record["engines"]["generate"]["tries"]) == set(Generate.settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "10m,7b"], "--models 7b: must be of 10m, 50m, 8b, 14b"),
        (["--models", "8b"], "--models 8b: needs a GPU; 10m, 50m run on a CPU"),
        (["--only", "vllm"], "--only vllm: must be of ours, generate, generate_batch, ctranslate2"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--rollouts", "0"], "--rollouts must be at least 1, got 0"),
        (["--pairs", "0"], "--pairs must be at least 1, got 0"),
        (["--data", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(rollout_speed.torch.cuda, "is_available", lambda: False)
    assert main(["rollout", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_lengths_that_are_shortened_to_nothing_are_one_line(capsys):
    assert main(["rollout", "--shorten", "5000"]) == 1
    assert capsys.readouterr().err.startswith("error: --shorten 5000: the shortest context has ")


def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path, capsys):
    file = Path(tmp_path / "tokenizer.json")
    file.write_text("{}")
    assert main(["rollout", "--tokenizer", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {file}: the tokenizer cannot be read: ")
