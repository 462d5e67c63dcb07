"""The engine against an engine that is slow and obviously right. In other company: `test_engine_company`.

V vocabulary   T tokens
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.decoder import all_logits, causal_attention
from rollout.engine import Engine, EngineConfig
from rollout.params import SamplingParams
from rollout.stops import StopFinder
from rollout.vocabulary import load_tokenizer, token_texts
from rollout.weights import load_weights_, save_decoder
from tests.models import tokenizer
from tests.slow_engine import (
    ENDS,
    V,
    assert_identical,
    assert_same,
    context,
    decoder,
    requests,
    slow_completions,
)


@pytest.fixture(scope="module")
def engine():
    return Engine(decoder(), tokenizer())


# The slow engine


@pytest.mark.parametrize("length", [1, 31, 32, 33, 70])  # around the padding of contexts
def test_greedy_is_the_largest_logit_of_a_full_forward_pass(engine, length):
    params = SamplingParams(n=1, max_tokens=30, temperature=0)
    (completions,) = engine.generate([context(length)], params)
    assert_same(completions, slow_completions(engine.decoder, context(length), params))
    assert (completions[0].drawn_logprobs == 0).all()


def test_recorded_logprobs_are_those_of_a_full_forward_pass(engine):
    lengths = [3, 40, 90]
    for length, completions in zip(
        lengths, engine.generate([context(x) for x in lengths], SamplingParams(n=5, max_tokens=80, seed=3)), strict=True
    ):
        for completion in completions:
            token_1T = torch.tensor([context(length) + completion.token_ids])
            with torch.no_grad():
                logits_1TV = engine.decoder(
                    token_1T, torch.arange(token_1T.shape[1])[None], causal_attention, all_logits
                )
            logprob_TV = logits_1TV[0, length - 1 : -1].log_softmax(-1)
            logprob_T = logprob_TV.gather(1, token_1T[0, length:, None])[:, 0]
            entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
            np.testing.assert_allclose(completion.logprobs, logprob_T, atol=1e-5)
            np.testing.assert_allclose(completion.entropies, entropy_T, atol=1e-5)
            assert completion.drawn_logprobs.tobytes() == completion.logprobs.tobytes()


# In float64, so that no rounding decides a draw and tokens can be compared.
DOUBLE = decoder(seed=5, dtype=torch.float64, num_hidden_layers=2)


@settings(max_examples=20)
@given(requests, st.sampled_from([1, 16, 512]))
def test_matches_the_slow_engine(requests, max_rows):
    engine = Engine(DOUBLE, tokenizer(), EngineConfig(max_rows=max_rows))
    contexts, params = zip(*requests, strict=True)
    for completions, one_context, one_params in zip(engine.generate(contexts, params), contexts, params, strict=True):
        assert_same(completions, slow_completions(DOUBLE, one_context, one_params))


def test_long_completions_outgrow_the_first_room_of_the_cache():
    params = SamplingParams(n=3, max_tokens=150, seed=1)
    (completions,) = Engine(DOUBLE, tokenizer()).generate([context(20)], [params])
    assert max(len(completion.token_ids) for completion in completions) > 130
    assert_same(completions, slow_completions(DOUBLE, context(20), params))


def test_fewer_samples_are_the_first_of_more(engine):
    """Sample i has its own noise: the tokens of n = 3 are those of n = 8 to rounding."""
    few, many = (engine.generate([context(20)], [SamplingParams(n=n, max_tokens=20, seed=4)])[0] for n in (3, 8))
    assert [c.token_ids for c in few] == [c.token_ids for c in many[:3]]


def test_a_longer_limit_only_adds_tokens(engine):
    short, long = (
        engine.generate([context(20)], [SamplingParams(n=8, max_tokens=limit, seed=4)])[0] for limit in (7, 30)
    )
    for a, b in zip(short, long, strict=True):
        assert a.token_ids == b.token_ids[:7]
        assert a.logprobs.tobytes() == b.logprobs[:7].tobytes()


# Noise


def test_samples_seeds_and_contexts_of_one_params_differ(engine):
    params = SamplingParams(n=6, max_tokens=12, seed=9)
    completions = engine.generate([context(10)] * 4, params)
    completions += engine.generate([context(10)], [replace(params, seed=10)])
    texts = [tuple(completion.token_ids) for group in completions for completion in group]
    assert len(set(texts)) == len(texts) == 30
    assert len({tokens[0] for tokens in texts}) > 10  # the first token too


def test_equal_requests_are_equal(engine):
    params = [SamplingParams(n=2, max_tokens=12, seed=9)] * 3
    one, two, three = engine.generate([context(10)] * 3, params)
    assert_identical([one], [two])
    assert_identical([one], [three])
    assert_identical(engine.generate([context(10)] * 3, params), [one, two, three])


def test_first_tokens_follow_the_distribution(engine):
    """2,000 first tokens of one context against its soft-max, in ten cells of about equal mass."""
    (group,) = engine.generate([context(8)], SamplingParams(n=2000, max_tokens=1))
    with torch.no_grad():
        logits_1TV = engine.decoder(torch.tensor([context(8)]), torch.arange(8)[None], causal_attention, all_logits)
    probability_V = logits_1TV[0, -1].double().softmax(-1)
    cell_V = (probability_V.cumsum(-1) * 10).long().clamp_max(9)
    expected = torch.zeros(10, dtype=torch.float64).index_add_(0, cell_V, probability_V) * 2000
    counts = cell_V[[completion.token_ids[0] for completion in group]].bincount(minlength=10)
    assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 1e-4


# Ends


def test_stop_strings_end_a_completion_where_they_first_occur(engine):
    """Whatever piece of the free text is made a stop string: across tokens, within one, at an end of one."""
    free = engine.generate([context(25)], [SamplingParams(n=4, max_tokens=40, seed=2)])[0]
    for completion in free:
        whole = tokenizer().decode(completion.token_ids, skip_special_tokens=True)
        for start, end in ((0, 1), (3, 4), (5, 8), (10, 16), (20, 21), (0, len(whole) - 1)):
            string = whole[start:end]
            if not string.isascii() or not string:
                continue
            stopped = engine.generate([context(25)], [SamplingParams(n=4, max_tokens=40, seed=2, stop=(string,))])[0]
            for a, b in zip(stopped, free, strict=True):
                texts = [
                    tokenizer().decode(b.token_ids[:t], skip_special_tokens=True) for t in range(len(b.token_ids) + 1)
                ]
                num_tokens = next((t for t, text in enumerate(texts) if string in text), None)
                if num_tokens is None:
                    assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
                else:
                    assert a.token_ids == b.token_ids[:num_tokens]
                    assert a.text == texts[num_tokens][: texts[num_tokens].index(string) + len(string)]
                    assert a.finish_reason == "stop"
                    assert a.logprobs.tobytes() == b.logprobs[:num_tokens].tobytes()


def test_the_stop_string_that_ends_first_counts(engine):
    params = SamplingParams(n=24, max_tokens=60, seed=1, stop=("s", "er", "</answer>", " th"))
    ends = set()
    for completion in engine.generate([context(12)], [params])[0]:
        if completion.finish_reason == "stop" and completion.token_ids[-1] not in ENDS:
            found = [string for string in params.stop if string in completion.text]
            assert found and completion.text.endswith(tuple(found))
            assert not any(string in completion.text[:-1] for string in params.stop)
            ends.update(found)
    assert len(ends) > 1


def test_the_end_token_and_stop_tokens_end_a_completion(engine):
    (completions,) = engine.generate([context(6)], SamplingParams(n=64, max_tokens=60, stop_token_ids=(70, 71)))
    last = [completion.token_ids[-1] for completion in completions if completion.finish_reason == "stop"]
    assert len(ENDS) == 3  # also <|im_start|> and <|endoftext|>: a judge that writes one has left its turn
    assert {70, 71, tokenizer().eos_token_id} <= set(last) <= {*ENDS, 70, 71}
    for completion in completions:
        assert not {*ENDS, 70, 71} & set(completion.token_ids[:-1])
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] in (*ENDS, 70, 71))
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 60
        assert "<|im_end|>" not in completion.text and "<|im_start|>" not in completion.text
        assert completion.text == tokenizer().decode(completion.token_ids, skip_special_tokens=True)
        assert len(completion.logprobs) == len(completion.entropies) == len(completion.token_ids)


def test_one_token_of_one_sample(engine):
    (((completion),),) = engine.generate([context(5)], SamplingParams(max_tokens=1))
    assert len(completion.token_ids) == len(completion.logprobs) == 1


def test_no_contexts(engine):
    assert engine.generate([], SamplingParams()) == []


def test_texts_are_tokenized_as_they_are(engine):
    text = "the answer <|im_start|> is</answer>"
    token_ids = tokenizer().encode(text, add_special_tokens=False)
    params = SamplingParams(n=2, max_tokens=5)
    assert_identical(engine.generate([text], params), engine.generate([token_ids], params))


@pytest.mark.parametrize("string", ["</answer>", ">", "er", " th", "\n\n", "é", "is, th"])
def test_tokens_that_cannot_end_a_stop_string_never_do(string):
    """For every token after every kind of text: where the string appears with the token, the token was a candidate."""
    can_end_V = StopFinder(tokenizer(), V).can_end_V((string,))
    pieces = [tokenizer().decode([token]) for token in range(V)]
    assert 0 < can_end_V.sum() < V
    encoded = tokenizer().encode(string)
    for before in ([], tokenizer().encode("the"), encoded[:-1], tokenizer().encode(string[:-1])):
        if string in tokenizer().decode(before):
            continue
        for token in range(V):
            if string in tokenizer().decode(before + [token]):
                assert can_end_V[token], (before, pieces[token])


@given(st.lists(st.text("</answer> the7.é😀\n", min_size=1, max_size=9), min_size=1, max_size=3))
def test_tokens_that_can_end_a_stop_string_are_found_by_their_texts(strings):
    """A token does if it holds the string, or begins with its end, or is part of a character that may be in it."""

    def can_end(piece: str, string: str) -> bool:
        begins = any(string.endswith(piece[:end]) for end in range(1, len(piece) + 1))
        return string in piece or begins or ("\ufffd" in piece and not string.isascii())

    pieces = token_texts(tokenizer(), V)
    expected = [any(can_end(piece, string) for string in strings) for piece in pieces]
    assert StopFinder(tokenizer(), V).can_end_V(tuple(strings)).tolist() == expected


def test_a_character_of_several_tokens_ends_a_completion():
    """é is two byte tokens here: the stop string is complete with the second."""
    finder = StopFinder(tokenizer(), V)
    token_ids = tokenizer().encode("isé")
    assert len(token_ids) == 3
    assert finder.can_end_V(("sé",))[token_ids[-1]]
    assert finder.cut(token_ids, ("sé",)) == "isé"
    assert finder.cut(token_ids[:-1], ("sé",)) is None


def test_few_sets_of_stop_strings_are_remembered():
    """A server's clients may name any number of them, and each is as long as the vocabulary."""
    finder = StopFinder(tokenizer(), V)
    assert finder.can_end_V(("er",)) is finder.can_end_V(("er",))
    for number in range(200):
        finder.can_end_V((str(number),))
    assert finder.can_end_V.cache_info().currsize < 100


# Weights


def test_sees_weights_that_change_in_place(tmp_path):
    save_decoder(decoder(seed=8), tmp_path)
    tokenizer().save_pretrained(tmp_path)
    params = SamplingParams(n=3, max_tokens=20, seed=2)
    engine = Engine(decoder(seed=7), tokenizer())
    before = engine.generate([context(30)], params)
    load_weights_(engine.decoder, tmp_path)
    after = engine.generate([context(30)], params)
    assert before[0][0].token_ids != after[0][0].token_ids
    assert_identical(after, Engine.from_pretrained(tmp_path).generate([context(30)], params))


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}], ids=["loop", "foreach", "fused"])
def test_sees_what_an_optimiser_writes(settings):
    """A fused one does not raise the count by which torch tells that a tensor was written to."""
    model, params = decoder(seed=7, num_hidden_layers=1), SamplingParams(n=3, max_tokens=20, seed=2)
    engine, optimizer = Engine(model, tokenizer()), torch.optim.AdamW(model.parameters(), lr=0.1, **settings)
    before = engine.generate([context(30)], params)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = engine.generate([context(30)], params)
    assert before[0][0].token_ids != after[0][0].token_ids
    assert_identical(after, Engine(model, tokenizer()).generate([context(30)], params))


def test_leaves_no_trace_in_the_decoder(engine):
    model = decoder(seed=9)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine(model, tokenizer()).generate([context(5)], SamplingParams(n=2, max_tokens=4))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    token_1T = torch.tensor([context(5)])
    model(token_1T, torch.arange(5)[None], causal_attention, all_logits).sum().backward()
    assert model.norm.weight.grad is not None and torch.is_grad_enabled()


def test_bfloat16_runs_and_records_its_own_logprobs():
    model = decoder(seed=3, dtype=torch.bfloat16)
    (completions,) = Engine(model, tokenizer()).generate([context(40)], SamplingParams(n=4, max_tokens=20))
    for completion in completions:
        token_1T = torch.tensor([context(40) + completion.token_ids])
        with torch.no_grad():
            logits_1TV = model(token_1T, torch.arange(token_1T.shape[1])[None], causal_attention, all_logits)
        logprob_T = logits_1TV[0, 39:-1].float().log_softmax(-1).gather(1, token_1T[0, 40:, None])[:, 0]
        assert np.abs(completion.logprobs - logprob_T.numpy()).mean() < 0.05


# Bad input


@pytest.mark.parametrize(
    ("contexts", "params", "message"),
    [
        ([[1], []], SamplingParams(max_tokens=1), "context 1 is empty"),
        ([""], SamplingParams(), "context 0 is empty"),
        ([[1, 2]], [SamplingParams()] * 2, "1 contexts but 2 sampling params"),
        ([[1] * 500], SamplingParams(max_tokens=13),
         "context 0 has 500 tokens and asks for 13 more; the model's limit is 512"),
        ([[1, V]], SamplingParams(max_tokens=1), f"context 0 has token {V}; the model has {V} tokens"),
        ([[1, -1]], SamplingParams(max_tokens=1), f"context 0 has token -1; the model has {V} tokens"),
        ("here", SamplingParams(), "contexts is one text; a list of texts or of token ids is expected"),
        ([1, 2], SamplingParams(), "context 0 is neither a text nor a list of token ids"),
        ([[1], [1.0]], SamplingParams(max_tokens=1), "context 1 is neither a text nor a list of token ids"),
        ([["here"]], SamplingParams(), "context 0 is neither a text nor a list of token ids"),
        ([None], SamplingParams(), "context 0 is neither a text nor a list of token ids"),
    ],
)  # fmt: skip
def test_refuses(engine, contexts, params, message):
    with pytest.raises(ValueError) as error:
        engine.generate(contexts, params)
    assert str(error.value) == message


def test_a_stream_ends_with_its_source_and_not_before(engine):
    params = SamplingParams(max_tokens=1)
    with pytest.raises(ValueError, match="neither a text nor a list of token ids"):
        list(engine.stream([([1], params), (None, params), ([1], params)]))
    assert not engine.has_work


def test_token_ids_may_come_in_an_array(engine):
    params = SamplingParams(n=2, max_tokens=5)
    for array in (np.array(context(9)), torch.tensor(context(9))):
        assert_identical(engine.generate([array], params), engine.generate([context(9)], params))


def test_a_context_may_fill_the_model(engine):
    (((completion),),) = engine.generate([[1] * 500], SamplingParams(max_tokens=12, temperature=0))
    assert len(completion.token_ids) == 12 or completion.finish_reason == "stop"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "sampling n=0 must be at least 1"),
        ({"max_tokens": 0}, "sampling max_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, "sampling temperature=-1.0 must be in [0, 1e30] (0 is greedy)"),
        ({"temperature": float("nan")}, "sampling temperature=nan must be in [0, 1e30] (0 is greedy)"),
        ({"temperature": 1e31}, "sampling temperature=1e+31 must be in [0, 1e30] (0 is greedy)"),
        ({"n": 1.5}, "sampling n=1.5 must be a whole number"),
        ({"max_tokens": 2.0}, "sampling max_tokens=2.0 must be a whole number"),
        ({"top_k": None}, "sampling top_k=None must be a whole number"),
        ({"seed": "1"}, "sampling seed='1' must be a whole number"),
        ({"top_k": -1}, "sampling top_k=-1 must be at least 0 (0 keeps all tokens)"),
        ({"top_p": 0.0}, "sampling top_p=0.0 must be in (0, 1]"),
        ({"min_p": 1.5}, "sampling min_p=1.5 must be in [0, 1]"),
        ({"stop": ("a", "")}, "sampling stop=('a', '') must be a tuple of non-empty strings"),
        ({"stop": "</answer>"}, "sampling stop='</answer>' must be a tuple of non-empty strings"),
        ({"stop": (5,)}, "sampling stop=(5,) must be a tuple of non-empty strings"),
        ({"stop_token_ids": 5}, "sampling stop_token_ids=5 must be a tuple of token ids"),
        ({"stop_token_ids": ("a",)}, "sampling stop_token_ids=('a',) must be a tuple of token ids"),
        ({"seed": 1 << 64}, "sampling seed=18446744073709551616 must be in [0, 2^64)"),
    ],
)
def test_refuses_params(values, message):
    with pytest.raises(ValueError) as error:
        SamplingParams(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "values", [{"temperature": 1e30}, {"temperature": 5e-324}, {"top_k": 1 << 62}, {"top_p": 5e-324}]
)
def test_params_at_the_ends_of_their_ranges_are_drawn_with(engine, values):
    ((completion, _),) = engine.generate([context(5)], SamplingParams(n=2, max_tokens=3, **values))
    assert len(completion.token_ids) == 3 and np.isfinite(completion.drawn_logprobs).all()


def test_refuses_no_rows():
    with pytest.raises(ValueError, match=r"^max_rows=0 must be at least 1$"):
        EngineConfig(max_rows=0)


def test_refuses_a_directory_without_a_tokenizer(tmp_path):
    save_decoder(decoder(), tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json; a model directory holds its tokenizer$"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder; a model is a Hugging Face directory"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "flash"}, 'attention=\'flash\' must be "blocks" or "paged"'),
        ({"kv_gib": float("inf")}, "kv_gib=inf must be positive and finite"),
        ({"kv_gib": float("nan")}, "kv_gib=nan must be positive and finite"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineConfig(**settings)


def test_weights_that_do_not_fit_are_refused():
    engine = Engine(decoder(), tokenizer())
    for name, tensor, message in (
        ("norm", torch.ones(1), "norm: the decoder has no such parameter"),
        ("norm.weight", torch.ones(1), "norm.weight: has shape (1,); the decoder's is"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            engine.update_weights([(name, tensor)])
