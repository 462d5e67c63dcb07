"""RM-R1 (arXiv 2505.02387): rubrics or a solution of its own first, then a choice; from instruct or distilled models.

The templates are in our words; tags, blocks and the form of the verdict are those of RM-R1-UIUC/RM-R1:
eval/RM-Bench/rewardbench/generative.py. Greedy. A judgment with both verdicts has none. Conversations are put into one
block, where the original has no such case for RM-Bench.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, after_thinking, one_of_marks

_SYSTEM = """\
You are an impartial judge of the responses that two AI Chatbots gave to the Client's question below.

First say of which kind the task is: <type>Reasoning</type> for mathematics, code and whatever needs domain knowledge \
or several steps of deduction, <type>Chat</type> for open or factual conversation, rewriting, safety questions and \
general help.

If it is Reasoning:
1. Solve the question yourself, in <solution>...</solution>.
2. Judge both responses in <eval>...</eval> by correctness, completeness and quality of reasoning, with your solution \
beside them. Quote the Chatbots in <quote_A>...</quote_A> and <quote_B>...</quote_B>, or sum them up in \
<summary_A>...</summary_A> and <summary_B>...</summary_B>.
3. End with your verdict: <answer>[[A]]</answer> or <answer>[[B]]</answer>

If it is Chat:
1. Write criteria made for this question and its context in <rubric>...</rubric>, with weights, and say in \
<justify>...</justify> inside it why you chose them.
2. Compare both responses by these criteria in <eval>...</eval>, with quotes and summaries in the tags above.
3. End with your verdict: <answer>[[A]]</answer> or <answer>[[B]]</answer>

Go by the content of the responses alone: not by their order, their length or the names of the Chatbots. Keep strictly \
to the format of the kind that you chose."""

_BLOCKS = """\
[Client Question]
{prompt}

[The Start of Chatbot A's Response]
{response_a}
[The End of Chatbot A's Response]

[The Start of Chatbot B's Response]
{response_b}
[The End of Chatbot B's Response]"""

_DISTILLED = f"""\
You are an impartial judge. Evaluate the responses that two AI Chatbots gave to the Client question below.

{_BLOCKS}

End with your verdict in exactly this form: '<answer>[[A]]</answer>' if Chatbot A is better, or \
'<answer>[[B]]</answer>' if Chatbot B is better."""


def read(text: str) -> Reading:
    return one_of_marks(after_thinking(text), "[[A]]", "[[B]]")


RM_R1 = Form(
    name="rm-r1",
    asks={"pairwise": Template(_BLOCKS, _SYSTEM)},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.0, max_tokens=8192),
)
RM_R1_DISTILLED = Form(
    name="rm-r1-distilled",
    asks={"pairwise": Template(_DISTILLED)},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.0, max_tokens=8192),
    thinks=True,
)
