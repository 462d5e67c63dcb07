"""What each model of a run is worth on data that it was not trained on, kept in report.json as it comes in."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import fmean

from eval.pair_accuracy import summary
from eval.pairs_command import write_judgments
from eval.tables import accuracy_table, markdown, task_table
from patarm_core.stats import bootstrap_interval
from rollout.text_files import read_record, record_line
from trainer.config import Recipe
from trainer.inputs import Inputs
from trainer.learner import Learner
from trainer.machine import machine
from trainer.pair_stage import PairObjective
from trainer.policy import Answer, PolicyReplica, answer_metrics
from trainer.replica import JudgeReplica, Replica
from trainer.report import policy_rows
from trainer.run_folder import RunFolder, write_text


class HeldOut:
    """Results of a judge on the held-out pairs, by model name."""

    key = "held_out"  # in report.json

    def __init__(self, recipe: Recipe, folder: RunFolder, inputs: Inputs, replica: Replica, start: float) -> None:
        self.recipe, self.folder, self.replica, self.start = recipe, folder, replica, start
        self.data = inputs.data
        before = read_record(folder.path / "report.json") if folder.is_writer else {}
        before = replica.world.gather(before)[0]  # on all ranks the same: measurements are collective
        self.results: dict[str, dict] = before.get(self.key, {})
        self._measured: list[str] = before.get("measured", [])
        if "rollout" in before:
            replica.shared.load_state_dict(before["rollout"])
        self._earlier_s = {name: before.get(name, 0.0) for name in ("wall_s", "cpu_s")}  # of a run that resumes

    def spent(self) -> dict[str, float]:
        """Wall and process CPU seconds of the run so far, this process."""
        now = {"wall_s": time.perf_counter() - self.start, "cpu_s": time.process_time()}
        return {name: self._earlier_s[name] + seconds for name, seconds in now.items()}

    def measure(self, name: str, learner: Learner, objective: PairObjective | None = None) -> None:
        """Measures what was trained or, after a stage that trains another reward, that."""
        if name in self._measured:
            return
        self._measure(name, learner, objective)
        self._measured.append(name)
        if self.folder.is_writer:
            report = {self.key: self.results, "measured": self._measured, **self.spent(), "machine": machine()}
            report["rollout"] = self.replica.shared.state_dict()  # with which a stage without checkpoint begins
            write_text(self.folder.path / "report.json", json.dumps(report, indent=1))

    def _measure(self, name: str, learner: Learner, objective: PairObjective | None) -> None:
        if not (pairs := self.data.held_out):
            return
        if objective is not None:
            judged, votes = objective.scored(learner, pairs), [1]
        else:
            assert isinstance(self.replica, JudgeReplica)
            n, votes = self.recipe.eval.num_judgments, self.recipe.eval.votes
            judged = self.replica.judge(learner, pairs, n, f"held-out, {name}")
        self.results[name] = summary(judged, votes)
        if self.folder.is_writer:
            write_judgments(self.folder.path / "judgments" / f"{name}.jsonl", judged)

    def table(self) -> str:
        """Markdown; empty where nothing was measured."""
        if not self.results:
            return ""
        return "\n".join(["## Held-out pairs", accuracy_table(self.results), "", task_table(self.results)])


class PolicyHeldOut(HeldOut):
    """Results of a policy that answers the held-out prompts."""

    key = "held_out_prompts"

    def _measure(self, name: str, learner: Learner, objective: PairObjective | None) -> None:
        if not (prompts := self.data.held_out_prompts):
            return
        assert isinstance(self.replica, PolicyReplica)
        n = self.recipe.eval.num_judgments
        answers = self.replica.answers(learner, prompts, n, f"held-out, {name}")
        self.results[name] = policy_summary(answers, [prompt.task for prompt in prompts])
        if self.folder.is_writer:
            lines = [
                record_line(
                    {"source": prompt.source, "id": prompt.id, "response": answer.text, "checked": answer.checked}
                )
                for prompt, group in zip(prompts, answers, strict=True)
                for answer in group
            ]
            write_text(self.folder.path / "answers" / f"{name}.jsonl", "".join(lines))

    def table(self) -> str:
        if not self.results:
            return ""
        return "## Held-out prompts\n" + markdown(policy_rows(self.results))


def policy_summary(answers: Sequence[Sequence[Answer]], tasks: Sequence[str]) -> dict:
    """`answer_metrics` of all answers, the checker's interval over prompts (bootstrap), and its mean by task.

    `low` and `high` are left out where one prompt, or prompts that are all alike, do not show any spread.
    """
    result: dict = {**answer_metrics(answers), "num_prompts": len(answers), "by_task": {}}
    if "accuracy" in result:
        means = [fmean(answer.checked for answer in group) for group in answers]
        low, high = bootstrap_interval(means, seed=0)
        result |= {"low": low, "high": high} if low < high else {}
        for task in sorted(set(tasks)):
            result["by_task"][task] = fmean(m for m, of in zip(means, tasks, strict=True) if of == task)
    return result
