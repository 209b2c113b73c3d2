"""The number that an answer in words ends with: as QAlign's evaluation reads it, and read with care.

`reference_number` keeps the quirks of the script (arXiv 2401.07817): no sign, 0 where there is no number, a comma
between two digits dropped wherever it stands. `corrected_number` reads signs, thousands in the ways that the test
languages write them, decimal commas, and every script's digits; no number is no answer.
"""

import re
import unicodedata
from functools import cache

TOLERANCE = 1e-3
"""Two numbers nearer than this are the same answer, as in the script."""

DECIMAL_COMMA = frozenset({"de", "fr", "ru", "es"})
"""Of the ten test languages, those that write 3,5 for three and a half, and 1 234 for a thousand and more."""
THOUSANDS_DOT = frozenset({"de", "es"})
"""Those of them that write 1.234 for a thousand and more."""

_SEPARATORS = {
    "commas": ",",
    "dots": ".",
    "apostrophes": "'’",
    "spaces": " \u00a0\u2009\u202f",
    "decimal_comma": "",
    "plain": "",
}
"""Way of writing -> the signs between its groups of digits. Once they are gone, a comma is a decimal sign."""

_MINUS = "-−－﹣"
_CURRENCY = r"[$€£¥₹৳฿₽￥＄]"
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
    """
    plain = ascii_digits(text)
    numbers = list(number_pattern(language).finditer(plain))
    if not numbers:
        return None
    found = numbers[-1]
    way = next(name for name, digits in found.groupdict().items() if digits is not None)
    digits = "".join(char for char in found[way] if char not in _SEPARATORS[way]).replace(",", ".")
    return -float(digits) if is_negative(plain[: found.start()]) else float(digits)


def equals(number: float | None, gold: float) -> bool:
    """Whether an answer's number is the right one."""
    return number is not None and abs(number - gold) < TOLERANCE


def ascii_digits(text: str) -> str:
    """The text with every script's decimal digits as 0 to 9, and the signs that stand between them as . and ,"""
    western = _NATIVE_SIGNS.sub(lambda sign: sign[0].translate(_ASCII_SIGNS), text)
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in western)


@cache
def number_pattern(language: str) -> re.Pattern[str]:
    """One number without its sign. The name of the group that matched says how to read it."""
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
    return re.compile(r"(?<!\d)(?:" + "|".join(f"(?P<{way}>{digits})" for way, digits in ways.items()) + ")", re.ASCII)


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
