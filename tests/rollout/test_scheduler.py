"""The scheduler's steps, simulated: each token finds its own past on its pages, no page is lost, all requests finish.

What holds at all times is checked by `Simulation`.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout.params import SamplingParams
from rollout.prefix_tree import Node
from tests.simulated_steps import Prefixes, Simulation, make_scheduler, shared_context


def random_scheduler(rng: np.random.Generator, num_pages: int):
    page_size = int(rng.choice([1, 2, 4, 8]))
    return make_scheduler(
        num_pages,
        page_size,
        max_rows=int(rng.integers(1, 7)),
        max_step_tokens=int(rng.integers(1, 20)),
        block_size=page_size * int(rng.choice([1, 2, 4])),
    )


def submit_random(run: Simulation, rng: np.random.Generator, max_length: int = 30) -> bool:
    """False if the pool has no room for it."""
    context = shared_context(rng, max_length)
    n, max_tokens, seed = (int(rng.integers(1, most)) for most in (6, 20, 1 << 40))
    try:
        run.submit(context, n=n, max_tokens=max_tokens, seed=seed)
    except ValueError:
        return False
    return True


def assert_nothing_is_left(run: Simulation) -> None:
    """Every page is free, or held by contexts that nobody uses."""
    pool, tree = run.scheduler.pool, run.scheduler.tree
    held = {page for node in tree for page in node.pages}
    assert not run.scheduler.running and not any(node.num_users for node in tree)
    assert pool.num_free + len(held) == pool.num_pages - 1
    while tree.evict():
        pass
    assert pool.num_free == pool.num_pages - 1


def test_ten_thousand_random_events():
    events = Counter()
    for seed in range(230):
        rng = np.random.default_rng(seed)
        run = Simulation(random_scheduler(rng, num_pages=int(rng.integers(3, 24))), look_ahead=seed % 2 == 1)
        for event in rng.choice(
            ["submit", "cancel", "forget", "fail", "step"], size=150, p=[0.33, 0.07, 0.02, 0.02, 0.56]
        ):
            if event == "submit" and len(run.open) < 8:
                submit_random(run, rng)
            elif event == "cancel" and run.open:
                run.cancel(run.open[rng.integers(len(run.open))])
            elif event in ("forget", "fail", "step"):
                getattr(run, event)()
        run.finish()
        assert_nothing_is_left(run)
        events += run.events
    del events["step"]
    assert events.total() >= 10_000 and len(events) == 9 and min(events.values()) >= 10, events


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_every_shared_token_is_computed_once(seed, num_requests):
    rng = np.random.default_rng(seed)
    run = Simulation(random_scheduler(rng, num_pages=3000))
    prefixes, num_tokens, requests = Prefixes(), 0, []
    for _ in range(num_requests):
        context = shared_context(rng, 60)
        requests.append(run.submit(context, n=int(rng.integers(1, 5)), max_tokens=9, seed=seed))
        prefixes.of(context[:-1])
        num_tokens += len(context)
        for _ in range(rng.integers(0, 6)):
            run.step()
    run.finish()
    counts = run.scheduler.counts
    assert counts.num_prefilled_tokens == len(prefixes)
    assert (counts.num_requests, counts.num_context_tokens) == (num_requests, num_tokens)
    assert counts.num_decoded_tokens == sum(len(c.token_ids) for request in requests for c in request.completions)
    assert counts.num_recomputed_tokens == counts.num_preemptions == 0
    assert counts.num_steps == run.events["step"]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), st.integers(1, 4), st.integers(0, 99),
)  # fmt: skip
@example([(1, 1, 1)], 8, 1, 1, 0)
@example([(17, 8, 3), (9, 12, 3), (18, 7, 3)], 8, 1, 3, 0)
def test_what_is_accepted_finishes_in_the_smallest_pool(requests, page_size, blocks, max_rows, seed):
    def num_pages(length, max_tokens):
        return -(-(length - 1) // page_size) + -(-max_tokens // page_size) + 1

    smallest = max(num_pages(length, max_tokens) for length, max_tokens, _ in requests) + 1
    run = Simulation(make_scheduler(smallest, page_size, max_rows, 16, blocks * page_size))
    rng = np.random.default_rng(seed)
    for length, max_tokens, n in requests:
        run.submit(shared_context(rng, length, num_trunks=1), n=n, max_tokens=max_tokens, seed=seed)
    run.finish()
    assert_nothing_is_left(run)


def test_refuses_what_has_no_room():
    scheduler = make_scheduler(num_pages=6)
    scheduler.submit([1] * 17, SamplingParams(max_tokens=16))
    with pytest.raises(ValueError) as error:
        scheduler.submit([1] * 18, SamplingParams(max_tokens=16))
    assert str(error.value) == "a context of 18 tokens and 16 more need 6 pages of 8 tokens; the cache has 5"
    assert scheduler.counts.num_requests == len(scheduler.waiting) == 1


def test_a_path_in_pieces_starts_over_in_one():
    """Twelve tokens cut after 3, 5 and 9 hold pages twice where they meet: more than the pool has beside a sample."""
    run = Simulation(make_scheduler(num_pages=7, page_size=4, max_rows=1))
    text = list(range(1, 14))
    for length in (4, 6, 10):
        run.submit(text[:length], max_tokens=1)
    run.finish()
    run.submit(text, max_tokens=8, seed=1)
    run.finish()
    # Cut in pieces again by others, that wait until it has ended.
    run.submit(text, max_tokens=8, seed=1)
    for length in (4, 6, 10):
        run.submit(text[:length], max_tokens=1)
    run.finish()
    assert_nothing_is_left(run)


# In order


def test_the_oldest_samples_run_and_the_youngest_give_way():
    """Two samples of a request and one of another have a page each; the first that needs another takes the last's."""
    run = Simulation(make_scheduler(num_pages=5, page_size=4))
    first = run.submit([1], n=2, max_tokens=8, seed=1)
    second = run.submit([2], n=1, max_tokens=8, seed=2)
    for _ in range(4):
        run.step()
    assert [sample.request for sample in run.scheduler.running] == [first, first, second]
    run.step()
    assert [sample.request for sample in run.scheduler.running] == [first, first]
    assert len(second.samples[0].token_ids) == 4 and run.events["preempt"] == 1
    run.finish()
    assert run.scheduler.counts.num_recomputed_tokens == 5  # its context's last token and those it had drawn


def test_what_gave_way_goes_on_with_its_tokens():
    ample, tight = (Simulation(make_scheduler(num_pages, page_size=4)) for num_pages in (200, 8))
    for run in (ample, tight):
        run.requests = [run.submit([1, 2, 3, i], n=3, max_tokens=12, seed=i) for i in range(4)]
        run.finish()
    assert tight.events["preempt"] > 3
    for one, other in zip(ample.requests, tight.requests, strict=True):
        assert [c.token_ids for c in one.completions] == [c.token_ids for c in other.completions]


def test_a_request_waits_until_its_context_has_room():
    run = Simulation(make_scheduler(num_pages=9, page_size=4))
    first = run.submit([1], max_tokens=12)
    run.step()
    second = run.submit([2] * 25, max_tokens=4)
    while not first.is_finished:
        run.step()
        assert first.is_finished or list(run.scheduler.waiting) == [second]
    run.finish()
    assert not run.events["preempt"]


def test_a_sample_waits_until_it_has_room_to_go_on():
    """Two samples of up to four pages in a pool of five: one gives way, once."""
    run = Simulation(make_scheduler(num_pages=6, page_size=4))
    for token in (1, 2):
        run.submit([token], max_tokens=16, seed=0)
    run.finish()
    assert run.events["preempt"] == 1 and run.scheduler.counts.num_recomputed_tokens == 9


def test_samples_come_before_contexts_in_a_step():
    run = Simulation(make_scheduler(num_pages=100, max_rows=4, max_step_tokens=10))
    run.submit([1], n=3, max_tokens=20, seed=0)
    run.step()
    run.submit([2] * 36, max_tokens=1)
    steps = []
    run.forward = lambda step, *_: steps.append((len(step.rows), [len(chunk.tokens) for chunk in step.chunks]))
    run.finish()
    # The other's 35 tokens, as many at a time as three samples leave.
    assert steps[:5] == [(3, [7])] * 5
    assert not any(chunks for _, chunks in steps[5:])


def test_parts_of_two_contexts_share_a_step_but_not_the_run_they_have_in_common():
    run = Simulation(make_scheduler(num_pages=100, max_step_tokens=24))
    run.submit([1] * 16 + [2] * 8 + [9], max_tokens=1)
    run.submit([1] * 16 + [3] * 8 + [9], max_tokens=1)
    run.submit([4] * 8 + [9], max_tokens=1)
    steps = []
    run.forward = lambda step, *_: steps.append([(chunk.tokens[0], len(chunk.tokens)) for chunk in step.chunks])
    run.step()
    run.step()
    assert steps == [[(1, 16), (4, 8)], [(2, 8), (3, 8)]]


def test_copies_a_page_where_two_samples_part():
    """Both go on from token 9 of a page of eight: each has its own page there, the context keeps its."""
    run = Simulation(make_scheduler(num_pages=20))
    copies = []
    run.forward = lambda step, *_: copies.append(dict(step.copies))
    run.submit(list(range(1, 12)), n=2, max_tokens=4, seed=3)
    run.step()
    (context_page,) = next(iter(run.scheduler.tree)).pages[1:]
    run.step()
    own = [sample.pages[0] for sample in run.scheduler.running]
    assert copies == [{}, {page: context_page for page in own}] and len({context_page, *own}) == 3


# Planned ahead


def ahead_of(*contexts: list[int], num_pages: int = 100, max_rows: int = 8, **params) -> Simulation:
    """Requests whose samples all run, the first token of each drawn."""
    run = Simulation(make_scheduler(num_pages, page_size=4, max_rows=max_rows))
    for seed, context in enumerate(contexts):
        run.submit(context, seed=seed, **params)
    while not all(sample.token_ids for sample in run.scheduler.running) or not run.scheduler.running:
        run.step()
    return run


def test_ahead_are_the_same_rows_one_position_on():
    run = ahead_of([1], [2], n=2, max_tokens=9)
    step = run.scheduler.plan()
    following = run.scheduler.plan_ahead(step)
    assert following.rows == step.rows and following.places == [0, 1, 2, 3] and not following.chunks
    assert (step.ahead, following.ahead) == (0, 1)


def test_ahead_rows_that_end_for_certain_are_left_out():
    run = ahead_of([1], n=1, max_tokens=3)
    run.submit([2], n=1, max_tokens=9, seed=5)
    run.step()
    step = run.scheduler.plan()
    assert [len(sample.token_ids) for sample in step.rows] == [2, 1]
    following = run.scheduler.plan_ahead(step)
    assert following.rows == step.rows[1:] and following.places == [1]


def test_ahead_is_nothing_if_all_rows_end_for_certain():
    run = ahead_of([1], n=3, max_tokens=2)
    assert run.scheduler.plan_ahead(run.scheduler.plan()) is None


@pytest.mark.parametrize("context", [[3], [3] * 9])
def test_ahead_is_nothing_while_others_can_start(context):
    """A request that has come, with a context to fill in or without; unless there is no row for it."""
    for max_rows, is_free in ((8, True), (2, False)):
        run = ahead_of([1], n=2, max_tokens=9, max_rows=max_rows)
        step = run.scheduler.plan()
        run.submit(context, max_tokens=9)
        assert (run.scheduler.plan_ahead(step) is None) == is_free


def test_ahead_is_nothing_beside_a_context_that_is_filled_in():
    run = Simulation(make_scheduler(num_pages=100, max_step_tokens=8))
    run.submit([1], max_tokens=20, seed=1)
    run.submit([2] * 12, max_tokens=9)
    run.step()
    step = run.scheduler.plan()
    assert step.chunks and run.scheduler.plan_ahead(step) is None


def test_ahead_takes_free_pages_and_those_of_idle_contexts_but_no_sample_s():
    """Rows that cross into a new page take it ahead; where there is none but another sample's, nobody gives way."""
    run = ahead_of([1], [2], n=1, max_tokens=12, num_pages=5)  # two samples, a page each, and two more
    run.step()
    run.step()
    pool, step = run.scheduler.pool, run.scheduler.plan()
    assert pool.num_free == 2 and all(sample.num_computed == 3 for sample in step.rows)
    assert run.scheduler.plan_ahead(step).rows == step.rows
    assert pool.num_free == 0 and all(len(sample.pages) == 2 for sample in step.rows)
    for holder in run.scheduler.running:
        holder.num_computed += 4
        holder.token_ids += [1] * 4
    assert run.scheduler.plan_ahead(step) is None and run.scheduler.counts.num_preemptions == 0


def test_ahead_finds_the_pages_of_contexts_that_nobody_uses():
    run = Simulation(make_scheduler(num_pages=6, page_size=4))
    run.submit([7] * 9, max_tokens=1)
    run.finish()
    assert run.scheduler.tree.num_idle_pages == 2
    run.submit([1], n=2, max_tokens=8, seed=1)
    for _ in range(3):
        run.step()
    step = run.scheduler.plan()
    assert run.scheduler.pool.num_free == 1 and run.scheduler.plan_ahead(step).rows == step.rows
    assert run.scheduler.tree.num_idle_pages == 0


def test_wants_more_while_rows_are_left():
    scheduler = make_scheduler(num_pages=20, max_rows=3)
    assert scheduler.wants_more
    scheduler.submit([1], SamplingParams(n=2, max_tokens=1))
    assert scheduler.wants_more
    request = scheduler.submit([1], SamplingParams(n=1, max_tokens=1))
    assert not scheduler.wants_more
    scheduler.cancel(request)
    assert scheduler.wants_more


def test_cancelling_twice_or_too_late_changes_nothing():
    run = Simulation(make_scheduler(num_pages=20))
    done = run.submit([1, 2], max_tokens=1)
    run.finish()
    gone = run.submit([1, 2], n=2, max_tokens=9, seed=1)
    run.step()
    run.cancel(gone)
    for request in (done, gone):
        run.scheduler.cancel(request)
    assert done.is_finished and gone.is_cancelled and not gone.is_finished
    assert_nothing_is_left(run)


def test_contexts_stay_until_their_pages_are_needed():
    run = Simulation(make_scheduler(num_pages=12, page_size=4))
    for token in (1, 2, 1):
        run.submit([token] * 9, max_tokens=1)
        run.finish()
    assert run.scheduler.counts.num_prefilled_tokens == 16  # two of them; the third was there
    run.submit([3] * 29, max_tokens=1)  # takes the pages of the one that was used longest ago
    run.finish()
    assert {node.tokens[0] for node in run.scheduler.tree if isinstance(node, Node)} == {1, 3}
