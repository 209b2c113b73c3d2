"""The study's twenty languages (Zhang et al. 2024, arXiv 2405.13816), in the order of its tables, and what means them.

A language comes as the study's code, another code of ISO 639, a tag with a script or region, or an English name; it is
the study's code once it is read, at whatever door (settings, names of files, fields of rows, results).
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from jaxalign.errors import InputError


@dataclass(frozen=True)
class Language:
    """code: ISO 639-1. family: the branch for Indo-European languages.

    tier: "high" for the ten with the largest share of LLaMA-2's pretraining text, "low" for the other ten.
    other_names: its codes of ISO 639-2 and -3, among them the individual language's where the study's is a group's (nb,
      cmn, zsm, swh), and other English names, between bars.
    """

    code: str
    name: str
    script: str
    family: str
    tier: str
    other_names: str


_CHINESE = (
    "zho|chi|cmn|Mandarin|Mandarin Chinese|Chinese (Mandarin)|Simplified Chinese|Chinese (Simplified)|"
    "Traditional Chinese|Chinese (Traditional)"
)
_NORWEGIAN = "nor|nb|nob|Bokmål|Norwegian Bokmål|Norwegian (Bokmål)"
_SWAHILI = "swa|swh|Kiswahili|Swahili (macrolanguage)|Swahili (individual language)"
LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "Latin", "Germanic", "high", "eng"),
        Language("zh", "Chinese", "Han", "Sino-Tibetan", "high", _CHINESE),
        Language("de", "German", "Latin", "Germanic", "high", "deu|ger"),
        Language("fr", "French", "Latin", "Romance", "high", "fra|fre"),
        Language("es", "Spanish", "Latin", "Romance", "high", "spa|Castilian|Spanish; Castilian"),
        Language("it", "Italian", "Latin", "Romance", "high", "ita"),
        Language("nl", "Dutch", "Latin", "Germanic", "high", "nld|dut|Dutch; Flemish"),
        Language("ja", "Japanese", "Japanese", "Japonic", "high", "jpn"),
        Language("ru", "Russian", "Cyrillic", "Slavic", "high", "rus"),
        Language("sv", "Swedish", "Latin", "Germanic", "high", "swe"),
        Language("sl", "Slovenian", "Latin", "Slavic", "low", "slv|Slovene"),
        Language("pl", "Polish", "Latin", "Slavic", "low", "pol"),
        Language("bg", "Bulgarian", "Cyrillic", "Slavic", "low", "bul"),
        Language("no", "Norwegian", "Latin", "Germanic", "low", _NORWEGIAN),
        Language("ms", "Malay", "Latin", "Austronesian", "low", "msa|may|zsm|Standard Malay|Malay (macrolanguage)"),
        Language("is", "Icelandic", "Latin", "Germanic", "low", "isl|ice"),
        Language("hi", "Hindi", "Devanagari", "Indo-Aryan", "low", "hin"),
        Language("th", "Thai", "Thai", "Kra-Dai", "low", "tha"),
        Language("sw", "Swahili", "Latin", "Niger-Congo", "low", _SWAHILI),
        Language("bn", "Bengali", "Bengali", "Indo-Aryan", "low", "ben|Bangla"),
    )
}

_SCRIPT_TAGS = {"Latin": "latn", "Han": "hans hant hani", "Japanese": "jpan", "Cyrillic": "cyrl"}
_SCRIPT_TAGS |= {"Devanagari": "deva", "Thai": "thai", "Bengali": "beng"}
"""A language's script -> the tags of ISO 15924 that it is written in."""

_MEANINGS = {
    name.casefold(): language
    for language in LANGUAGES.values()
    for name in (language.code, language.name, *language.other_names.split("|"))
}
_TAG = re.compile(r"([a-z]{2,3})(?:-([a-z]{4}))?(?:-(?:[a-z]{2}|\d{3}))?")
"""Language, script and region of a tag in small letters (BCP 47): zh-hans-cn, deu-latn, en-xx."""


@lru_cache(maxsize=1000)
def known_language(name: str) -> Language | None:
    """The language that a code, a tag or an English name means, in capitals or not; None if it is not the study's.

    A region says where a language is spoken, and changes nothing; a language in another script than the study's
    (hi-Latn) is not the study's.
    """
    plain = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    if plain in _MEANINGS:
        return _MEANINGS[plain]
    tag = _TAG.fullmatch(plain.replace("_", "-"))
    language = _MEANINGS.get(tag[1]) if tag else None
    if tag is None or language is None or (tag[2] and tag[2] not in _SCRIPT_TAGS[language.script].split()):
        return None
    return language


def code_of(name: str) -> str:
    """The study's code of a language; the name itself if it is none of the study's."""
    language = known_language(name)
    return language.code if language else name


def language_of(name: str, where: str = "languages") -> Language:
    """The language that a code, a tag or an English name means; InputError names one that a misspelt name is like."""
    if (language := known_language(name)) is not None:
        return language
    # Javanese and Japanese are alike by 0.88.
    meant = did_you_mean(name, (language.name for language in LANGUAGES.values()), alike=0.9)
    raise InputError(
        f"{where}: unknown language {name!r}{meant}: {' '.join(LANGUAGES)}, their other codes (zh-CN, deu_Latn) and "
        "English names"
    )


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """What a message says after an unknown word: `; did you mean 'x'? Known`, or `; known` if no word is so alike.

    A word of up to three letters is like none: it may be a code, and all codes are alike.
    """
    folded = {candidate.casefold(): candidate for candidate in known if sum(map(str.isalpha, word)) > 3}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=alike)
    return f"; did you mean {folded[found[0]]!r}? Known" if found else "; known"


def parse_languages(text: str, where: str = "languages") -> list[str]:
    """Codes from "de,sw" or, for "all", all twenty; unknown, repeated or no languages raise InputError."""
    if text.strip() == "all":
        return list(LANGUAGES)
    codes = [language_of(name, where).code for name in text.split(",")]
    if repeated := sorted({code for code in codes if codes.count(code) > 1}):
        raise InputError(f"{where}: {', '.join(repeated)} named more than once in {text!r}")
    return codes
