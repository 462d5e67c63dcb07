"""TRL's `GRPOTrainer` on the same work: the same model, contexts, number of judgments and length of each.

A length is imposed by the end token, which a judgment gets as its last one and no earlier; with continuous batching by
a limit for each judgment, as our engine has it. There is no KL penalty and one update per rollout, so it computes no
log-probs but those of the update. What its defaults cost on a CPU is off: gradient checkpointing, bfloat16. Freed
memory is kept, as in our trainer, which makes it faster.
"""

from __future__ import annotations

import tempfile
import time
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.rollout_peers import GenerateBatch, number_tokenizer
from bench.rollout_workload import Work
from bench.step_memory import PeakMeter
from trainer.distributed import keep_freed_memory


class TrlStep:
    def __init__(self, folder: str) -> None:
        keep_freed_memory()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._end = self._model.config.vocab_size - 1
        self._tokenizer = number_tokenizer(self._end + 1, end_token=str(self._end))
        self._tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._counter = _Counter(self._model)
        self._generate = self._model.generate
        self._folder = tempfile.mkdtemp()

    def prepare(self, work: Work, how: str, rows: int) -> None:
        """A trainer for work of this size.

        Args:
            how: judgments are drawn, all of the step together: "generate" or "continuous batching".
            rows: of a micro-batch; all of them make one optimiser step.
        """
        self._is_continuous = how == "continuous batching"
        n, num_rows = len(work.lengths[0]), sum(map(len, work.lengths))
        config = GRPOConfig(
            output_dir=self._folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            logging_strategy="no", log_level="error", save_strategy="no", disable_tqdm=True, max_steps=1,
            shuffle_dataset=False,
            per_device_train_batch_size=rows, gradient_accumulation_steps=num_rows // rows, num_generations=n,
            max_completion_length=max(map(max, work.lengths)), beta=0.0, temperature=1.0, top_p=1.0, top_k=0,
            learning_rate=1e-6, lr_scheduler_type="constant", seed=0, dataloader_pin_memory=False,
            use_transformers_continuous_batching=self._is_continuous,
        )  # fmt: skip
        self._callback = _Watch()
        self._trainer = _Trainer(
            self._model, _Scores(), config, self._dataset(work), processing_class=self._tokenizer,
            callbacks=[self._callback],
        )  # fmt: skip
        self._trainer.remove_callback(PrinterCallback)  # it would print every run's summary

    def step(self, work: Work, is_measured: bool = False) -> dict[str, float | int | None]:
        """One optimiser step: seconds of it, of the rollout in it, and tokens computed, padding included."""
        trainer, counter = self._trainer, self._counter
        if self._is_continuous:
            self._model.generate_batch = lambda *_, **__: self._written(work)
        else:
            ends = LogitsProcessorList([_Ends(work, self._end)])
            self._model.generate = lambda *args, **options: self._generate(*args, **options, logits_processor=ends)
        trainer.train_dataset = self._dataset(work)
        trainer.meter = PeakMeter(torch.device("cpu")) if is_measured else None
        trainer.rollout_s, counter.rollout, counter.update = 0.0, 0, 0
        trainer.train()
        if (lengths := trainer.lengths) != [length for of_context in work.lengths for length in of_context]:
            raise ArithmeticError(f"wrote completions of {lengths} tokens where {work.lengths} were asked for")
        return {
            "step_s": self._callback.seconds, "rollout_s": trainer.rollout_s,
            "update_s": self._callback.seconds - trainer.rollout_s,
            "rollout_tokens": counter.rollout, "update_tokens": counter.update,
            "update_peak": trainer.meter.stop() if trainer.meter else None,
        }  # fmt: skip

    def _written(self, work: Work) -> dict[int, SimpleNamespace]:
        """What `generate_batch` returns."""
        written = GenerateBatch.of(self._model).run(work)
        return dict(enumerate(SimpleNamespace(generated_tokens=row) for rows in written for row in rows))

    def _dataset(self, work: Work) -> Dataset:
        return Dataset.from_list([{"prompt": " ".join(map(str, context))} for context in work.contexts])


class _Trainer(GRPOTrainer):
    """Says how long rollout and reward take, and can have memory counted from there on."""

    meter: PeakMeter | None = None
    rollout_s: float
    lengths: list[int]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        start = time.perf_counter()
        batch = super()._generate_and_score_completions(inputs)
        self.rollout_s = time.perf_counter() - start
        self.lengths = batch["completion_mask"].sum(1).tolist()
        if self.meter:
            self.meter.start()
        return batch


class _Watch(TrainerCallback):
    """Of the optimiser step alone, without what surrounds training."""

    seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._start


class _Ends(LogitsProcessor):
    """Row i of a batch ends with its length."""

    def __init__(self, work: Work, end: int) -> None:
        self._end = end
        self._length_B = torch.tensor([length for lengths in work.lengths for length in lengths])
        self._num_drawn = 0

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        self._num_drawn += 1
        scores_BV[:, self._end] = -torch.inf
        ends = self._length_B == self._num_drawn
        if ends.any():
            scores_BV[ends] = -torch.inf
            scores_BV[ends, self._end] = 0.0
        return scores_BV


class _Counter:
    """Tokens of forward passes, with gradient and without."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rollout = self.update = 0
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            self.update += arguments[0].numel()
        else:
            self.rollout += arguments[0].numel()


class _Scores:
    """Drawn: there is nothing to read in what a random model writes."""

    __name__ = "scores"

    def __init__(self) -> None:
        self._rng = Random(0)

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [self._rng.random() for _ in completions]
