"""Which language a text is in: a small, deterministic detector by script and frequent words (languages.toml).

IFEval's own detector (langdetect) draws random numbers and gives one text different languages. This one is a function
of the text. It knows the languages that IFEval asks for and those near them; others it calls by the nearest.
"""

import re
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MARK_WORD = re.compile(r"[ऀ-ॣॱ-ॿ]+")  # Devanagari with its vowel signs, which are no letters to `re`
_SHARED = {"DEVANAGARI": "devanagari", "ARABIC": "arabic", "CYRILLIC": "cyrillic", "LATIN": "latin"}
# Letters that settle it between languages of one script, and what each of them is worth, in words.
_LETTERS = {
    "ar": "ةىإأيك", "fa": "پچژگکی", "ur": "ٹڈڑںےہھ",
    "ru": "ыэё", "uk": "іїєґ", "bg": "ъ", "mk": "ѓќѕџљњј",
    "mr": "ळ", "hi": "ँ", "ne": "",
    "vi": "ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữự",
    "de": "ß", "es": "ñ¿¡", "pt": "ãõ", "tr": "ğışİ", "ro": "țșă", "pl": "łąęśż", "cs": "ěřů", "fi": "", "hu": "őű",
}  # fmt: skip
LETTER_WEIGHT = 0.2


@cache
def _known() -> dict[str, dict]:
    data = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
    words = {
        script: {name: frozenset(text.split()) for name, text in data[script].items()} for script in _SHARED.values()
    }
    return {"scripts": data["scripts"], **words}


def detect(text: str) -> str | None:
    """The text's language as an ISO 639-1 code (zh-cn for Chinese); None where it has no letters."""
    scripts: Counter[str] = Counter()
    for letter, num in Counter(text).items():
        script = _script(letter)
        if script:
            scripts[script] += num
    if not scripts:
        return None
    if scripts["ja"]:  # kana among Chinese characters
        scripts["ja"] += scripts.pop("zh-cn", 0)
    script = max(scripts, key=lambda name: (scripts[name], name))
    return script if script not in _SHARED.values() else _by_words(text.lower(), script)


@cache
def _script(letter: str) -> str | None:
    for name, ranges in _known()["scripts"].items():
        if any(first <= letter <= last for first, last in ranges):
            return name
    if not (letter.isalpha() or "ऀ" <= letter <= "ॿ"):
        return None
    return _SHARED.get(unicodedata.name(letter, "").partition(" ")[0])


def _by_words(text: str, script: str) -> str:
    words = Counter((_MARK_WORD if script == "devanagari" else _WORD).findall(text.replace("’", "'")))
    letters = Counter(text)
    scores = {}
    for name, known in _known()[script].items():
        weight = sum(num for word, num in words.items() if word in known)
        scores[name] = weight + LETTER_WEIGHT * sum(letters[letter] for letter in _LETTERS.get(name, ""))
    if not any(scores.values()):
        return {"latin": "en", "cyrillic": "ru", "arabic": "ar", "devanagari": "hi"}[script]
    return max(scores, key=lambda name: scores[name])  # of equal ones the first in the file
