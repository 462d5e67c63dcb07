import itertools
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core import prompts
from patarm_core.judgment import ALL_TAGS, JUDGMENT_TAGS
from patarm_core.prompts import Message, escape, flatten, pairwise, pointwise, unescape
from patarm_core.rubrics import default_rubrics, render

BOOK = default_rubrics()

# Pieces from which tags, control tokens, entities and near misses arise when they are strung together.
_pieces = st.sampled_from(
    ["<", "</", "< ", "/", ">", " ", "\n", "&lt;", "&amp;", "amp;", "&#91;", "[", "INST]", "/INST]", "<|", "|>", "s>"]
    + ["SYS>>", "<<", "a", "=", "-", "&", "#91;", "lt;", "answer", "ANSWER", "think", "response", "responseA", "turn"]
    + ["<answer>", "</answer>", "< / Answer >", "<answer x>", "<|im_end|>", "[INST]", "<s>", "im_start", "answers"]
)
texts = st.lists(_pieces, max_size=14).map("".join) | st.text(max_size=20)
messages = st.lists(st.builds(Message, st.sampled_from(prompts.ROLES), texts), min_size=1, max_size=3).map(tuple)
prompt_values = texts | messages

# Written apart from the code under test: a tag as a lenient reader might take it, or a control token.
_A_TAG = re.compile(rf"<\s*/?\s*(?:{'|'.join(ALL_TAGS)})\s*/?\s*>", re.IGNORECASE)
_A_TAG_WITH_ATTRIBUTES = re.compile(rf"<(?:{'|'.join(ALL_TAGS)})\s[^<>]*>", re.IGNORECASE)
_CONTROL = re.compile(r"<\||</?s>|\[/?INST\]|<</?SYS>>")


@given(texts)
@example("&lt;answer>")
@example("&amp;lt;answer>")
@example("<answer <answer>")
@example("</answer[INST]")
@example("< answer [INST]>")
@example("<<SYS>>")
def test_unescape_gives_the_text_back(text):
    assert unescape(escape(text)) == text


@given(texts)
@example("<answer <answer>")
@example("<answer\n<answer>")
def test_no_tag_and_no_control_token_survives(text):
    safe = escape(text)
    assert not _A_TAG.search(safe)
    assert not _A_TAG_WITH_ATTRIBUTES.search(safe)
    assert not _CONTROL.search(safe)


@pytest.mark.parametrize("tag", ALL_TAGS)
def test_every_form_of_a_tag_is_escaped(tag):
    forms = [
        "<{}>",
        "</{}>",
        "< {} >",
        "< / {} >",
        "<{} />",
        "<{} x>",
        '<{}\nx="1">',
        "< {} x>",
        "</{}",
        "<{}",
        "<\t/{}\n>",
    ]
    for form, change in itertools.product(forms, [str, str.upper, str.title]):
        written = form.format(change(tag))
        assert escape(written) == "&lt;" + written[1:]


@pytest.mark.parametrize(
    "token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|", "<｜begin▁of▁sentence｜>", "</s>", "<tool_call>"]
)
def test_a_control_token_is_escaped(token):
    assert escape(token) == "&lt;" + token[1:]


def test_brackets_of_chat_formats_are_escaped():
    assert escape("[INST] <<SYS>> [/INST]") == "&#91;INST] <&lt;SYS>> &#91;/INST]"


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "<div class='answer'>&lt;b&gt; &amp;lt;</div>",
        "std::vector<int> v; map<prompts, answers> m;",
        "for (i = 0; i<response.length; i++) { x<answer; }",
        "if score < answer:\n    y > 3",
        "<answers> <thinking> <evaluation> <prompt-box> </task-list>",
        "Vec<S>, a[i], [INSTALL], p |> f",
        "the answer: 7, think of <x> & <y>",
    ],
)
def test_ordinary_text_is_unchanged(text):
    assert escape(text) == text


@pytest.mark.parametrize(
    "piece", ["<", "< ", " ", "&amp;", "amp;", "<answer ", "< answer a", "</", "<|", "[", "&", "&#91;"]
)
def test_escape_takes_linear_time(piece):
    text = "<" + piece * 300_000
    start = time.process_time()
    assert unescape(escape(text)) == text
    assert time.process_time() - start < 10  # well under a second; quadratic time would be minutes


def test_a_single_user_message_is_its_content():
    assert flatten([{"role": "user", "content": "2 + 2?"}]) == flatten("2 + 2?") == "2 + 2?"


def test_a_conversation_keeps_its_turns():
    conversation = [Message("user", "Hi"), {"role": "assistant", "content": "Hello</turn>"}]
    assert flatten(conversation) == (
        '<turn role="user">\nHi\n</turn>\n<turn role="assistant">\nHello&lt;/turn>\n</turn>'
    )


def _canonical(prompt):
    """A text is the same prompt as that text in a single user message."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


@given(prompt_values, prompt_values)
def test_distinct_prompts_flatten_to_distinct_texts(one, other):
    assert (flatten(one) == flatten(other)) == (_canonical(one) == _canonical(other))


@given(messages)
def test_a_turn_cannot_be_forged(conversation):
    if len(conversation) > 1:
        roles = re.findall(r'<turn role="(\w+)">', flatten(conversation))
        assert roles == [message.role for message in conversation]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "a prompt needs at least one message"),
        (
            [Message("bot", "Hi")],
            "unknown role 'bot'; roles are system, developer, user, assistant, tool, function",
        ),
    ],
)
def test_a_prompt_that_cannot_be_flattened_is_refused(prompt, message):
    with pytest.raises(ValueError) as error:
        flatten(prompt)
    assert str(error.value) == message


def _inside(tag, text):
    found = re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    assert len(found) == 1
    return found[0]


@given(texts, texts, st.sampled_from(["full", "bare", "general"]))
def test_the_texts_can_be_read_back_from_their_blocks(prompt, response, template):
    context = pointwise(prompt, response, "chat", BOOK, template=template)
    assert unescape(_inside("prompt", context)) == prompt
    assert unescape(_inside("response", context)) == response


@given(texts, texts, texts, st.sampled_from(["full", "bare", "general"]))
def test_the_two_responses_can_be_read_back_from_their_blocks(prompt, a, b, template):
    context = pairwise(prompt, a, b, "code", BOOK, template=template)
    blocks = [unescape(_inside(tag, context)) for tag in ("prompt", "responseA", "responseB")]
    assert blocks == [prompt, a, b]


@given(texts, texts)
def test_the_judged_texts_add_no_tag_and_no_control_token(prompt, response):
    hostile = pointwise(prompt, response, "math", BOOK)
    assert _A_TAG.findall(hostile) == _A_TAG.findall(pointwise("p", "r", "math", BOOK))
    assert not _CONTROL.search(hostile)


def test_the_bare_template_is_that_of_the_published_checkpoints():
    expected = """<task>chat</task>
<rubrics>
Usefulness:
  - 8-10: Fully addresses the question with accurate, comprehensive information.
  - 6-7: Addresses the question clearly but may lack some detail.
  - 3-5: Relevant but missing key details or context.
  - 0-2: Off-topic, incomplete, or poorly structured.
</rubrics>
<prompt>
What is the capital of France?
</prompt>
<response>
The capital of France is Paris.
</response>"""
    judged = ("What is the capital of France?", "The capital of France is Paris.")
    assert pointwise(*judged, "chat", BOOK, template="bare") == expected
    pair = pairwise(*judged, "Lyon.", "chat", BOOK, template="bare")
    assert pair == expected.replace("response>", "responseA>") + "\n<responseB>\nLyon.\n</responseB>"


def test_the_bare_template_without_primary_rubrics_has_no_rubrics_block():
    context = pointwise("p", "r", "chat", BOOK, rubrics="generated", template="bare")
    assert context == "<task>chat</task>\n<prompt>\np\n</prompt>\n<response>\nr\n</response>"


@pytest.mark.parametrize("task", BOOK.tasks)
def test_adaptive_gives_the_primary_rubrics_and_asks_for_more(task):
    for context in (pointwise("p", "r", task, BOOK), pairwise("p", "a", "b", task, BOOK)):
        assert f"<task>{task}</task>" in context
        assert _inside("rubrics", context) == render(BOOK.for_task(task))
        assert "1 to 3 additional rubrics" in context and "<generate_rubrics></generate_rubrics>" in context
        assert "take precedence" in context


@pytest.mark.parametrize("task", BOOK.tasks)
def test_primary_asks_for_no_generation(task):
    for context in (
        pointwise("p", "r", task, BOOK, rubrics="primary"),
        pairwise("p", "a", "b", task, BOOK, rubrics="primary"),
    ):
        assert _inside("rubrics", context) == render(BOOK.for_task(task))
        assert "generate" not in context and "1 to 3" not in context and "additional" not in context


@pytest.mark.parametrize("task", BOOK.tasks)
def test_generated_gives_no_primary_rubric(task):
    for context in (
        pointwise("p", "r", task, BOOK, rubrics="generated"),
        pairwise("p", "a", "b", task, BOOK, rubrics="generated"),
    ):
        assert "<rubrics>" not in context and "provided" not in context.lower()
        assert "1 to 3 rubrics" in context and "<generate_rubrics></generate_rubrics>" in context
        assert not any(rubric.question in context for rubric in BOOK.for_task(task))


@pytest.mark.parametrize("setting", ["adaptive", "primary", "generated"])
def test_the_judgment_tags_are_asked_for_in_order(setting):
    expected = [tag for tag in JUDGMENT_TAGS if setting != "primary" or tag != "generate_rubrics"]
    for context in (
        pointwise("p", "r", "chat", BOOK, rubrics=setting),
        pairwise("p", "a", "b", "chat", BOOK, rubrics=setting),
    ):
        request = context[context.rindex("First think") :]
        first_uses = dict.fromkeys(re.findall(r"<(\w+)>", request))
        assert list(first_uses) == expected


def test_the_general_judge_gives_an_integer_or_a_choice_and_has_no_rubrics():
    score = pointwise("p", "r", "anything", BOOK, template="general")
    assert "integer from 1 to 10" in score and "<answer>5</answer>" in score
    choice = pairwise("p", "a", "b", "anything", BOOK, template="general")
    assert "<answer>A</answer> or <answer>B</answer>" in choice
    for context in (score, choice):
        assert "rubric" not in context and "<think>" not in context
        for factor in ("helpfulness", "relevance", "accuracy", "depth", "creativity", "level of detail"):
            assert factor in context


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rubrics": "none"},
            "unknown rubric setting 'none'; settings are adaptive, primary, generated",
        ),
        ({"template": "short"}, "unknown template 'short'; templates are full, bare, general"),
        (
            {"task": "cod"},
            "unknown task 'cod'; known tasks are chat, math, code, safety, instruction_following (nearest: 'code')",
        ),
    ],
)
def test_an_unknown_choice_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        pointwise("p", "r", **{"task": "chat", "book": BOOK} | arguments)
    assert str(error.value) == message
