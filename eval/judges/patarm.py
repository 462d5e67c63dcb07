"""PaTaRM's own judge, and the general-purpose judge for models that were not trained for it (table 5).

A model after SFT alone is this judge with another directory; `rubrics` is the ablation of table 4.
"""

from __future__ import annotations

from functools import partial

from eval.judges.form import Ask, Form, Sampling
from eval.judges.reading import Reading, unread
from patarm_core.judgment import AnswerKind, RubricSetting, parse, read_answer
from patarm_core.prompts import Template, pairwise, pointwise
from patarm_core.rubrics import RubricBook
from rollout.questions import STOP

_WHY = {
    "tags": "a tag is missing, repeated or out of order, and no <answer> can be read",
    "score": "the <answer> is not valid",
    None: "no <answer>",
}


def patarm_form(book: RubricBook, rubrics: RubricSetting = "adaptive", template: Template = "full") -> Form:
    """The judge of METHOD section 4, or with the template "general" the impartial one.

    Judgments are read leniently: the last well-formed answer, whatever stands around it.
    """

    def ask(prompt, responses, task):
        render = pointwise if len(responses) == 1 else pairwise
        text = render(prompt, *responses, task, book, rubrics=rubrics, template=template)
        return [{"role": "user", "content": text}]

    asks: dict[str, Ask] = {"pointwise": ask, "pairwise": ask}
    return Form(
        name="general" if template == "general" else "patarm",
        asks=asks,
        reads={
            "pointwise": partial(read, "score", rubrics),
            "pairwise": partial(read, "choice", rubrics),
        },
        sampling=Sampling(temperature=1.0, max_tokens=4096),
        stop=STOP,
        variant="" if template == "general" or rubrics == "adaptive" else rubrics,
        tasks=() if template == "general" else tuple(book.tasks),
    )


def read(kind: AnswerKind, rubrics: RubricSetting, text: str) -> Reading:
    answer = read_answer(text, kind)
    if answer is None:
        return unread(_WHY[parse(text, kind, rubrics).error])
    return Reading(score=float(answer)) if kind == "score" else Reading(choice=answer)
