"""The rollout engine: n completions of each context, every shared token prefilled once.

One forward pass runs a flat list of tokens: one of every sample that decodes, and parts of contexts that are still to
be filled in (`Scheduler`). What a request is batched with never changes its noise, which is counter-based. With
`batch_invariant` (on a CPU by default) it does not change its arithmetic either: products have rows that do not depend
on one another (`PackedWeights`), and attention goes by blocks of positions (`BlockAttention`). So in float32 tokens and
log-probabilities are the same bits, whatever the batch, the order of requests, the size of chunks and pages, and
however often a sample has given way to others. (With more than two threads, elementwise functions may round the ends of
their shares differently, in the last bit.)

    B samples that draw in a step
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter, index
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from kernels.philox import stream_seed
from rollout.block_attention import BLOCK
from rollout.decoder import Decoder
from rollout.drawn import Drawn, Pending
from rollout.forward import Runner
from rollout.kv_cache import KvCache, bytes_per_token
from rollout.pages import GPU_PAGE, PagePool
from rollout.params import Completion, SamplingParams
from rollout.scheduler import Counts, Scheduler
from rollout.steps import Request, Sample
from rollout.stops import StopFinder
from rollout.vocabulary import load_tokenizer, special_token_ids
from rollout.weights import load_decoder

_VERSION = attrgetter("_version")  # of hundreds of parameters, every step


def _count_writes(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Fused optimisers write to their parameters without raising the count by which an engine sees it."""
    increment_version([parameter for group in optimizer.param_groups for parameter in group["params"]])


register_optimizer_step_post_hook(_count_writes)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes of an engine. None: what fits the device."""

    max_rows: int = 256  # samples that decode side by side
    max_step_tokens: int = 2048  # of a forward pass: decoding samples, then parts of contexts
    page_size: int | None = None  # tokens; 64 on a CPU, 16 on a GPU
    num_pages: int | None = None  # of all samples and contexts together; takes precedence over kv_gib
    kv_gib: float | None = None  # memory of keys and values: 4 on a CPU, on a GPU nine tenths of what is free
    batch_invariant: bool | None = None  # the same bits in any company: on a CPU
    attention: Literal["blocks", "paged"] | None = None  # blocks are for a CPU, the paged kernel is for a GPU
    cuda_graphs: bool = True  # replay steps that only decode
    look_ahead: bool = True  # launch such a step before the one before it is read, so that a GPU need not wait

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("max_step_tokens", 1), ("num_pages", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.page_size not in (None, 8, 16, 32, 64):
            raise ValueError(f"page_size={self.page_size} must be 8, 16, 32 or 64")
        if self.kv_gib is not None and not 0 < self.kv_gib < inf:
            raise ValueError(f"kv_gib={self.kv_gib} must be positive and finite")
        if self.attention not in (None, "blocks", "paged"):
            raise ValueError(f'attention={self.attention!r} must be "blocks" or "paged"')


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine has done since it was made (`counts`), and how it stands."""

    counts: Counts
    num_running_rows: int
    num_waiting_requests: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int  # of contexts that no request uses, kept in case they come again


class Engine:
    """Draws completions from a decoder, whose weights may change in place at any time between steps.

    `generate` is for a list of contexts; `stream` for contexts that come one by one; `submit`, `step` and `cancel` for
    a server. Not thread-safe.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, config: EngineConfig | None = None
    ) -> None:
        self.decoder, self.tokenizer, self.config = decoder, tokenizer, config or EngineConfig()
        self.device = next(decoder.parameters()).device
        is_cpu = self.device.type == "cpu"
        invariant = self.config.batch_invariant
        self.batch_invariant = is_cpu if invariant is None else invariant
        self._ends = frozenset(special_token_ids(tokenizer))
        self._stops = StopFinder(tokenizer, decoder.config.vocab_size)
        dtype = next(decoder.parameters()).dtype
        if self.config.attention == "blocks" and not is_cpu:
            raise ValueError(f'attention="blocks" is for a CPU; the decoder is on {self.device}')
        is_paged = (self.config.attention or ("blocks" if is_cpu else "paged")) == "paged"
        page_size = self.config.page_size or (GPU_PAGE if is_paged else BLOCK)
        self._cache = KvCache(decoder.config, self._num_pages(page_size, dtype), page_size, dtype, self.device)
        self._scheduler = Scheduler(
            PagePool(self._cache.num_pages, page_size), self.config.max_rows, self._max_step_tokens(),
            page_size if is_paged else BLOCK, decoder.config.max_position_embeddings,
        )  # fmt: skip
        self._runner = Runner(
            decoder, self._cache, self._scheduler,
            batch_invariant=self.batch_invariant, is_paged=is_paged, graphs=self.config.cuda_graphs,
        )  # fmt: skip
        self._parameters = [module._parameters for module in decoder.modules() if module._parameters]
        self._places, self._versions = self._weights_now()
        self._ahead: Pending | None = None  # a step that runs already

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        config: EngineConfig | None = None,
    ) -> Engine:
        """The model and the tokenizer of a Hugging Face directory."""
        return cls(load_decoder(path, dtype, device), load_tokenizer(path), config)

    # Many contexts at once

    def generate(
        self,
        contexts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        progress: str = "",
    ) -> list[list[Completion]]:
        """Draws `params.n` completions of every context.

        Args:
            contexts: texts (tokenized as they are) or token ids.
            params: one for all, or one per context. One for all gives context i a seed derived from (seed, i), so
                that equal contexts differ; callers that need a draw to be independent of the list pass their own.
            progress: label of a progress bar over completions; none if empty.

        Returns:
            For each context, in order, its n completions.

        Raises:
            ValueError: an empty context, one that leaves no room for max_tokens, or a wrong number of params.
        """
        if isinstance(contexts, str):
            raise ValueError("contexts is one text; a list of texts or of token ids is expected")
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=stream_seed(params.seed, i)) for i in range(len(contexts))]
        if len(params) != len(contexts):
            raise ValueError(f"{len(contexts)} contexts but {len(params)} sampling params")
        # All of them are looked at before any is run.
        pairs = [
            (self._checked(context, one, f"context {index}"), one)
            for index, (context, one) in enumerate(zip(contexts, params, strict=True))
        ]
        finished: list[list[Completion]] = [[] for _ in pairs]
        with tqdm(total=sum(one.n for one in params), desc=progress, unit="completion", disable=not progress) as bar:
            for index, completions in self.stream(pairs):
                finished[index] = completions
                bar.update(len(completions))
        return finished

    def stream(
        self, pairs: Iterable[tuple[str | Sequence[int], SamplingParams]]
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (number, completions) of each (context, params) as soon as they are finished, in any order.

        `pairs` is asked for another one whenever there is room for it, so it may be a queue that others read from too.
        If the caller stops reading, what is unfinished is cancelled.
        """
        numbers: dict[Request, int] = {}
        source = enumerate(pairs)
        is_drained = False
        try:
            while True:
                while not is_drained and self._scheduler.wants_more:
                    numbered = next(source, None)
                    if numbered is None:
                        is_drained = True
                    else:
                        numbers[self.submit(*numbered[1])] = numbered[0]
                if not numbers:
                    return
                self.step()
                # Not those that `step` returned alone: whoever else steps may have finished some.
                for request in [request for request in numbers if request.is_finished]:
                    yield numbers.pop(request), request.completions
        finally:
            for request in numbers:
                self.cancel(request)

    # One by one

    def submit(self, context: str | Sequence[int], params: SamplingParams) -> Request:
        """Queues a request; `step` serves it.

        Raises:
            ValueError: one line that says what is wrong with it.
        """
        return self._scheduler.submit(self._checked(context, params, "the context"), params)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def cancel(self, request: Request) -> None:
        """Drops a request that is not finished, and frees what it holds."""
        self._scheduler.cancel(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One forward pass. Returns the requests that it finished.

        Where nothing but its tokens decides what comes next, the next pass is launched before they are read: it has
        them on the device. What has happened to a sample by then (it ended, or was cancelled) makes its row void;
        what has happened to weights or memory, the whole pass.
        """
        places, versions = self._weights_now()
        if places != self._places:
            self.release_memory()  # graphs read the weights where they were
        elif versions != self._versions:
            self._forget()
            self._runner.forget_weights()
        self._places, self._versions = places, versions
        try:
            pending = self._launched()
            if pending is None:
                return []
            ahead = self._launched_ahead(pending)
            drawn = pending.wait()
        except Exception:
            # Whatever the pass has left behind is not to be read again, least of all nan.
            self.release_memory()
            raise
        self._ahead = ahead  # not before: if the wait is interrupted, both are run again
        return self._append(self._scheduler.commit(pending.step), drawn)

    def _launched(self) -> Pending | None:
        """The step that runs already, or else the next one; None if there is no work."""
        pending, self._ahead = self._ahead, None
        if pending is not None and pending.step.is_wanted:
            return pending
        step = self._scheduler.plan()
        return self._runner.launch(step) if step.num_tokens else None

    def _launched_ahead(self, pending: Pending) -> Pending | None:
        """What follows a replayed step, if that is certain before it is read."""
        if pending.token_B is None or not self.config.look_ahead:
            return None
        following = self._scheduler.plan_ahead(pending.step)
        return None if following is None else self._runner.launch(following, pending)

    def _forget(self) -> None:
        """Drops all keys and values, and with them a step that runs: its samples draw the same tokens again."""
        self._ahead = None
        self._scheduler.forget()

    # Weights and memory

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies (name, tensor) into the decoder, names as in `full_tensors`.

        Whoever writes to the decoder's parameters otherwise needs not tell: torch counts the changes of a tensor, and
        the engine compares that count, and where the tensor lies, before every step. It does not count what is written
        to a parameter's `.data`, or through another tensor of its memory: after that, call `release_memory`.

        Raises:
            ValueError: a name that the decoder does not have, or a tensor of another shape; those before it are copied.
        """
        parameters = dict(self.decoder.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in parameters:
                    raise ValueError(f"{name}: the decoder has no such parameter (a tied head goes by its embedding)")
                if parameters[name].shape != tensor.shape:
                    shapes = tuple(tensor.shape), tuple(parameters[name].shape)
                    raise ValueError(f"{name}: has shape {shapes[0]}; the decoder's is {shapes[1]}")
                parameters[name].copy_(tensor)

    def release_memory(self) -> None:
        """Gives the memory of all keys and values back. Unfinished requests stay, and are computed again."""
        self._forget()
        self._runner.release()

    def acquire_memory(self) -> None:
        """Takes the memory again; the next step would do so too."""
        self._cache.acquire()

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            counts=replace(scheduler.counts),
            num_running_rows=len(scheduler.running),
            num_waiting_requests=len(scheduler.waiting),
            num_pages=scheduler.pool.num_pages - 1,
            num_free_pages=scheduler.pool.num_free,
            num_cached_pages=min(scheduler.tree.num_idle_pages, scheduler.pool.num_pages - 1 - scheduler.pool.num_free),
        )

    def _append(self, samples: list[Sample], drawn: Drawn) -> list[Request]:
        """Takes the next token of each sample that goes on; returns the requests that are finished by it."""
        finished = []
        columns = drawn.token_B, drawn.logprob_B, drawn.drawn_logprob_B, drawn.entropy_B
        for sample, token, logprob, drawn_logprob, entropy in zip(samples, *(x.tolist() for x in columns), strict=True):
            if sample.row < 0:
                continue  # it has ended or was cancelled since this step was launched
            sample.token_ids.append(token)
            sample.logprobs.append(logprob)
            sample.drawn_logprobs.append(drawn_logprob)
            sample.entropies.append(entropy)
            params, text, reason = sample.request.params, None, ""
            if params.grammar is not None:
                sample.grammar_state = params.grammar.advance(sample.grammar_state, token)
            if token in self._ends or token in params.stop_token_ids:
                reason = "stop"
            elif params.stop and self._stops.can_end_V(params.stop)[token]:
                text = self._stops.cut(sample.token_ids, params.stop)
                reason = "" if text is None else "stop"
            if not reason and len(sample.token_ids) == params.max_tokens:
                reason = "length"
            if reason:
                if text is None:
                    text = self.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
                recorded = sample.logprobs, sample.drawn_logprobs, sample.entropies
                numbers = (np.array(x, dtype=np.float32) for x in recorded)
                if self._scheduler.end(sample, Completion(sample.token_ids, text, *numbers, reason)):
                    finished.append(sample.request)
        return finished

    def _checked(self, context: str | Sequence[int], params: SamplingParams, name: str) -> list[int]:
        """Token ids of a context; a ValueError of one line where it cannot be run."""
        limit, V = self.decoder.config.max_position_embeddings, self.decoder.config.vocab_size
        is_text = isinstance(context, str)
        try:
            token_ids = self.tokenizer.encode(context, add_special_tokens=False) if is_text else [*map(index, context)]
        except TypeError:
            raise ValueError(f"{name} is neither a text nor a list of token ids") from None
        if not token_ids:
            raise ValueError(f"{name} is empty")
        if not 0 <= min(token_ids) <= max(token_ids) < V:
            wrong = next(token for token in token_ids if not 0 <= token < V)
            raise ValueError(f"{name} has token {wrong}; the model has {V} tokens")
        if len(token_ids) + params.max_tokens > limit:
            raise ValueError(
                f"{name} has {len(token_ids)} tokens and asks for {params.max_tokens} more; "
                f"the model's limit is {limit}"
            )
        grammar = params.grammar
        if grammar is not None and (least := grammar.shortest(grammar.start)) > params.max_tokens:
            raise ValueError(f"{name} asks for {params.max_tokens} tokens; a judgment takes at least {least}")
        return token_ids

    def _num_pages(self, page_size: int, dtype: torch.dtype) -> int:
        config, page_bytes = self.config, page_size * bytes_per_token(self.decoder.config, dtype)
        if config.num_pages is not None:
            return config.num_pages
        if config.kv_gib is not None:
            num_bytes = config.kv_gib * 2**30
        elif self.device.type == "cuda":
            num_bytes = 0.9 * torch.cuda.mem_get_info(self.device)[0]
        else:
            num_bytes = 4 * 2**30
        # More than every row at its longest is never used.
        most = self.config.max_rows * (-(-self.decoder.config.max_position_embeddings // page_size) + 2) + 1
        return max(2, min(int(num_bytes / page_bytes), most))

    def _max_step_tokens(self) -> int:
        """On a GPU, the same bits in any company need products of one shape: every pass has `max_rows` tokens."""
        fixed = self.batch_invariant and self.device.type != "cpu"
        return self.config.max_rows if fixed else self.config.max_step_tokens

    def _weights_now(self) -> tuple[list[int], list[int]]:
        """(where each parameter lies, how often it was written to)"""
        parameters = [x for named in self._parameters for x in named.values() if x is not None]
        return list(map(Tensor.data_ptr, parameters)), list(map(_VERSION, parameters))
