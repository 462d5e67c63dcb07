"""Pairwise judgments: which order was read, what was chosen in the pair's own order, and the majority."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.pair_accuracy import PairSampling, judge_pairs, judge_sampling, pair_accuracy, summary
from eval.pair_choices import PairChoices, read_choices
from kernels.philox import stream_seed
from patarm_core.pairs import Pair
from rollout.contexts import ContextBuilder, PromptConfig, load_rubrics
from rollout.params import Completion
from tests.strategies import judgment_text

UNCLOSED = "<think></think><generate_rubrics><eval></eval><answer>B</answer>"
TEXTS = [judgment_text("A"), judgment_text(" B "), judgment_text("C"), "no tags", UNCLOSED]
WRITTEN = {TEXTS[0]: "A", TEXTS[1]: "B", UNCLOSED: "B"}  # as evaluation reads them
N = 4
rows = st.lists(
    st.tuples(st.lists(st.sampled_from(TEXTS), min_size=N, max_size=N), st.booleans()), min_size=1, max_size=6
)


def pair(number: int) -> Pair:
    return Pair("Why?", f"sound {number}", f"flawed {number}", "chat", "here", str(number))


def read(texts, is_swapped, number=0, is_lenient=True) -> PairChoices:
    completions = [Completion([], text, None, None, None, "stop") for text in texts]
    return read_choices(pair(number), completions, is_swapped, "adaptive", is_lenient)


@given(rows, st.integers(1, N))
@example([([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[1]], True)], N)  # an even vote
@example([([TEXTS[2]] * N, False)], N)  # nothing to go by
def test_the_majority_of_unswapped_choices_decides(rows, votes):
    right = ties = unscored = 0
    for texts, is_swapped in rows:
        chose_chosen = chose_rejected = 0
        for text in texts[:votes]:
            if text in WRITTEN:
                if (WRITTEN[text] == "A") != is_swapped:
                    chose_chosen += 1
                else:
                    chose_rejected += 1
        if chose_chosen + chose_rejected == 0:
            unscored += 1
        elif chose_chosen == chose_rejected:
            ties += 1
        elif chose_chosen > chose_rejected:
            right += 1
    found = pair_accuracy([read(*row, number) for number, row in enumerate(rows)], votes)
    assert (found.num_right, found.num_ties, found.num_unscored) == (right, ties, unscored)
    assert (found.num_pairs, found.margin) == (len(rows), None)


def test_training_reads_strictly_and_evaluation_leniently():
    strict = read([UNCLOSED, TEXTS[1]], False, is_lenient=False)
    assert (strict.choices, [j.error for j in strict.judgments]) == ([None, "B"], ["tags", None])
    assert read([UNCLOSED, TEXTS[1]], False).choices == ["B", "B"]


def test_a_record_names_the_side_that_is_preferred():
    first, second, none = read([TEXTS[0], TEXTS[1], TEXTS[2]], is_swapped=True).records()
    assert (first["choice"], second["choice"], none["choice"]) == ("rejected", "chosen", None)
    assert none["error"] == "score" and first["is_swapped"] and first["judgment"] == TEXTS[0]


@pytest.fixture(scope="module")
def builder(tiny_files):
    from trainer.tiny import make_tokenizer

    book = load_rubrics(str(tiny_files["prompt.rubrics_file"]))
    return ContextBuilder(make_tokenizer(["Why? sound flawed"], 400), PromptConfig(template="bare"), book)


class Echo:
    """An engine that chooses the sound response wherever it stands, and remembers what it was asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def generate(self, contexts, params, progress):
        self.asked = list(zip(contexts, params, strict=True))
        texts = [self.tokenizer.decode(context) for context in contexts]
        answers = ["A" if text.index("sound") < text.index("flawed") else "B" for text in texts]
        return [
            [Completion([], judgment_text(answer), None, None, None, "stop")] * of.n
            for answer, of in zip(answers, params, strict=True)
        ]


def test_a_judge_that_knows_is_right_in_both_orders(builder):
    engine, pairs = Echo(builder.tokenizer), [pair(number) for number in range(12)]
    judged = judge_pairs(engine, builder, pairs, 3, seed=1, max_completion_tokens=9, mode="pairwise")
    assert pair_accuracy(judged, 3).num_right == 12
    assert {item.is_swapped for item in judged} == {True, False}
    assert {item.right_choice for item in judged} == {"A", "B"}
    assert len(engine.asked) == 12 and len({params.seed for _, params in engine.asked}) == 12
    assert summary(judged, [1, 3])["valid_rate"] == 1.0


def test_the_order_is_named_by_the_stream_and_the_pair_alone(builder):
    pairs = [pair(number) for number in range(64)]
    orders = []
    for seed in (1, 2):
        sampling = judge_sampling(2, seed, 9, mode="pairwise")
        orders.append([sampling.is_swapped(p) for p in pairs])
        assert orders[-1] == [bool(stream_seed("order", "judge", seed, "here", p.id) & 1) for p in pairs]
        assert 16 < sum(orders[-1]) < 48
    assert orders[0] != orders[1]


def test_a_pair_has_one_context_with_both_responses(builder):
    sampling = PairSampling(n=2, max_tokens=9, stream=("x",), mode="pairwise")
    for p in [pair(number) for number in range(8)]:
        (context,) = sampling.contexts(builder, p)
        sides = (p.rejected, p.chosen) if sampling.is_swapped(p) else (p.chosen, p.rejected)
        assert context == builder.pairwise(p.prompt, *sides, "chat", "")
        assert sampling.num_judgments == 2
        assert [of.n for _, of in sampling.requests(p, [context])] == [2]
