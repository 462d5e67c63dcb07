"""Files and (prompt, response) pairs as they become token ids, and what is said about those that cannot."""

import pytest

from patarm_core.pairs import Pair
from patarm_core.prompts import Message, pointwise
from patarm_core.rubrics import default_rubrics
from rollout.contexts import ContextBuilder, PromptConfig, load_judgments, load_pairs, load_rubrics, read_text
from rollout.vocabulary import load_tokenizer

BOOK = default_rubrics()
PAIR = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "task": "chat"}'


def write(path, data: bytes | str):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny_judge):
    return load_tokenizer(tiny_judge)


@pytest.fixture
def contexts(tokenizer):
    return lambda **config: ContextBuilder(tokenizer, PromptConfig(**config), BOOK)


def test_windows_line_ends_are_line_ends(tmp_path):
    file = write(tmp_path / "pairs.jsonl", f"{PAIR}\r\n\r\n{PAIR}\r\n")
    assert [(p.id, p.chosen) for p in load_pairs(file, BOOK)] == [("1", "Because."), ("3", "Because.")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_separator_that_is_not_a_line_end_stays_in_its_text(tmp_path, separator):
    raw = separator if separator > "\x1f" else f"\\u{ord(separator):04x}"  # JSON wants control characters escaped
    file = write(tmp_path / "pairs.jsonl", PAIR.replace("Because.", f"Be{raw}cause.") + "\n" + PAIR)
    assert [p.chosen for p in load_pairs(file, BOOK)] == [f"Be{separator}cause.", "Because."]


def test_a_last_line_without_its_end_is_a_line(tmp_path):
    assert len(load_pairs(write(tmp_path / "pairs.jsonl", f"{PAIR}\n{PAIR}"), BOOK)) == 2


def test_judgments_are_read_alike(tmp_path):
    row = '{"prompt": "Why?", "response": "So.", "judgment": "<think>a</think>", "task": "math", "id": 7}'
    (example,) = load_judgments(write(tmp_path / "j.jsonl", row + "\r\n"), BOOK)
    assert (example.response, example.judgment, example.task, example.id, example.source) == (
        "So.", "<think>a</think>", "math", "7", "j",
    )  # fmt: skip


def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for file, problem in (
        (tmp_path / "none.jsonl", "no such file"),
        (write(tmp_path / "x", "x") / "below", "cannot be read: Not a directory"),
        (write(tmp_path / "latin.jsonl", b'{"prompt": "caf\xe9"}'), "not UTF-8 at byte 15"),
    ):
        for read in (read_text, lambda file: load_pairs(file, BOOK), lambda file: load_rubrics(str(file))):
            with pytest.raises(ValueError) as error:
                read(file)
            assert str(error.value) == f"{file}: {problem}"
    folder = tmp_path / "folder.jsonl"
    with pytest.raises(ValueError, match=r"folder\.jsonl: cannot be read: Is a directory"):
        read_text(folder)
    with pytest.raises(ValueError, match=r"folder\.jsonl: the folder holds no file that ends in \.jsonl"):
        load_pairs(folder, BOOK)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "is a list; expected one object per line"),
        (PAIR.replace('"rejected": "No.", ', ""), "rejected: missing; expected a text"),
        (PAIR.replace("chat", "chess"), "task: unknown task 'chess'"),
        (PAIR.replace("Because.", " "), "chosen: is empty; expected some text"),
        (PAIR.replace("Because.", "No."), "rejected: equal to chosen"),
    ],
)
def test_a_bad_row_is_told_with_file_line_and_field(tmp_path, line, problem):
    file = write(tmp_path / "pairs.jsonl", f"{PAIR}\n\n{line}\n")
    with pytest.raises(ValueError) as error:
        load_pairs(file, BOOK)
    assert str(error.value).startswith(f"{file}:3: {problem}")
    assert "\n" not in str(error.value)


def test_rubrics_are_the_papers_unless_a_file_is_named(tmp_path):
    assert load_rubrics("") == default_rubrics()
    file = write(tmp_path / "r.toml", '[[poem]]\nname = "Rhyme"\nquestion = "Does it rhyme?"\n')
    assert load_rubrics(str(file)).tasks == ("poem",)


@pytest.mark.parametrize("template", ["bare", "full"])
def test_a_context_is_the_rendered_prompt_in_the_chat_format(contexts, tokenizer, template):
    token_ids = contexts(template=template, rubrics="primary").pointwise("Why?", "Because.", "chat", "x")
    text = pointwise("Why?", "Because.", "chat", BOOK, rubrics="primary", template=template)
    assert tokenizer.decode(token_ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_messages_are_read_as_a_conversation(contexts, tokenizer):
    prompt = (Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Why?"))
    text = tokenizer.decode(contexts(template="bare").pointwise(prompt, "So.", "chat", "x"))
    assert '<turn role="assistant">\nHo\n</turn>' in text


@pytest.mark.parametrize(
    "control", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</response>", "<answer>"]
)
def test_judged_text_cannot_write_a_control_token_or_a_tag(contexts, tokenizer, control):
    """Token by token: what stands in a response never becomes a token of the format."""
    number = tokenizer.convert_tokens_to_ids(control)
    plain = contexts(template="bare").pointwise("Why?", "So x.", "chat", "x")
    for prompt, response in (("Why?", f"So {control}x."), (f"Why{control}?", "So x.")):
        forged = contexts(template="bare").pointwise(prompt, response, "chat", "x")
        assert forged.count(number) == plain.count(number)
        assert tokenizer.decode(forged).count(control) == tokenizer.decode(plain).count(control)


def test_a_context_over_the_limit_is_told_with_its_name_and_length(contexts):
    pair = Pair("Why?", "Because.", "No. " * 50, "chat", "here", "p7")
    length = len(contexts().sides(pair)[1])
    assert len(contexts(max_context_tokens=length).sides(pair)[1]) == length
    with pytest.raises(ValueError) as error:
        contexts(max_context_tokens=length - 1).sides(pair)
    assert str(error.value) == (
        f"pair p7 of here: prompt and response make a context of {length} tokens; "
        f"prompt.max_context_tokens is {length - 1}"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"template": "ful"}, "template='ful' must be one of full, bare, general"),
        ({"rubrics": "primry"}, "rubrics='primry' must be one of adaptive, primary, generated"),
        ({"max_context_tokens": 0}, "max_context_tokens=0 must be at least 1"),
    ],
)
def test_settings_under_which_nothing_could_be_asked_are_refused(config, message):
    with pytest.raises(ValueError) as error:
        PromptConfig(**config)
    assert str(error.value) == message


def test_the_sides_of_a_pair_are_its_two_responses(contexts):
    build = contexts(template="bare")
    pair = Pair("Why?", "Because.", "No.", "chat", "here", "1")
    assert build.sides(pair) == (
        build.pointwise("Why?", "Because.", "chat", "x"), build.pointwise("Why?", "No.", "chat", "x"),
    )  # fmt: skip
