import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.benchmarks import ifeval
from patarm_core.benchmarks.ifeval_checkers import CHECKERS
from patarm_core.benchmarks.language import detect
from patarm_core.benchmarks.report import RowError
from patarm_core.benchmarks.sentences import count_sentences, words

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

# Instruction, settings, a response that follows it, one that does not.
CASES = [
    ("keywords:existence", {"keywords": ["tea", "Cup"]}, "A cup of TEA", "A glass of tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, teapot", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "a teapot", "Tea!"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# and #", "#"),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 2, "let_relation": "less than"}, "a b", "Aa"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Tee, den wir haben.", "This is the tea."),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"}, "One, e.g. it.", "A bee. A cat.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "it's here", "it is"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "well"}, "a\n\n\"Well, yes", "a\n\nSo, well",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi\nP. s. bye", "Hi PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi\np.p.s bye", "Hi\nP.S. bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n** b\n- c\n- d"),
    ("detectable_format:constrained_response", {}, "So: My answer is no.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 Day 2", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1'),
    ("detectable_format:title", {}, "<<tea>>\nIt is.", "<< >>\nIt is."),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say a."}, " say A.\nb", "b. Say a."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "the END."', "The end. So"),
    ("startend:quotation", {}, ' "a" ', '"a'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "IT'S", "SO"),
    ("change_case:english_capital", {}, "THIS IS THE TEA", "This is the tea"),
    ("change_case:english_lowercase", {}, "this is the tea", "das ist nicht der tee"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]  # fmt: skip


def row(name, settings, response, key=1):
    return {"key": key, "response": response, "instruction_id_list": [name], "kwargs": [settings]}


def test_every_instruction_has_a_case():
    assert {case[0] for case in CASES} == set(CHECKERS) and len(CHECKERS) == 25


@pytest.mark.parametrize("name, settings, right, wrong", CASES, ids=lambda value: str(value)[:40])
def test_a_checker_accepts_what_follows_and_refuses_what_does_not(name, settings, right, wrong):
    got = [ifeval.read_row(row(name, settings, response)).strict for response in (right, wrong, " \n")]
    assert got == [(True,), (False,), (False,)]


def test_the_loose_rule_tries_eight_variants():
    assert ifeval.variants("*a*\nb\nc") == ["*a*\nb\nc", "a\nb\nc", "b\nc", "b\nc", "*a*\nb", "a\nb", "b", "b"]
    judged = ifeval.read_row(row("startend:quotation", {}, 'Sure:\n"a"'))
    assert (judged.strict, judged.loose) == ((False,), (True,))


@given(st.text(max_size=60), st.sampled_from([case[:2] for case in CASES]))
def test_what_is_followed_strictly_is_followed_loosely_and_nothing_raises(text, instruction):
    text = text.encode("utf-8", "ignore").decode()
    judged = ifeval.read_row(row(*instruction, text))
    assert judged.loose[0] or not judged.strict[0]
    assert ifeval.read_row(row(*instruction, text)) == judged


def test_the_four_numbers_and_their_mean():
    both = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    rows = [{"key": 1, "response": '"a"', **both}, {"key": 2, "response": 'x\n"a"', **both}]
    rows += [{"key": 1122, "response": None, **both}]
    got = ifeval.report(rows)
    values = {metric.name.removesuffix(" of an incomplete set"): metric.value for metric in got.metrics}
    assert [values[name] for name in ifeval.NAMES[1:]] == [1 / 3, 3 / 6, 2 / 3, 4 / 6]
    assert values["Average"] == pytest.approx((1 / 3 + 3 / 6 + 2 / 3 + 4 / 6) / 4)
    assert values["startend:quotation"] == 1 / 3 and got.num_unparsed == 1
    left_out = {metric.name.partition(" of")[0]: metric.value for metric in got.policies[ifeval.MISSING_OUT]}
    assert left_out["Prompt strict"] == 1 / 2 and "1 prompts are checked for the sign" in got.notes[-1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"instruction_id_list": ["tea"]}, r'row 1: instruction_id_list\[0\]: is "tea"; expected one of keywords'),
        ({"kwargs": [{"letter": "a", "let_frequency": "2"}]}, r'kwargs\[0\].let_frequency: is "2"; expected a whole'),
        ({"kwargs": []}, "kwargs: has 0 entries; expected one for each of 1"),
        ({"instruction_id_list": None}, "instruction_id_list: is null; expected a list, as published; or .* --data"),
        ({"key": "x"}, 'key: is "x"'),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(RowError, match=message):
        ifeval.report([row("keywords:letter_frequency", {"letter": "a"}, "b") | change])


def test_sentences_end_where_they_do():
    assert count_sentences("") == 0 and count_sentences("no stop") == 1
    assert count_sentences('Dr. Wu said "Go!" Then she left. It was 3.5 p.m. sharp.') == 3
    assert count_sentences("Wait... what? Yes. J. Smith came (late).") == 3
    assert words("CAN'T stop, U.S. (NOW).") == ["CA", "N'T", "stop", ",", "U.S.", "(", "NOW", ")", "."]


@pytest.mark.parametrize(
    "text, language",
    [
        ("THE TEA IS FOR US AND NOT FOR YOU", "en"), ("Lo que es para nosotros no es para los otros", "es"),
        ("यह चाय हमारे लिए है और आप के लिए नहीं", "hi"), ("हा चहा आमच्यासाठी आहे आणि तो नाही", "mr"),
        ("यो चिया हाम्रो लागि हो र तपाईंको छैन", "ne"), ("یہ چائے ہمارے لیے ہے اور آپ کے لیے نہیں", "ur"),
        ("این چای برای ما است و نه برای شما", "fa"), ("هذا الشاي لنا وليس لكم في هذا البيت", "ar"),
        ("Этот чай для нас, а не для вас", "ru"), ("Този чай е за нас, а не за вас, и това ще бъде така", "bg"),
        ("Chai hii ni yetu na si ya watu wengine", "sw"), ("Tämä tee on meille ja se ei ole teille", "fi"),
        ("차는 우리 것입니다", "ko"),
        ("お茶は私たちのものです", "ja"), ("这是我们的茶", "zh-cn"), ("ಇದು ನಮ್ಮ ಚಹಾ", "kn"),
        ("Trà này là của chúng tôi", "vi"), ("12 + 3 = ?", None),
    ],
)  # fmt: skip
def test_languages_are_told_apart(text, language):
    assert detect(text) == language


# Disagreements with the recorded verdicts on 200 responses of GPT-4, and why.
DISAGREE = {
    # Upstream draws a random letter where the one asked for is none ("#"); ours counts the signs.
    (1122, "keywords:letter_frequency", "loose"),
    # A list of names in capitals: no language in particular; ours calls it English, langdetect something else.
    (3456, "change_case:english_capital", "strict"),
    (3456, "change_case:english_capital", "loose"),
    # One word, "etchings", which langdetect takes for another language.
    (202, "change_case:english_lowercase", "strict"),
    (202, "change_case:english_lowercase", "loose"),
}


def test_verdicts_agree_with_the_recorded_ones_but_for_what_is_named():
    prompts, recorded = SHARED / "ifeval" / "input_data.jsonl", SHARED / "parity" / "ifeval_gpt4_verdicts_200.jsonl"
    if not (prompts.is_file() and recorded.is_file()):
        pytest.skip("../shared/data/ifeval and parity are not here")
    rows = [json.loads(line) for line in recorded.read_text(encoding="utf-8").splitlines()]
    by_prompt = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    assert (len(by_prompt), sum(len(p["kwargs"]) for p in by_prompt)) == (ifeval.NUM_PROMPTS, ifeval.NUM_INSTRUCTIONS)
    num, found = 0, set()
    for theirs, joined in zip(rows, ifeval.join(rows, by_prompt)):
        ours = ifeval.read_row(joined)
        for mode in ("strict", "loose"):
            for name, got, expected in zip(ours.ids, getattr(ours, mode), theirs[mode], strict=True):
                num += 1
                found |= {(ours.key, name, mode)} if got != expected else set()
    assert found == DISAGREE and num == 632 and 1 - len(found) / num >= 0.99
