import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.pairs import Pair
from patarm_core.sampling import PairRandomSampler, PairStream, flip_sides

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@given(sizes, sizes, seeds, st.integers(1, 5))
def test_an_epoch_deals_every_pair_once_over_all_ranks(num_pairs, pairs_per_step, seed, world_size):
    ranks = [
        PairRandomSampler(num_pairs, pairs_per_step, seed, rank, world_size, epochs=1) for rank in range(world_size)
    ]
    dealt = list(zip(*ranks, strict=True))
    assert len(dealt) == ranks[0].steps_per_epoch == ranks[0].num_steps
    assert sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(dealt))) == list(range(num_pairs))
    for step, shares in enumerate(dealt):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert sorted(itertools.chain.from_iterable(shares)) == sorted(ranks[0].global_step(step))
    assert all(len(ranks[0].global_step(step)) == pairs_per_step for step in range(len(dealt) - 1))


@given(sizes, sizes, seeds, st.integers(0, 30), st.integers(1, 4))
def test_a_restored_sampler_goes_on_where_it_was_saved(num_pairs, pairs_per_step, seed, steps_done, world_size):
    whole = PairRandomSampler(num_pairs, pairs_per_step, seed)
    expected = list(itertools.islice(whole, steps_done + 5))[steps_done:]
    saved = PairRandomSampler(num_pairs, pairs_per_step, seed)
    for _ in itertools.islice(saved, steps_done):
        pass
    resumed = [PairRandomSampler(num_pairs, pairs_per_step, seed, rank, world_size) for rank in range(world_size)]
    for sampler in resumed:
        sampler.load_state_dict(saved.state_dict())
    for step, batch in enumerate(expected):
        shares = [next(iter(sampler)) for sampler in resumed]
        assert [shares[i % world_size][i // world_size] for i in range(len(batch))] == batch, step


def test_the_position_is_exact_at_the_end_of_an_epoch():
    sampler = PairRandomSampler(5, 2, seed=0, epochs=2)
    first = list(itertools.islice(sampler, 3))
    assert sampler.state_dict() == {"step": 3, "seed": 0, "num_pairs": 5, "pairs_per_step": 2}
    second = list(sampler)
    assert [len(batch) for batch in first + second] == [2, 2, 1, 2, 2, 1]
    for epoch in (first, second):
        assert sorted(itertools.chain.from_iterable(epoch)) == [0, 1, 2, 3, 4]
    assert list(sampler) == []


def test_a_state_saved_during_a_step_continues_after_it():
    sampler = PairRandomSampler(6, 2, seed=0)
    for _ in sampler:
        assert sampler.state_dict()["step"] == 1
        break


def test_the_order_is_the_same_on_every_machine():
    sampler = PairRandomSampler(8, 8, seed=1)
    epochs = [[5, 6, 1, 2, 3, 4, 7, 0], [6, 7, 0, 5, 1, 4, 2, 3]]
    assert [sampler.global_step(step) for step in (0, 1, 0)] == [*epochs, epochs[0]]
    assert PairRandomSampler(8, 8, seed=2).global_step(0) not in epochs


def test_the_global_generator_is_left_alone():
    random.seed(0)
    state = random.getstate()
    next(iter(PairRandomSampler(8, 2, seed=1)))
    assert random.getstate() == state


def test_a_rank_may_have_no_pair():
    assert [next(iter(PairRandomSampler(1, 4, 0, rank, 3))) for rank in range(3)] == [[0], [], []]


@given(sizes, seeds, st.lists(st.integers(1, 40), max_size=6), st.sets(st.integers(0, 39)))
def test_a_stream_deals_the_samplers_epochs_pair_by_pair(num_pairs, seed, counts, seen):
    stream, sampler = PairStream(num_pairs, seed), PairRandomSampler(num_pairs, num_pairs, seed)
    flat = [pair for epoch in range(20) for pair in sampler.global_step(epoch)]
    seen = {pair for pair in seen if pair < num_pairs}
    for count in counts:
        before, taken = stream.position, stream.take(count, seen)
        passed = flat[before : stream.position]
        assert len(taken) == len(set(taken)) == min(count, num_pairs - len(seen))
        assert taken == list(dict.fromkeys(pair for pair in passed if pair not in seen))
        assert not taken or passed[-1] == taken[-1]  # no further than it must
    copy = PairStream(num_pairs, seed)
    copy.load_state_dict(stream.state_dict())
    assert copy.take(5) == stream.take(5)


def test_the_state_of_another_stream_is_refused():
    stream = PairStream(8, seed=0)
    with pytest.raises(ValueError, match="was saved with seed=1, but this run has seed=0"):
        stream.load_state_dict(PairStream(8, seed=1).state_dict())
    with pytest.raises(ValueError, match="has position=-1, which is negative"):
        stream.load_state_dict(stream.state_dict() | {"position": -1})
    with pytest.raises(ValueError, match="num_pairs must be at least 1, got 0"):
        PairStream(0, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "the sampler state was saved with seed=7, but this run has seed=0"),
        ({"num_pairs": 9}, "the sampler state was saved with num_pairs=9, but this run has num_pairs=8"),
        ({"pairs_per_step": 4}, "the sampler state was saved with pairs_per_step=4, but this run has pairs_per_step=2"),
        ({"step": -1}, "the sampler state has step=-1, which is negative"),
    ],
)
def test_the_state_of_another_run_is_refused(change, message):
    sampler = PairRandomSampler(8, 2, seed=0)
    with pytest.raises(ValueError) as error:
        sampler.load_state_dict(sampler.state_dict() | change)
    assert str(error.value) == message
    assert sampler.state_dict()["step"] == 0


def test_a_state_without_its_keys_is_refused():
    with pytest.raises(ValueError, match="has the keys step, seed, num_pairs, pairs_per_step, got step"):
        PairRandomSampler(8, 2, seed=0).load_state_dict({"step": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"pairs_per_step": 0}, "pairs_per_step must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must lie in 0 … world_size - 1 = 1, got 2"),
        ({"epochs": -1}, "epochs must not be negative, got -1"),
    ],
)
def test_a_sampler_of_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        PairRandomSampler(**{"num_pairs": 4, "pairs_per_step": 2, "seed": 0} | arguments)
    assert str(error.value) == message


def test_a_step_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="there is no step 4; steps run from 0 to num_steps = 4, exclusive"):
        PairRandomSampler(4, 2, seed=0, epochs=2).global_step(4)


pair_lists = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 99).map(str)), unique=True, max_size=30
).map(lambda keys: [Pair("p", f"good {key}", f"bad {key}", "chat", *key) for key in keys])
shares = st.floats(0, 1)


@given(pair_lists, shares, seeds)
def test_exactly_the_asked_share_is_flipped(pairs, share, seed):
    noisy, flipped = flip_sides(pairs, share, seed)
    assert sum(flipped) == round(share * len(pairs))
    for before, after, is_flipped in zip(pairs, noisy, flipped, strict=True):
        sides = (before.rejected, before.chosen) if is_flipped else (before.chosen, before.rejected)
        assert (after.chosen, after.rejected) == sides
        assert (after.prompt, after.task, after.source, after.id) == ("p", "chat", before.source, before.id)


@given(pair_lists, shares, shares, seeds)
def test_more_noise_flips_a_superset(pairs, one, other, seed):
    few, many = (flip_sides(pairs, share, seed)[1] for share in sorted([one, other]))
    assert all(in_many for in_few, in_many in zip(few, many, strict=True) if in_few)


@given(pair_lists, shares, seeds, st.randoms(use_true_random=False))
def test_the_flips_do_not_depend_on_the_order(pairs, share, seed, generator):
    moved = generator.sample(pairs, len(pairs))
    assert set(flip_sides(moved, share, seed)[0]) == set(flip_sides(pairs, share, seed)[0])


def test_another_seed_flips_other_pairs():
    pairs = [Pair("p", "c", "r", "chat", "s", str(i)) for i in range(40)]
    assert flip_sides(pairs, 0.5, 0)[1] != flip_sides(pairs, 0.5, 1)[1]


def test_noise_that_is_not_defined_is_refused():
    pair = Pair("p", "c", "r", "chat", "s", "1")
    with pytest.raises(ValueError, match=r"the share of flipped pairs must lie in \[0, 1\], got 1.5"):
        flip_sides([pair], 1.5, 0)
    with pytest.raises(ValueError, match=r"label noise needs distinct \(source, id\), but \('s', '1'\) occurs twice"):
        flip_sides([pair, pair], 0.5, 0)
