"""The number that an answer in words ends with: as QAlign's evaluation reads it, and read with care.

`reference_number` keeps the quirks of the script (arXiv 2401.07817): no sign, 0 where there is no number, a comma
between two digits dropped wherever it stands. `corrected_number` reads signs, thousands in the ways that the test
languages write them, decimal commas, every script's digits, words of scale (5 thousand, ৫ লাখ, 1万2千) and Han numerals
(三百五十); no number is no answer.
"""

import re
import unicodedata
from functools import cache
from math import prod
from typing import NamedTuple

TOLERANCE = 1e-3
"""Two numbers nearer than this are the same answer, as in the script."""

DECIMAL_COMMA = frozenset({"de", "fr", "ru", "es"})
"""Of the ten test languages, those that write 3,5 for three and a half, and 1 234 for a thousand and more."""
THOUSANDS_DOT = frozenset({"de", "es"})
"""Those of them that write 1.234 for a thousand and more."""

_RUSSIAN = "(?:[аеу]|ов|ом|ами?|ах)?"
_POWERS = {
    "en": "hundred=2 thousands?=3 lakhs?=5 millions?=6 crores?=7 billions?=9 trillions?=12",
    "de": r"hunderttausend=5 hundert=2 tausend|tsd\.?=3 million(?:en)?|mio\.?=6 milliarden?|mrd\.?=9 billion(?:en)?=12",
    "fr": "mille=3 millions?=6 milliards?=9 billions?=12",
    "es": "mill[óo]n|millones=6 mil=3 bill[óo]n|billones=12",
    "ru": r"тысяч(?:[аиуе]|ами?|ах)?|тыс\.?=3 "
    rf"миллион{_RUSSIAN}|млн\.?=6 миллиард{_RUSSIAN}|млрд\.?=9 триллион{_RUSSIAN}=12",
    "sw": "mia=2 elfu=3 laki=5 milioni=6 bilioni=9",
    "hi": "सौ=2 हज\u093c?ार=3 लाख=5 करोड\u093c?=7 अरब=9",
    "bn": "শত|শো|শ=2 হাজার=3 লাখ|লক্ষ=5 কোটি=7 মিলিয\u09bcন=6 বিলিয\u09bcন=9",
    # Not a percentage (ร้อยละ), nor a species (พันธุ์).
    "th": "ร้อย(?!ละ)=2 พัน(?!ธ)=3 หมื่น=4 แสน=5 ล้าน=6",
    # Not a percentage (百分之), nor kilograms, kilometres, kilowatts (千克, 千米, 千瓦).
    "zh": "[十拾]=1 [百佰](?!分)=2 [千仟](?![克米瓦卡赫帕焦伏])=3 [万萬]=4 [亿億]=8",
    "ja": "[十拾]=1 百(?!分)=2 [千仟]=3 [万萬]=4 億=8 兆=12",
}
SCALES = {
    language: {word: 10.0 ** int(power) for word, _, power in (each.rpartition("=") for each in words.split())}
    for language, words in _POWERS.items()
}
"""Language -> word of scale, as a regular expression -> how many times the number beside it is meant. A word stands
before those that it begins with."""
SCALE_FIRST = frozenset({"sw"})
"""Languages whose words of scale stand before the number (elfu 5)."""
HAN = frozenset({"zh", "ja"})
"""Languages that write no spaces, and Han numerals beside digits."""
MYRIAD = 1e4
"""Numbers below it are written as one before a word of scale from it on."""
SPACED_REST = HAN | {"hi", "bn", "th", "sw"}
"""Languages that write the rest of a number behind a space or "and" (3 হাজার 500); in others it is another number."""
_AND = {"en": "and", "de": "und", "fr": "et", "es": "y", "ru": "и", "sw": "na", "hi": "और", "bn": "ও|এবং"}
PARTS_OF_ONE = {
    "en": {"N and a half": 0.5},
    "fr": {"N et demie?": 0.5},
    "es": {"N y medi[ao]": 0.5},
    "ru": {"N с половиной": 0.5},
    "hi": {"साढ\u093c?े N": 0.5, "सवा N": 0.25, "पौने N": -0.25, "डेढ\u093c?": 1.5, "(?:अढ\u093c?ाई|ढाई)": 2.5},
    "bn": {"সাড\u09bcে N": 0.5, "সোয\u09bcা N": 0.25, "পৌনে N": -0.25, "দেড\u09bc": 1.5, "আড\u09bcাই": 2.5},
}
"""Words -> what they add to the whole number N: সাড়ে ৩ লাখ is three and a half times 100,000."""

_DIGITS = ("零〇", "一壹壱", "二两兩贰貳弐", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖")
_VALUES = {sign: str(value) for value, signs in enumerate(_DIGITS) for sign in signs}
_NUMERAL = f"[{''.join(_VALUES)}]"
_HAN_SCALE = "[十拾百佰千仟万萬亿億兆]"
_WORD = re.compile(f"{_NUMERAL}|{_HAN_SCALE}+|[一二两三四五六七八九]{{2}}")
"""Han numerals that are mostly part of a word: 一共, 十分, 千万, 一一."""
_ALONE = re.compile(
    rf"(?<![第之周期数几幾点點])(?:{_NUMERAL}|{_HAN_SCALE}+)(?:(?=\W|\Z)|(?<!一)(?=[个個つ円元块塊人名本只枚歳岁台匹頭で]))"
)
"""Where one of them is a number: at the end of a clause or, but for one, which is the article too, before a counter."""
_LETTER = r"[^\W\d_]|[\u0900-\u0903\u093a-\u094d\u0981-\u0983\u09bc-\u09cd]"
"""With the vowel signs of Hindi and Bengali, which are no letters to `re`."""
_SPACE = "[ \u00a0\u2009\u202f]"

_MINUS = "-−－﹣"
_CURRENCY = r"[$€£¥₹৳฿₽￥＄]"
_SEPARATORS = {"commas": ",", "dots": ".", "apostrophes": "'’", "spaces": " \u00a0\u2009\u202f"}
"""Way of writing -> the signs between its groups of digits. Once they are gone, a comma is a decimal sign."""
_LEADING = r"[1-9]\d{0,2}"
_DECIMALS = r"(?:\.\d+)?"
_NATIVE_SIGNS = re.compile(r"(?<=\d)[٬٫](?=\d)|(?<=[０-９])[，．](?=[０-９])")
_ASCII_SIGNS = str.maketrans("٬٫，．", ",.,.")


def reference_number(text: str) -> float:
    """The last number of a text, as QAlign's script finds it; 0.0 if there is none."""
    joined = re.sub(r"(\d),(\d)", r"\1\2", text)
    numbers = re.findall(r"\d+(?:\.\d+)?", joined)
    return float(numbers[-1]) if numbers else 0.0


def corrected_number(text: str, language: str) -> float | None:
    """The last number of a text in this language (a code); None if there is none.

    Thousands are groups of three digits, or of two before the last three as in India, behind at most three digits
    that do not begin with 0. They are parted by commas or apostrophes in every language (models answer German
    questions in English), by a dot where the language does or where two groups follow, by a thin or no-break space in
    every language and by a common one where the comma is the decimal sign.

    A word of scale multiplies the number beside it, and numbers of falling scale are one (1億2000万, 2 লাখ 50 হাজার).
    Han numerals that are mostly part of a word count only where there is no other number.
    """
    # Every script's decimal digits become 0 to 9, and the signs that stand between them . and ,
    western = _NATIVE_SIGNS.sub(lambda sign: sign[0].translate(_ASCII_SIGNS), unicodedata.normalize("NFC", text))
    digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in western)
    plain = _with_parts(digits, language)
    numbers = _numbers(plain, language)
    certain = [number for number in numbers if not _WORD.fullmatch(plain, number.start, number.end)]
    if not certain:
        words = ((number, _ALONE.match(plain, number.start)) for number in numbers)
        certain = [number for number, alone in words if alone and alone.end() == number.end]
    if not certain:
        return None
    last = certain[-1]
    return -last.value if is_negative(plain[: last.start]) else last.value


def _with_parts(text: str, language: str) -> str:
    """The text with "2 and a half" as 2.5, and what else `PARTS_OF_ONE` has."""
    for words, part in PARTS_OF_ONE.get(language, {}).items():
        number = words.replace(" ", _SPACE).replace("N", r"(\d{1,9})(?![.,]?\d)")
        pattern = rf"(?<!{_LETTER})(?<![\d.,]){number}(?!{_LETTER})"
        text = re.sub(pattern, lambda found, part=part: str(part + sum(map(int, found.groups()))), text, flags=re.I)
    return text


class _Number(NamedTuple):
    """A number without its sign, and where it stands."""

    start: int
    end: int
    value: float
    scale: float
    """below which it may go on: that of the words it ends with, 0 where it ends in digits"""


def _numbers(text: str, language: str) -> list[_Number]:
    """All numbers of a text whose digits are 0 to 9."""
    found: list[_Number] = []
    joint = re.compile(rf"(?:{_SPACE}(?:{_AND.get(language, '')}))?{_SPACE}?[零〇]*")
    for item in _item_pattern(language).finditer(text):
        scale = _scale_of(item["scales"], language) if item["scales"] else 0.0
        number = _Number(*item.span(), _amount(item["amount"], language) * (scale or 1.0), scale)
        if found and number.value < found[-1].scale:
            goes_on = joint.fullmatch(text, found[-1].end, number.start)
            if goes_on and (scale or language in SPACED_REST):
                before = found.pop()
                number = _Number(before.start, number.end, before.value + number.value, scale)
        found.append(number)
    return [_with_short_rest(number, text) for number in found] if language == "zh" else found


def _with_short_rest(number: _Number, text: str) -> _Number:
    """三万五 is thirty-five thousand in Chinese; 三万零五 is 30,005."""
    short = re.search(rf"([百千万萬亿億])([1-9]|{_NUMERAL})\Z", text[number.start : number.end])
    if short is None:
        return number
    digit = float(_VALUES.get(short[2], short[2]))
    return number._replace(value=number.value + digit * (_scale_of(short[1], "zh") / 10 - 1))


def _scale_of(words: str, language: str) -> float:
    """What words of scale that follow each other mean together."""
    scales = SCALES[language].items()
    found = re.findall(_scale_words(language), words, re.IGNORECASE)
    return prod(next(scale for word, scale in scales if re.fullmatch(word, each, re.IGNORECASE)) for each in found)


def _amount(written: str, language: str) -> float:
    """A number in digits; of Han languages also one below a myriad (2千5百, 三百五十)."""
    if language not in HAN:
        return _in_digits(written, language)
    total, small = 0.0, _scale_words(language, high=MYRIAD)
    for count, word in re.findall(rf"({_unnamed(language)}|{_NUMERAL}+)?{_SPACE}?({small})?", written):
        if count or word:
            digits = "".join(_VALUES.get(sign) or str(sign) for sign in count)
            total += (_in_digits(digits, language) if count else 1.0) * (_scale_of(word, language) if word else 1.0)
    return total


def _in_digits(written: str, language: str) -> float:
    found = number_pattern(language).fullmatch(written)
    assert found is not None, written
    between = _SEPARATORS.get(found.lastgroup or "", "")
    return float("".join(char for char in written if char not in between).replace(",", "."))


def _scale_words(language: str, low: float = 0, high: float = float("inf")) -> str:
    """The pattern of a language's words of scale, of those from `low` to below `high`; of nothing where it has none."""
    words = (word for word, scale in SCALES.get(language, {}).items() if low <= scale < high)
    return f"(?:{'|'.join(words) or '(?!)'})"


def _unnamed(language: str) -> str:
    """The pattern of a number in digits, to be part of another."""
    return re.sub(r"\?P<\w+>", "?:", number_pattern(language).pattern)


@cache
def _item_pattern(language: str) -> re.Pattern[str]:
    """A number with the words of scale beside it: groups `amount` and `scales`."""
    digits = _unnamed(language)
    if language in HAN:
        counts = f"(?:{digits}|(?!{_NUMERAL}+[0-9]){_NUMERAL}+)"
        small, large = _scale_words(language, high=MYRIAD), _scale_words(language, low=MYRIAD)
        amount = f"(?:{counts}?{_SPACE}?{small})+{counts}?|{counts}"
        return re.compile(f"(?P<amount>{amount})(?P<scales>(?:{_SPACE}?{large})*)")
    word = _scale_words(language)
    if language != "th":
        ending = "(?:টি|টা|জন|ের|র)?" if language == "bn" else ""
        word = f"{word}{ending}(?!{_LETTER})"
    if language in SCALE_FIRST:
        return re.compile(f"(?P<scales>(?:(?<!{_LETTER}){word}{_SPACE})*)(?P<amount>{digits})", re.IGNORECASE)
    return re.compile(f"(?P<amount>{digits})(?P<scales>(?:{_SPACE}?{word})*)", re.IGNORECASE)


def equals(number: float | None, gold: float) -> bool:
    """Whether an answer's number is the right one."""
    return number is not None and abs(number - gold) < TOLERANCE


@cache
def number_pattern(language: str) -> re.Pattern[str]:
    """One number without its sign. The name of the group that matched, of `_SEPARATORS`, says how to read it."""
    decimal_comma = language in DECIMAL_COMMA
    spaces = _SEPARATORS["spaces"] if decimal_comma else _SEPARATORS["spaces"].replace(" ", "")
    decimals = r"(?:[.,]\d+)?" if decimal_comma else _DECIMALS
    ways = {
        "commas": rf"(?:{_LEADING}(?:,\d{{3}})+|[1-9]\d?(?:,\d\d)+,\d{{3}})(?!\d){_DECIMALS}",
        "dots": rf"{_LEADING}(?:\.\d{{3}}){'+' if language in THOUSANDS_DOT else '{2,}'}(?!\d)(?:,\d+)?",
        "apostrophes": rf"{_LEADING}(?:['’]\d{{3}})+(?!\d){decimals}",
        "spaces": rf"{_LEADING}(?:[{spaces}]\d{{3}})+(?!\d){decimals}",
        "decimal_comma": r"\d+,\d+" if decimal_comma else r"(?!)",
        "plain": rf"\d+{_DECIMALS}",
    }
    return re.compile(r"(?<!\d)(?:" + "|".join(f"(?P<{way}>{digits})" for way, digits in ways.items()) + ")")


def is_negative(before: str) -> bool:
    """Whether the text before a number ends with its sign, a currency sign between them or not.

    A minus after a digit, a closing bracket, a percent sign or a cased letter is a hyphen or a subtraction (9-5,
    COVID-19); after a letter of a script without case, which may write no spaces, it is a sign.
    """
    sign = re.search(rf"(.?)[{_MINUS}]{_CURRENCY}?\Z", before, re.DOTALL)
    if sign is None:
        return False
    previous = sign[1]
    return not (previous.isdecimal() or previous in set(")]%") or previous.lower() != previous.upper())
