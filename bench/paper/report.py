"""An experiment, which is its facts and all that follows from them, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.paper.findings import FINDINGS, Facts, Judged, judge
from bench.paper.plan import NEEDS
from bench.paper.tables import TABLES, Table, published
from bench.paper.times import TIME_FINDINGS, time_tables
from eval.tables import markdown
from patarm_core.fields import read_object
from rollout.contexts import read_text

TITLES = {
    "table1": "Table 1: models on RewardBench and RM-Bench",
    "table3": "Table 3: pairwise judges",
    "table4": "Table 4: primary rubrics, generated rubrics, both",
    "figure3": "Figure 3: f graded against f constant",
    "figure4": "Figure 4: flipped labels, PaTaRM against BTRM",
    "figure5": "Figure 5: voting@n",
    "table8": "Table 8: seconds of a training step against n",
    "table9": "Table 9: a policy's step with a judge and with a scalar model",
}
RULE = (
    "A number is the mean over the seeds ± half of its 95 % interval (Student's t). A finding holds if the whole "
    "interval of its difference, of models trained from the same start, is above 0; does not hold if it is below; else "
    "it cannot be told. `overall` is the mean of the four tasks, ties count 0."
)


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    said: str  # of what the facts are
    facts: Sequence[Facts]
    tables: Sequence[Table]
    judged: Sequence[Judged]

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def notes(self) -> list[str]:
        """Where the paper's own numbers do not add up."""
        return published()["notes"].get(self.name, [])


def experiment_of(name: str, facts: Sequence[Facts]) -> Experiment:
    """
    Args:
        facts: of each seed; of tables 8 and 9 those of `times.time_facts`, which may be none.
    """
    if name in TABLES:
        said = f"Seeds {', '.join(str(of_seed['seed']) for of_seed in facts)}."
        return Experiment(name, said, facts, TABLES[name](facts), judge(FINDINGS[name], facts))
    said, tables = time_tables(name, facts)
    return Experiment(name, said, facts, tables, judge(TIME_FINDINGS[name], facts))


def read_experiments(out: Path) -> list[Experiment]:
    """Those whose records (NAME.json) lie in a folder, in the paper's order.

    Raises:
        ValueError: one line; a file that is no such record.
    """
    found = []
    for name in NEEDS:
        file = out / f"{name}.json"
        if not file.is_file():
            continue
        try:
            found.append(experiment_of(name, read_object(read_text(file))["facts"]))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            why = f"no facts of {name} ({type(error).__name__} {error})"
            raise ValueError(f"{file}: {why}; remove it, or have it measured again") from None
    return found


def as_markdown(experiment: Experiment) -> str:
    parts = [f"## {experiment.title}", f"{experiment.said} {RULE}" if experiment.facts else experiment.said]
    for table in experiment.tables:
        parts += [f"{table.caption}:", markdown(table.rows)]
    if experiment.judged:
        parts += ["The paper's findings here:", "\n".join(f"- {one.line()}" for one in experiment.judged)]
    if experiment.notes:
        parts += ["The paper's own numbers:", "\n".join(f"- {note}" for note in experiment.notes)]
    return "\n\n".join(parts)


def about(experiment: Experiment) -> dict:
    """JSON-ready: all that the Markdown is made of, and the numbers of every seed."""
    return {
        "experiment": experiment.name,
        "tables": [asdict(table) for table in experiment.tables],
        "findings": [
            {
                "claim": one.finding.claim, "published": one.finding.published, "unit": one.finding.unit,
                "is_ours": one.finding.is_ours, "by_seed": one.values, "verdict": one.word,
            }
            for one in experiment.judged
        ],
        "facts": list(experiment.facts),
    }  # fmt: skip
