"""Prompt and response as turns of a chat."""

import pytest
from transformers import PreTrainedTokenizerFast

from patarm_core.prompts import Message
from rollout.chat import answered_chat, whole_chat
from tests.models import tokenizer

PROMPTS = [
    "the answer?",
    [{"role": "user", "content": "the answer?"}],
    (Message("system", "then"), Message("user", "here?"), Message("assistant", "there"), Message("user", "<answer>?")),
]


def turns(prompt) -> list[dict]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [m._asdict() if isinstance(m, Message) else m for m in prompt]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_reward_model_reads_what_its_pipeline_would_make(prompt):
    messages = [*turns(prompt), {"role": "assistant", "content": "7.5, <answer>"}]
    expected = tokenizer().apply_chat_template(messages, tokenize=True, return_dict=False)
    assert whole_chat(tokenizer(), prompt, "7.5, <answer>", "it") == list(expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_context_and_completion_make_the_chat_up_to_its_end_token(prompt):
    context, completion = answered_chat(tokenizer(), prompt, "7.5", "it")
    whole = tokenizer().decode(whole_chat(tokenizer(), prompt, "7.5", "it"))
    assert tokenizer().decode(context).endswith("assistant\n")
    assert completion[-1] == tokenizer().eos_token_id
    assert tokenizer().decode(context + completion) + "\n" == whole


def test_a_template_that_refuses_the_turns_is_told():
    strict = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    strict.chat_template = "{{ raise_exception('system comes not here') }}"
    with pytest.raises(ValueError) as error:
        whole_chat(strict, PROMPTS[2], "7.5", "pair 3 of mine")
    assert str(error.value) == (
        "pair 3 of mine: the chat template refuses turns of system, user, assistant, user, assistant: "
        "system comes not here"
    )
