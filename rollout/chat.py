"""A response as the chat turn that it is: what Bradley–Terry reward models read, and what DPO trains.

The texts stand as they are, unescaped: neither model is asked to judge them, and published reward models are fed so.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from patarm_core.prompts import Message, Prompt


def whole_chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, name: str) -> list[int]:
    """Token ids of prompt and response, the response as the assistant's turn; a scalar model scores the last of them.

    Raises:
        ValueError: the chat template refuses this conversation; `name` says which it is.
    """
    return _token_ids(tokenizer, [*_turns(prompt), {"role": "assistant", "content": response}], name, is_open=False)


def asked_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], name: str, opening: str) -> list[int]:
    """Token ids of these turns up to where the assistant speaks, and of the text with which it is made to begin.

    Raises:
        ValueError: as in `whole_chat`.
    """
    return _token_ids(tokenizer, turns, name, is_open=True, opening=opening)


def answered_chat(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, name: str
) -> tuple[list[int], list[int]]:
    """(context, completion): the prompt up to where the assistant speaks; the response and the end token.

    Raises:
        ValueError: as in `whole_chat`.
    """
    completion = tokenizer.encode(response, add_special_tokens=False)
    return _token_ids(tokenizer, _turns(prompt), name, is_open=True), [*completion, tokenizer.eos_token_id]


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    turns = [m._asdict() if isinstance(m, Message) else m for m in messages]
    return [{"role": turn["role"].replace("developer", "system"), "content": turn["content"]} for turn in turns]


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], name: str, is_open: bool, opening: str = ""
) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=is_open, tokenize=False)
    except Exception as error:  # a template raises what it likes, such as that roles must alternate
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"{name}: the chat template refuses turns of {roles}: {str(error)[:200]}") from None
    return tokenizer.encode(text + opening, add_special_tokens=False)
