"""The pairwise judge of chat models in RewardBench (GPT-4o, Gemini, DeepSeek-V3), after MT-bench.

The template is in our words; roles, blocks and the form of the verdict are those of allenai/reward-bench:
rewardbench/generative.py. Greedy, at most 2,048 tokens.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, unread

_SYSTEM = """\
You are an impartial judge. Compare the answers that two AI assistants gave to the user question below, and choose the \
assistant that follows the user's instructions and answers the question better. Weigh helpfulness, relevance, \
accuracy, depth, creativity and level of detail. First compare the two answers in a short explanation. Let \
neither the order of the answers, nor their length, nor the names of the assistants sway you; be as objective as you \
can. After the explanation, give your verdict in exactly this form: "[[A]]" if assistant A is better, \
"[[B]]" if assistant B is better."""

_USER = """\
[User Question]
{prompt}

[The Start of Assistant A's Answer]
{response_a}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{response_b}
[The End of Assistant B's Answer]"""


def read(text: str) -> Reading:
    """RewardBench looks for [[A]] first, wherever it stands, then for [[B]]."""
    for choice in ("A", "B"):
        if f"[[{choice}]]" in text:
            return Reading(choice=choice)
    return unread("neither [[A]] nor [[B]]")


MT_BENCH = Form(
    name="mt-bench",
    asks={"pairwise": Template(_USER, _SYSTEM)},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.0, max_tokens=2048),
)
