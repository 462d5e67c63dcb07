"""Two ranks and one queue: whoever draws a pair, and however slowly, the judgments are those of fixed shares."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eval.pair_accuracy import PairSampling, judge_pairs
from patarm_core.pairs import Pair, read_pairs
from rollout.contexts import ContextBuilder, PromptConfig, load_rubrics
from rollout.engine import Engine
from tests.tiny_runs import pair, write_jsonl
from trainer.distributed import World
from trainer.shared_rollout import SharedRollout
from trainer.token_tree import Leaf

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = PairSampling(n=3, max_tokens=24, stream=("rollout", 0, 1))
NUM_PAIRS = 14
ROWS = 6  # of an engine: one pair at a time

WORKER = """
import sys
from pathlib import Path
from tests.trainer import test_shared_rollout as test
from trainer.distributed import world
model, rubrics, data, out = map(Path, sys.argv[1:])
with world() as here:
    test.work(here, model, rubrics, data, out)
"""


def load(model: Path, rubrics: Path, data: Path) -> tuple[Engine, ContextBuilder, list[Pair]]:
    from rollout.engine import EngineConfig

    engine, book = Engine.from_pretrained(model, config=EngineConfig(max_rows=ROWS)), load_rubrics(str(rubrics))
    contexts = ContextBuilder(engine.tokenizer, PromptConfig(template="bare", rubrics="primary"), book)
    return engine, contexts, read_pairs(data.read_text().splitlines(), str(data), book.tasks)


def kept(pair, sides):
    return sides


def bits(sides) -> list:
    return [
        [
            (c.token_ids, c.text, c.finish_reason, *(x.tobytes() for x in (c.logprobs, c.drawn_logprobs, c.entropies)))
            for c in side
        ]
        for side in sides
    ]


def dealt(here: World):
    """Every other pair, as the trees of all of them tell that they are there."""

    def share(trees: list[list[Leaf]]) -> list[int]:
        assert [len(tree) for tree in trees] == [2 * SAMPLING.n] * NUM_PAIRS
        return here.share(list(range(len(trees))))

    return share


def work(here: World, model: Path, rubrics: Path, data: Path, out: Path) -> None:
    """What each of two processes does: a draw by equals, one with a slow rank 1, one that fails on rank 1."""
    torch.set_num_threads(1)
    engine, contexts, pairs = load(model, rubrics, data)
    shared = SharedRollout(contexts, here)
    before, step, results = here.store.num_keys(), engine.step, {}

    def slow_step():
        time.sleep(0.04)
        return step()

    for name, is_slow in (("equals", False), ("slow", here.rank == 1)):
        engine.step = slow_step if is_slow else step
        drawn = shared.draw(engine, pairs, SAMPLING, kept)
        metrics = shared.wait(drawn)
        mine = {i: (contexts, bits(sides)) for i, (contexts, sides) in shared.of_my_share(drawn, dealt(here)).items()}
        everything = shared.of_all_pairs(drawn)
        results[name] = {
            "took": list(drawn.of_pair), "metrics": metrics, "mine": mine,
            "all": [bits(sides) for sides in everything],
        }  # fmt: skip
    here.gather(None)  # the last queue is removed
    results["keys"] = here.store.num_keys() - before
    (out / f"{here.rank}.pickle").write_bytes(pickle.dumps(results))
    # From here on rank 1 fails in its fifth step, when rank 0 has most of the pairs still before it.
    engine.step, steps = slow_step, []

    def fails():
        steps.append(len(steps))
        if len(steps) == 5:
            raise ValueError("the logits of pair 3 are nan")
        return slow_step()

    if here.rank == 1:
        engine.step = fails
        (out / "failing").write_text(str(time.time()))
    drawn = shared.draw(engine, pairs, SAMPLING, kept)
    (out / f"{here.rank}.drawn").write_text(json.dumps(len(drawn.of_pair)))
    shared.wait(drawn)


@pytest.fixture(scope="module")
def two(tiny_files, tiny_judge, tmp_path_factory):
    """(what each rank found, the arguments of `load`, folder, how torchrun ended)."""
    out = tmp_path_factory.mktemp("shared")
    rows = [pair(i) for i in range(NUM_PAIRS)]
    for i, row in enumerate(rows):  # unequal lengths
        row["prompt"] += " Please." * (i * 5 % NUM_PAIRS)
    data = write_jsonl(out / "pairs.jsonl", rows)
    files = tiny_judge, tiny_files["prompt.rubrics_file"], data
    (out / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(out / "worker.py"), *map(str, files), str(out)], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, timeout=200,
    )  # fmt: skip
    end = time.time()
    ranks = [out / f"{rank}.pickle" for rank in (0, 1)]
    assert all(file.is_file() for file in ranks), done.stderr
    return [pickle.loads(file.read_bytes()) for file in ranks], files, out, (done.returncode, done.stderr, end)


@pytest.fixture(scope="module")
def plain(two):
    """By fixed shares of the pairs in their order, one engine and one call each: (contexts, bits) by pair."""
    engine, contexts, pairs = load(*two[1])
    found = [None] * len(pairs)
    for rank in (0, 1):
        share = range(rank, len(pairs), 2)
        requests = [r for i in share for r in SAMPLING.requests(pairs[i], contexts.sides(pairs[i]))]
        completions = engine.generate([context for context, _ in requests], [params for _, params in requests])
        for place, i in enumerate(share):
            found[i] = contexts.sides(pairs[i]), bits(completions[2 * place : 2 * place + 2])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equals", "slow"])
def test_two_ranks_draw_what_fixed_shares_draw_to_the_bit(two, plain, name):
    for rank, results in enumerate(two[0]):
        assert results[name]["all"] == [sides for _, sides in plain]
        assert results[name]["mine"] == {i: plain[i] for i in range(rank, len(plain), 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equals", "slow"])
def test_every_pair_is_drawn_once_and_the_metrics_say_by_whom(two, name):
    took = [results[name]["took"] for results in two[0]]
    assert sorted(took[0] + took[1]) == list(range(NUM_PAIRS))
    for results in two[0]:
        assert results[name]["metrics"]["pairs_by_rank"] == [len(taken) for taken in took]
        assert 0 <= results[name]["metrics"]["rollout_idle_share"] < 0.5
    assert two[0][0][name]["metrics"] == two[0][1][name]["metrics"]


@pytest.mark.slow
def test_a_slow_rank_takes_fewer_pairs(two):
    fast, slow = two[0][0]["slow"]["metrics"]["pairs_by_rank"]
    assert fast > slow > 0


@pytest.mark.slow
def test_the_store_is_left_as_it_was(two):
    # Gathers of objects of new sizes may leave keys of gloo's own, queues leave none.
    assert [results["keys"] for results in two[0]] == [0, 0]


@pytest.mark.slow
def test_a_failure_on_one_rank_ends_both(two):
    _, _, out, (code, stderr, end) = two
    assert code != 0
    # Only the rank that has failed tells it, and not that it has lost its peer.
    told = [line for line in stderr.splitlines() if line.startswith("[rank") and "Error: " in line]
    assert told == ["[rank1]: ValueError: the logits of pair 3 are nan"], stderr
    assert not (out / "1.drawn").exists()
    left = out / "0.drawn"  # unless it was stopped before
    assert not left.exists() or json.loads(left.read_text()) < NUM_PAIRS / 2  # it began no more pairs
    assert end - float((out / "failing").read_text()) < 20


def alone() -> World:
    return World(0, 1, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def files(tiny_files, tiny_judge, tmp_path_factory):
    rows = [pair(i) for i in range(6)]
    for i, row in enumerate(rows):
        row["prompt"] += " Please." * (i * 5 % 6)
    rows[4]["task"] = "math"
    rubrics = tmp_path_factory.mktemp("rubrics") / "rubrics.toml"
    text = tiny_files["prompt.rubrics_file"].read_text()
    rubrics.write_text(text + text.replace("[[chat]]", "[[math]]"))
    return tiny_judge, rubrics, write_jsonl(rubrics.with_name("pairs.jsonl"), rows)


def test_one_rank_needs_no_process_group_and_begins_with_the_longest(files):
    engine, contexts, pairs = load(*files)
    shared = SharedRollout(contexts, alone())
    begun, submit = [], engine.submit

    def watched(context, params):
        begun.append(list(context))
        return submit(context, params)

    engine.submit = watched
    drawn = shared.draw(engine, pairs, SAMPLING, kept)
    assert shared.wait(drawn) == {"pairs_by_rank": [6], "rollout_idle_share": 0.0}
    sides = [contexts.sides(pair) for pair in pairs]
    order = sorted(range(6), key=lambda i: -sum(map(len, sides[i])))
    assert begun == [list(context) for i in order for context in sides[i]]
    expected = [r for p in pairs for r in SAMPLING.requests(p, contexts.sides(p))]
    completions = load(*files)[0].generate(*zip(*expected))
    assert {i: (c, bits(s)) for i, (c, s) in shared.of_my_share(drawn, None).items()} == {
        i: (sides[i], bits(completions[2 * i : 2 * i + 2])) for i in range(len(pairs))
    }


def test_a_task_whose_judgments_were_long_goes_first(files):
    _, contexts, pairs = load(*files)
    shared = SharedRollout(contexts, alone())
    sides = [contexts.sides(pair) for pair in pairs]
    by_context = sorted(range(6), key=lambda i: (-sum(map(len, sides[i])), i))
    assert shared._order(pairs, sides, SAMPLING) == by_context  # nothing is known: all may take the most
    assert by_context[0] != 4
    shared._tokens.update(chat=50, math=200)
    shared._completions.update(chat=10, math=10)
    assert shared._order(pairs, sides, SAMPLING) == [4, *(i for i in by_context if i != 4)]


def test_lengths_are_learned_from_what_was_drawn(files):
    engine, contexts, pairs = load(*files)
    shared = SharedRollout(contexts, alone())
    drawn = shared.draw(engine, pairs, SAMPLING, kept)
    assert shared._expected_tokens("chat", 24) == 24
    shared.wait(drawn)
    for task in ("chat", "math"):
        lengths = [
            len(c.token_ids) for i, s in drawn.of_pair.items() if pairs[i].task == task for side in s for c in side
        ]
        assert shared._expected_tokens(task, 24) == sum(lengths) / len(lengths)
    assert shared._expected_tokens("code", 24) == 24


def test_judging_during_training_draws_what_the_command_draws(files, one_process):
    """`eval/main.py pairs` gives the numbers of a run's report again."""
    from tests import tiny_runs
    from trainer.learner import Learner
    from trainer.replica import JudgeReplica

    engine, contexts, pairs = load(*files)
    recipe = tiny_runs.recipe_of({"out": "unused", "seed": 5, "rollout.max_completion_tokens": 24})
    replica = JudgeReplica(recipe, engine.decoder.config, contexts, one_process)
    learner = Learner(files[0], recipe.model, recipe.sft.optim, 1, one_process)
    assert replica.judge(learner, pairs, 3) == judge_pairs(engine, contexts, pairs, 3, 5, 24)
