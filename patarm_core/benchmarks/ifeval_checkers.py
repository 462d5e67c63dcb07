"""IFEval's 25 instructions (google-research/instruction_following_eval), each a function from a response to a verdict.

Every checker takes the response and the instruction's settings by their published names. All are deterministic.
"""

import json
import re
from collections.abc import Callable, Mapping

from patarm_core.benchmarks.language import detect
from patarm_core.benchmarks.sentences import count_sentences, words

RELATIONS = ("at least", "less than")
# What `constrained_response` lets a response choose from.
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _holds(num: int, relation: str, limit: int) -> bool:
    return num >= limit if relation == "at least" else num < limit


def _pattern(keyword: str) -> str:
    """A keyword as upstream takes it, a regular expression; as it stands where it is none."""
    try:
        re.compile(keyword)
    except re.error:
        return re.escape(keyword)
    return keyword


def existence(text: str, keywords: list) -> bool:
    return all(re.search(_pattern(keyword), text, re.IGNORECASE) for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    num = sum(1 for _ in re.finditer(_pattern(keyword.strip()), text, re.IGNORECASE))
    return _holds(num, relation, frequency)


def forbidden_words(text: str, forbidden_words: list) -> bool:
    return not any(re.search(rf"\b{_pattern(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Of `letter`, be it a letter or not. (Upstream draws a random letter where it is not: keys 1122 and 1129.)"""
    return _holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    return detect(text) in (language, None)  # a text without letters passes, as upstream


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of ***; a blank one is passed over at either end alone."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between blank lines; the n-th is counted with the blank ones, the number without."""
    parts = [part.strip() for part in text.split("\n\n")]
    num = sum(map(bool, parts))
    if nth_paragraph > num or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return num == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return re.search(known.get(marker, _pattern(marker.lower())), text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Lines that begin with a dash, or with one star and something other than a star."""
    return len(re.findall(r"^\s*\*[^*].*$", text, re.M)) + len(re.findall(r"^\s*-.*$", text, re.M)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """*…* and **…** on one line with something inside; what two stars enclose counts once for each form it has."""
    found = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    found += [part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip()) for part in found) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{_pattern(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different ones around ******, which may also stand at either end."""
    parts = [part.strip() for part in text.split("******")]
    responses = [part for part in parts if part]
    return all(parts[1:-1]) and len(responses) == 2 and responses[0] != responses[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and detect(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and detect(text) in ("en", None)


def no_comma(text: str) -> bool:
    return "," not in text


# Instruction → checker, and its settings with their types.
CHECKERS: Mapping[str, tuple[Callable[..., bool], Mapping[str, type]]] = {
    "keywords:existence": (existence, {"keywords": list}),
    "keywords:frequency": (frequency, {"keyword": str, "frequency": int, "relation": str}),
    "keywords:forbidden_words": (forbidden_words, {"forbidden_words": list}),
    "keywords:letter_frequency": (letter_frequency, {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": (response_language, {"language": str}),
    "length_constraints:number_sentences": (number_sentences, {"num_sentences": int, "relation": str}),
    "length_constraints:number_paragraphs": (number_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": (number_words, {"num_words": int, "relation": str}),
    "length_constraints:nth_paragraph_first_word": (
        nth_paragraph_first_word, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str},
    ),
    "detectable_content:number_placeholders": (number_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": (postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": (number_bullet_lists, {"num_bullets": int}),
    "detectable_format:constrained_response": (constrained_response, {}),
    "detectable_format:number_highlighted_sections": (number_highlighted_sections, {"num_highlights": int}),
    "detectable_format:multiple_sections": (multiple_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": (json_format, {}),
    "detectable_format:title": (title, {}),
    "combination:two_responses": (two_responses, {}),
    "combination:repeat_prompt": (repeat_prompt, {"prompt_to_repeat": str}),
    "startend:end_checker": (end_checker, {"end_phrase": str}),
    "startend:quotation": (quotation, {}),
    "change_case:capital_word_frequency": (capital_word_frequency, {"capital_frequency": int, "capital_relation": str}),
    "change_case:english_capital": (english_capital, {}),
    "change_case:english_lowercase": (english_lowercase, {}),
    "punctuation:no_comma": (no_comma, {}),
}  # fmt: skip
