"""The trainings and measurements of one seed, each in a process of its own; what is there already is not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from bench.paper.plan import ARMS, Arm, Needs, with_starts
from bench.paper.rows import as_choices, rm_bench_files, without_rubrics
from bench.training import PYTHON, ROOT, check_run, resolved, run_process, train
from patarm_core.pairs import judgment_to_json
from rollout.contexts import load_judgments, load_pairs, load_rubrics
from rollout.text_files import write_text
from trainer.config import Recipe

NUM_RM_PROMPTS = 16  # of each task


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    result: Path  # there when the job is done
    needs: tuple[str, ...]  # other jobs
    work: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What the experiments run at: recipes, settings over them, and how a training is started."""

    recipes: tuple[str, ...]
    settings: tuple[str, ...] = ()
    launcher: tuple[str, ...] = PYTHON  # such as torchrun --nproc-per-node 8
    threads: int = 0  # of each process; 0: as it likes

    def recipe(self, *settings: str, before: Sequence[str] = ()) -> Recipe:
        """With settings over those of the user, and others that the user's go over."""
        return resolved(self.recipes, [*before, *self.settings, *settings])


class SeedRuns:
    """Folders of one seed: an arm's run by its name, and measurements beside its models.

    Args:
        folder: of the seed.
    """

    def __init__(self, scale: Scale, seed: int, folder: Path) -> None:
        self.scale, self.seed, self.folder = scale, seed, folder
        self.recipe = scale.recipe(f"seed={seed}")
        self.is_embedded = self.recipe.data.source == "embedded"

    def file(self, name: str) -> str:
        """A file of the data: the recipe's own, or what the run of the start has written of the embedded set."""
        return (
            str(self.folder / "sft" / "data" / f"{name}.jsonl") if self.is_embedded else getattr(self.recipe.data, name)
        )

    def held_out(self, arm: str) -> Path:
        if ARMS[arm].is_scalar:
            return self.folder / arm / "judgments" / "bt.jsonl"  # the trainer's own measurement
        return self.folder / arm / "held_out.jsonl"

    def rm_bench(self, arm: str) -> Path:
        return self.folder / arm / "rm_bench"

    def jobs(self, needs: Needs) -> list[Job]:
        """
        Raises:
            ValueError: a training that is there already is one of another recipe.
        """
        measured = [*needs.held_out, *needs.rm_bench]
        found = [self._training(ARMS[name]) for name in with_starts(measured)]
        for arm, n in needs.held_out.items():
            if not ARMS[arm].is_scalar:
                found.append(
                    self._job(f"{arm}: held-out", self.held_out(arm), (arm,), lambda arm=arm, n=n: self._judge(arm, n))
                )
        if self.is_embedded:  # of real weights, eval/main.py rm_bench measures on the real one
            for arm in needs.rm_bench:
                done = self.rm_bench(arm) / "report.json"
                found.append(self._job(f"{arm}: RM-Bench", done, (arm,), lambda arm=arm: self._rm_bench(arm)))
        return found

    def _job(self, name: str, result: Path, needs: tuple[str, ...], work: Callable[[], None]) -> Job:
        prefix = f"seed {self.seed}, "
        return Job(prefix + name, result, tuple(prefix + need for need in needs), work)

    def _training(self, arm: Arm) -> Job:
        needs = (arm.start,) if arm.start else ()
        check_run(self.scale.recipes, self._settings(arm), self.folder / arm.name)
        return self._job(arm.name, self.folder / arm.name / "report.md", needs, lambda: self._train(arm))

    def model(self, arm: str) -> Path:
        return self.folder / arm / "models" / ARMS[arm].stage

    def _train(self, arm: Arm) -> None:
        if self._has_own_rows(arm):
            rows = load_judgments(self.file("judgments"), load_rubrics(self.recipe.prompt.rubrics_file), "pointwise")
            rows = as_choices(rows) if arm.mode == "pairwise" else without_rubrics(rows)
            write_text(Path(self._rows(arm)), "".join(judgment_to_json(row) + "\n" for row in rows))
        scale = self.scale
        train(scale.recipes, self._settings(arm), self.folder / arm.name, scale.launcher, scale.threads)

    def _settings(self, arm: Arm) -> list[str]:
        settings = [*self._small(arm), *self.scale.settings, f"seed={self.seed}", f'stages=["{arm.stage}"]']
        settings += [f"mode={arm.mode}", f"prompt.rubrics={arm.rubrics}", *arm.settings]
        if not arm.start:
            if self.is_embedded:  # whose held-out pairs are always measured; here one judgment will do
                settings += [f"data.embedded.seed={self.seed}", "eval.num_judgments=1", "eval.votes=[1]"]
            else:
                settings.append('data.held_out=""')
        else:
            settings += ['data.source="files"', f"model.path={self.model(arm.start)}", f"data.dev={self.file('dev')}"]
            settings.append(f"data.held_out={self.file('held_out')}" if arm.is_scalar else 'data.held_out=""')
            rows = f"data.judgments={self._rows(arm)}" if arm.stage == "sft" else f"data.pairs={self.file('pairs')}"
            settings.append(rows)
        return settings

    def _small(self, arm: Arm) -> tuple[str, ...]:
        return arm.at_small_scale if self.is_embedded else ()

    def _has_own_rows(self, arm: Arm) -> bool:
        """SFT on the start's judgments in another form."""
        return arm.stage == "sft" and bool(arm.start) and (arm.rubrics == "primary" or arm.mode == "pairwise")

    def _rows(self, arm: Arm) -> str:
        """The file of the judgments that SFT reads."""
        return str(self.folder / f"{arm.name}.jsonl") if self._has_own_rows(arm) else self.file("judgments")

    def _judge(self, arm: str, n: int) -> None:
        options = ["--data", self.file("held_out"), "--votes", str(n), "--out", str(self.held_out(arm))]
        self._evaluate("pairs", arm, options, self._reading(ARMS[arm]))

    def _rm_bench(self, arm: str) -> None:
        data = self.folder / "rm_bench_data"
        pairs = load_pairs(self.file("held_out"), load_rubrics(self.recipe.prompt.rubrics_file))
        for name, text in rm_bench_files(pairs, NUM_RM_PROMPTS).items():
            write_text(data / name, text)
        scalar = ["--judge", "scalar", "--votes", "1"]
        how = scalar if ARMS[arm].is_scalar else ["--votes", "1,8", *self._reading(ARMS[arm])]
        self._evaluate("rm_bench", arm, ["--data", str(data), "--out", str(self.rm_bench(arm))], how)

    def _reading(self, arm: Arm) -> list[str]:
        """How the arm's judge was trained to be asked."""
        recipe = self.scale.recipe(before=self._small(arm))
        prompt, most = recipe.prompt, recipe.rollout.max_completion_tokens
        options = {
            "mode": arm.mode, "rubrics": arm.rubrics, "template": prompt.template, "rubrics-file": prompt.rubrics_file,
            "max-context-tokens": prompt.max_context_tokens, "max-completion-tokens": most,
        }  # fmt: skip
        return [part for name, value in options.items() if value != "" for part in (f"--{name}", str(value))]

    def _evaluate(self, command: str, arm: str, options: Sequence[str], how: Sequence[str]) -> None:
        model = ["--model", str(self.model(arm)), "--seed", str(self.seed), "--dtype", self.recipe.model.dtype]
        run_process([*PYTHON, str(ROOT / "eval" / "main.py"), command, *model, *options, *how], self.scale.threads)


def run_jobs(jobs: Sequence[Job], side_by_side: int, tell: Callable[[str], None] = print) -> None:
    """Runs what has no result yet, each job after those that it needs, the first of the list first.

    Raises:
        ValueError: a job failed; those that are under way end first.
    """
    waiting = {job.name: job for job in jobs if not job.result.is_file()}
    total, started, start = len(waiting), {}, time.perf_counter()
    if not waiting:
        return
    running: dict[Future, Job] = {}
    with ThreadPoolExecutor(side_by_side) as pool:
        while waiting or running:
            busy = {job.name for job in running.values()}
            ready = [job for job in waiting.values() if not any(need in waiting or need in busy for need in job.needs)]
            for job in ready[: side_by_side - len(running)]:
                started[job.name] = time.perf_counter()
                running[pool.submit(job.work)] = waiting.pop(job.name)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                if not job.result.is_file():
                    raise ValueError(f"{job.name}: ended without {job.result}")
                done, now = total - len(waiting) - len(running), time.perf_counter()
                left = (now - start) / done * (total - done)
                tell(f"[{done}/{total}] {job.name}: {now - started[job.name]:.0f} s; about {left / 60:.0f} min left")
