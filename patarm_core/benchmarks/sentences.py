"""Sentences and words of English text, near to what NLTK's punkt and Treebank tokenizers find, without their data.

A sentence ends at ! or ?, and at a full stop that is not part of an abbreviation, an initial or an ellipsis, if white
space or closing punctuation follows. After those it ends only where a frequent word follows with a capital. A line's
end is no sentence's end.
"""

import re

_ABBREVIATIONS = (
    "mr mrs ms dr prof rev gen col capt lt sgt sen rep gov hon st jr sr messrs mt ft vs v e.g i.e a.m p.m u.s u.k u.n "
    "u.s.a d.c n.y l.a ph.d m.d b.a m.a a.d b.c inc co corp ltd bros jan feb mar apr aug sept oct nov dec cf al approx "
    "no vol est fig"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
# They follow an abbreviation mid-sentence in small letters: with a capital they begin one.
_STARTERS = (
    "the a an this that these those he she it we they you i in on at as if but and or so when while after before for "
    "from to with by there here what who how why where then now once his her its my our their your some many most all "
    "no not one each both however although though because since until let do don't can please is are was will"
)
STARTERS = frozenset(_STARTERS.split())
_END = re.compile(r"[.!?]+(?=[\s)\"'”’;}\]*:@({\[]|$)")
_CLOSERS = "\"')]}”’*_"
_OPENERS = "\"'([{“‘*_#-–—•"

_CONTRACTIONS = re.compile(r"(?i)(?<=[^'\s])('(?:s|m|d|ll|re|ve)|n't)(?=\s|$)")
_CANNOT = re.compile(r"(?i)\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_APART = re.compile(r"\.{2,}|--+|[;@#$%&?!*\]\[(){}<>\"“”«»]|''|``|[:,](?!\d)|(?<=\w)'(?=\s|$)")
_LAST_STOP = re.compile(r"(?<=[^.\s])\.(?=[\])}>\"'»”’ ]*\s*$)")


def count_sentences(text: str) -> int:
    """How many sentences the text has; 0 of one that is blank."""
    num, start = 0, 0
    for end in _END.finditer(text):
        if text[start : end.end()].strip() and _ends_sentence(text, end):
            num, start = num + 1, end.end()
            while start < len(text) and text[start] in _CLOSERS:
                start += 1
    return num + bool(text[start:].strip())


def words(text: str) -> list[str]:
    """Tokens as the Penn Treebank has them: punctuation and clitics apart (IT'S → IT 'S, DON'T → DO N'T)."""
    text = _LAST_STOP.sub(" .", text)
    text = _CONTRACTIONS.sub(r" \1", _APART.sub(r" \g<0> ", text))
    return _CANNOT.sub(lambda match: " ".join(part for part in match.groups() if part), text).split()


def _ends_sentence(text: str, end: re.Match) -> bool:
    if "!" in end[0] or "?" in end[0]:
        return True
    before = text[: end.start()].split()
    last = before[-1].lstrip(_OPENERS) if before and not text[end.start() - 1].isspace() else ""
    after = text[end.end() :].lstrip(_CLOSERS + " \t\n\r")
    following = after.lstrip(_OPENERS).split(maxsplit=1)[0].rstrip(".,;:!?'\")") if after.strip(_OPENERS) else ""
    if len(end[0]) > 1 or last.lower() in ABBREVIATIONS:
        return following[:1].isupper() and following.lower() in STARTERS
    if len(last) == 1 and last.isalpha():  # an initial
        return last == "I" or not following[:1].isupper()
    if last.isdigit():  # 3. of a list; the number of a date
        return not following[:1].islower()
    return True
