"""The engines that are timed: ours, and others beside it, all with the weights of one decoder.

A peer may have several settings; each is tried once, and the fastest goes into the comparison. None of them is told a
length before it is reached: contexts are batched by their own length alone.

    V vocabulary   B sequences   T tokens
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Protocol

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.generation import ContinuousBatchingConfig

from bench.rollout_workload import Work
from rollout.decoder import Decoder
from rollout.engine import Engine
from rollout.params import SamplingParams
from rollout.weights import full_tensors, save_decoder

Written = list[list[list[int]]]  # new token ids of each sample of each context
COUNTERS = ("num_context_tokens", "num_prefilled_tokens", "num_decoded_tokens", "num_steps", "num_preemptions")
ROWS = (8, 16, 32, 64)  # sequences in a batch, for engines that have to be told
_PAGE = 32  # tokens; 256, the default, shares less of these contexts


class Contender(Protocol):
    settings: dict[str, dict[str, Any]]  # label -> keyword arguments of `run`

    def run(self, work: Work, is_greedy: bool = False, **setting) -> Written: ...


class Ours:
    """One request per sample, since a request has one limit for all of its samples; the engine shares their context."""

    settings: ClassVar = {"": {}}

    def __init__(self, decoder: Decoder, **config) -> None:
        self._engine = Engine(decoder, number_tokenizer(decoder.config.vocab_size, end_token=None), **config)
        self.counts: dict[str, int] = {}  # of the latest run

    def run(self, work: Work, is_greedy: bool = False) -> Written:
        contexts = [context for context, lengths in zip(work.contexts, work.lengths, strict=True) for _ in lengths]
        params = [
            SamplingParams(max_tokens=length, temperature=0.0 if is_greedy else 1.0, seed=seed)
            for seed, length in enumerate(length for lengths in work.lengths for length in lengths)
        ]
        before = self._counts()
        finished = iter(self._engine.generate(contexts, params))
        self.counts = {name: count - before[name] for name, count in self._counts().items()}
        return [[next(finished)[0].token_ids for _ in lengths] for lengths in work.lengths]

    def _counts(self) -> dict[str, int]:
        counts = self._engine.stats.counts
        return {name: getattr(counts, name) for name in COUNTERS}


class Generate:
    """transformers `generate`: a padded batch runs until its longest row ends, and the rows that have ended with it."""

    settings: ClassVar = {f"{rows} rows": {"rows": rows} for rows in ROWS}

    def __init__(self, decoder: Decoder) -> None:
        self._model = transformers_model(decoder)

    @torch.inference_mode()
    def run(self, work: Work, is_greedy: bool = False, rows: int = 64) -> Written:
        written: Written = [[] for _ in work.contexts]
        for indices in _batches(work, rows):
            token_BT, mask_BT = (x.to(self._model.device) for x in left_padded([work.contexts[i] for i in indices]))
            n = len(work.lengths[indices[0]])
            drawn_BT = self._model.generate(
                token_BT, attention_mask=mask_BT, num_return_sequences=n, pad_token_id=0,
                max_new_tokens=max(max(work.lengths[i]) for i in indices), **_sampling(is_greedy),
            )  # fmt: skip
            new = drawn_BT[:, token_BT.shape[1] :].tolist()
            for place, i in enumerate(indices):
                rows_of_i = new[place * n : (place + 1) * n]
                written[i] = [row[:length] for row, length in zip(rows_of_i, work.lengths[i], strict=True)]
        return written


class GenerateBatch:
    """transformers' continuous batching: pages, requests of their own lengths, shared blocks of equal prefixes.

    Its own fork of a request gives all samples one length, so each sample is a request. The first sample of every
    context comes first: blocks are shared once they are full.
    """

    settings: ClassVar = {"": {}}

    def __init__(self, decoder: Decoder) -> None:
        self._model = transformers_model(decoder)

    @classmethod
    def of(cls, model: Any) -> GenerateBatch:
        """With a model of transformers that is there already."""
        engine = cls.__new__(cls)
        engine._model = model
        return engine

    @torch.inference_mode()
    def run(self, work: Work, is_greedy: bool = False) -> Written:
        requests = [
            (sample, i, length) for i, lengths in enumerate(work.lengths) for sample, length in enumerate(lengths)
        ]
        sizes = {}
        if self._model.device.type == "cpu":  # it would take six tenths of the memory
            pages = sum(-(-(len(work.contexts[i]) + length) // _PAGE) + 1 for _, i, length in requests)
            sizes = {"page_size": _PAGE, "num_blocks": pages, "max_batch_tokens": 512}
        written: Written = [[[] for _ in lengths] for lengths in work.lengths]
        with self._model.continuous_batching_context_manager(
            generation_config=GenerationConfig(eos_token_id=-1, pad_token_id=0, **_sampling(is_greedy)),
            continuous_batching_config=ContinuousBatchingConfig(**sizes),
        ) as manager:
            places = {
                manager.add_request(work.contexts[i], max_new_tokens=length): (i, sample)
                for sample, i, length in sorted(requests)
            }
            while places:
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError(f"generate_batch ended: {manager.background_thread_status.fatal_error}")
                if result is not None and result.is_finished():
                    i, sample = places.pop(result.request_id)
                    written[i][sample] = result.generated_tokens
        return written


class CTranslate2:
    """OpenNMT's C++ engine. A callback ends each row at its length, and ended rows leave the batch.

    A batch computes the context of its samples once. Of contexts of unlike lengths it takes what the shortest has in
    one pass, the rest token by token. `static_prompt` keeps the beginning that all contexts share. It cannot be without
    an end token: the last token of the vocabulary, which it never draws.
    """

    settings: ClassVar = {f"{rows} rows": {"rows": rows} for rows in ROWS} | {
        "64 rows, static prompt": {"rows": 64, "has_static_prompt": True}
    }

    def __init__(self, decoder: Decoder) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        with tempfile.TemporaryDirectory() as folder:
            source, target = f"{folder}/transformers", f"{folder}/ctranslate2"
            save_decoder(decoder, source)
            V = decoder.config.vocab_size
            number_tokenizer(V, end_token=str(V - 1)).save_pretrained(source)
            TransformersConverter(source).convert(target)
            device = next(decoder.parameters()).device.type
            self._generator = ctranslate2.Generator(
                target, device=device, compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
            )

    def run(self, work: Work, is_greedy: bool = False, rows: int = 64, has_static_prompt: bool = False) -> Written:
        written: Written = [[] for _ in work.contexts]
        shortest = min(map(len, work.contexts))
        num_static = min(work.num_common_tokens, shortest - 1) if has_static_prompt else 0
        for indices in _batches(work, rows):
            num_new: Counter[tuple[int, int]] = Counter()

            def is_last(step: Any, indices: list[int] = indices, num_new: Counter = num_new) -> bool:
                num_new[row := (step.batch_id, step.hypothesis_id)] += 1
                return num_new[row] >= work.lengths[indices[step.batch_id]][step.hypothesis_id]

            longest = max(max(work.lengths[i]) for i in indices)
            results = self._generator.generate_batch(
                [list(map(str, work.contexts[i][num_static:])) for i in indices],
                static_prompt=list(map(str, work.contexts[0][:num_static])) or None, callback=is_last,
                max_length=longest, min_length=longest, include_prompt_in_result=False,
                sampling_topk=1 if is_greedy else 0, num_hypotheses=len(work.lengths[indices[0]]),
            )  # fmt: skip
            for i, result in zip(indices, results, strict=True):
                written[i] = _in_order(result.sequences_ids, work.lengths[i])
        return written


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "generate": Generate,
    "generate_batch": GenerateBatch,
    "ctranslate2": CTranslate2,
}


def versions() -> dict[str, str]:
    """Of the packages that the peers come from."""
    found = {}
    for package in ("transformers", "ctranslate2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def check_lengths(written: Written, work: Work) -> None:
    lengths = [tuple(map(len, samples)) for samples in written]
    if lengths != work.lengths:
        wrong = next((a, b) for a, b in zip(lengths, work.lengths, strict=True) if a != b)
        raise ArithmeticError(f"wrote {wrong[0]} tokens where {wrong[1]} were asked for")


def transformers_model(decoder: Decoder) -> Any:
    """A model of transformers that reads the decoder's own tensors."""
    parameters = dict(full_tensors(decoder))
    config = AutoConfig.for_model(**decoder.config.to_hf(next(iter(parameters.values())).dtype))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    weights = {name if name.startswith("lm_head") else f"model.{name}": x for name, x in parameters.items()}
    model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    # Its tables are no weights, so they are still without data.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(next(iter(parameters.values())).device)
    return model.eval()


def number_tokenizer(vocab_size: int, end_token: str | None) -> PreTrainedTokenizerFast:
    """Token i is the word "i". Without an end token nothing that is sampled ends a completion."""
    vocabulary = {str(i): i for i in range(vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    named = {} if end_token is None else dict.fromkeys(("unk_token", "bos_token", "eos_token"), end_token)
    return PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False, **named)


def _batches(work: Work, rows: int) -> Iterator[list[int]]:
    """Contexts of like lengths together, with all of their samples in at most `rows` rows if one alone fits."""
    order = sorted(range(len(work.contexts)), key=lambda i: len(work.contexts[i]))
    num_contexts = max(1, rows // len(work.lengths[0]))
    for start in range(0, len(order), num_contexts):
        yield order[start : start + num_contexts]


def left_padded(contexts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, contexts))
    token_BT = torch.tensor([[0] * (longest - len(context)) + context for context in contexts])
    mask_BT = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in contexts])
    return token_BT, mask_BT


def _sampling(is_greedy: bool) -> dict[str, Any]:
    return {"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def _in_order(found: list[list[int]], lengths: tuple[int, ...]) -> list[list[int]]:
    """Samples come back by their score; as asked for again, if their lengths are those."""
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    place = {j: samples for j, samples in zip(shortest_first, sorted(found, key=len), strict=True)}
    return [place[j] for j in range(len(lengths))]
