"""The study's twenty languages (Zhang et al. 2024, arXiv 2405.13816), in the order of its tables."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from jaxalign.errors import InputError


@dataclass(frozen=True)
class Language:
    """One language of the study.

    name: English name, as in "Translate the input from German to English:".
    family: the branch for Indo-European languages, the family for the others.
    tier: "high" for the ten with the largest share of LLaMA-2's pretraining text, "low" for the other ten.
    """

    code: str
    name: str
    script: str
    family: str
    tier: str


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "Latin", "Germanic", "high"),
        Language("zh", "Chinese", "Han", "Sino-Tibetan", "high"),
        Language("de", "German", "Latin", "Germanic", "high"),
        Language("fr", "French", "Latin", "Romance", "high"),
        Language("es", "Spanish", "Latin", "Romance", "high"),
        Language("it", "Italian", "Latin", "Romance", "high"),
        Language("nl", "Dutch", "Latin", "Germanic", "high"),
        Language("ja", "Japanese", "Japanese", "Japonic", "high"),
        Language("ru", "Russian", "Cyrillic", "Slavic", "high"),
        Language("sv", "Swedish", "Latin", "Germanic", "high"),
        Language("sl", "Slovenian", "Latin", "Slavic", "low"),
        Language("pl", "Polish", "Latin", "Slavic", "low"),
        Language("bg", "Bulgarian", "Cyrillic", "Slavic", "low"),
        Language("no", "Norwegian", "Latin", "Germanic", "low"),
        Language("ms", "Malay", "Latin", "Austronesian", "low"),
        Language("is", "Icelandic", "Latin", "Germanic", "low"),
        Language("hi", "Hindi", "Devanagari", "Indo-Aryan", "low"),
        Language("th", "Thai", "Thai", "Kra-Dai", "low"),
        Language("sw", "Swahili", "Latin", "Niger-Congo", "low"),
        Language("bn", "Bengali", "Bengali", "Indo-Aryan", "low"),
    )
}

_CODES = {language.name: language.code for language in LANGUAGES.values()}


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, for "did you mean" messages."""
    folded = {candidate.casefold(): candidate for candidate in known}
    return folded[difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.0)[0]]


def language_of(code: str, where: str = "languages") -> Language:
    """The language of a code; an unknown one raises InputError that begins with `where` and names the nearest."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    match = nearest(code, [*LANGUAGES, *_CODES])
    match = _CODES.get(match, match)
    raise InputError(
        f"{where}: unknown language {code!r}; did you mean {match!r} ({LANGUAGES[match].name})? "
        f"Known: {' '.join(LANGUAGES)}"
    )


def language_named(name: str, where: str) -> Language:
    """The language of an English name ("German"); an unknown one raises InputError that begins with `where`."""
    if name not in _CODES:
        raise InputError(f"{where}: unknown language {name!r}; did you mean {nearest(name, _CODES)!r}?")
    return LANGUAGES[_CODES[name]]


def parse_languages(text: str) -> list[str]:
    """Codes from "de,sw" or, for "all", all twenty; unknown, repeated or no codes raise InputError."""
    if text.strip() == "all":
        return list(LANGUAGES)
    codes = [language_of(code.strip()).code for code in text.split(",")]
    repeated = sorted({code for code in codes if codes.count(code) > 1})
    if repeated:
        raise InputError(f"languages: {', '.join(repeated)} named more than once in {text!r}")
    return codes
