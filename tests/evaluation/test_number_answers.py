import random

import pytest

from jaxalign.data.math_problems import MATH_LANGUAGES
from jaxalign.evaluation.number_answers import corrected_number, equals, reference_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", 18.0),
        ("16 - 3 - 4 = 9, and 9 * 2 = 18 dollars", 18.0),
        ("#### 2,125", 2125.0),
        ("3.50", 3.5),
        ("8.0", 8.0),
        # The quirks.
        ("-5", 5.0),
        ("", 0.0),
        ("no number at all", 0.0),
        ("1,2,3", 3.0),
        ("1,234,567", 1234567.0),
        ("3,5", 35.0),
        ("1.234,56", 1.23456),
        ("1 234", 234.0),
        ("১২৩", 123.0),
        ("๔๒ บาท", 42.0),
        ("1.2.3", 3.0),
        ("18.", 18.0),
    ],
)
def test_reference_extraction_and_its_quirks(text: str, number: float):
    assert reference_number(text) == number


def cases(table: str) -> list[tuple[str, str, float | None]]:
    """(language, text, number) of each "language text -> number"."""
    parsed = []
    for case in table.removesuffix(" | ").split(" | "):
        asked, _, number = case.rpartition(" -> ")
        language, _, text = asked.partition(" ")
        parsed.append((language, text, None if number == "none" else float(number)))
    return parsed


NUMBERS = cases(
    # No number, plain numbers, and what follows or precedes them.
    "en  -> none | en I do not know. -> none | en ②³ -> none | en The answer is 18. -> 18 | "
    "en The answer is **18**. -> 18 | en \\boxed{18} -> 18 | en first 12, then 7 apples -> 7 | en 0.5 -> 0.5 | "
    "en 007 -> 7 | en 40% -> 40 | en $18.00. -> 18 | en 12€ -> 12 | en 9-5 -> 5 | en x9 -> 9 | "
    "zh 答案是18个。 -> 18 | sw Jibu ni 18! -> 18 | "
    # Signs.
    "en -5 -> -5 | en = -5 -> -5 | en =-5 -> -5 | en (-5) -> -5 | en −5 -> -5 | ja －５ -> -5 | en -$5 -> -5 | "
    "en $-5 -> -5 | en −€1,250.50 -> -1250.5 | en +5 -> 5 | en COVID-19 -> 19 | ru Союз-11 -> 11 | en f(x)-5 -> 5 | "
    "en 50%-5 -> 5 | en 10–20 -> 20 | en - 5 apples -> 5 | en -\n5 -> 5 | zh 答案是-5。 -> -5 | "
    "th คำตอบคือ-5 -> -5 | bn উত্তর −৫ -> -5 | "
    # Thousands: commas, in every language.
    "en 1,234 -> 1234 | en 1,234. -> 1234 | en 1,234,567 -> 1234567 | en $1,234,567.89 -> 1234567.89 | "
    "de 114,200 -> 114200 | de 1,234.56 -> 1234.56 | zh １，２３４ -> 1234 | ja １２．５ -> 12.5 | "
    # Not thousands: lists, wrong groups.
    "en 1,2,3 -> 3 | en 2,34 -> 34 | en 5,100, -> 5100 | en 12345,678 -> 678 | en 1,2345 -> 2345 | en 0,125 -> 125 | "
    "zh 3，200 -> 200 | "
    # As in India.
    "bn 12,34,567 -> 1234567 | bn ১২,৩৪,৫৬৭.৫ -> 1234567.5 | en 1,00,000 -> 100000 | bn ১,২৩,৪৫,৬৭৮ -> 12345678 | "
    # Spaces and apostrophes.
    "fr 1 234 -> 1234 | fr 1 234,56 -> 1234.56 | fr 1\u202f234\u202f567 -> 1234567 | "
    "ru 12\u00a0500 рублей -> 12500 | de 1'234'567.5 -> 1234567.5 | de 1’234 -> 1234 | en 1\u2009234.5 -> 1234.5 | "
    "en in 2020 100 people -> 100 | en 12 345 -> 345 | fr en 2020 100 personnes -> 100 | fr 3 12 -> 12 | "
    # Decimal commas and dots between thousands.
    "de 3,5 -> 3.5 | es 12,50 € -> 12.5 | ru 0,125 -> 0.125 | fr 1234,567 -> 1234.567 | de 1.234 -> 1234 | "
    "es 1.234.567,89 -> 1234567.89 | de 3.50 -> 3.5 | de 0.125 -> 0.125 | de 1234.567 -> 1234.567 | "
    "fr 1.234 -> 1.234 | en 1.234 -> 1.234 | en 1.234.567 -> 1234567 | th 3,5 -> 5 | "
    # Digits of other scripts.
    "bn ১৮ -> 18 | bn ২,১২৫ -> 2125 | th ๑๘ บาท -> 18 | th ๑,๒๓๔.๕ -> 1234.5 | en १८ -> 18 | en ١٨ -> 18 | "
    "en ١٬٢٣٤٫٥ -> 1234.5 | zh １８ -> 18 | "
    # Words of scale beside digits.
    "ja 1万2千 -> 12000 | ja 3億円 -> 300000000 | ja 8万ドル -> 80000 | ja 1億2,000万円 -> 120000000 | "
    "ja 12億3456万7890 -> 1234567890 | ja ３．５万 -> 35000 | ja 1,234万 -> 12340000 | ja 5百万 -> 5000000 | "
    "ja −3万円 -> -30000 | zh 1.2亿 -> 120000000 | zh 2千5百 -> 2500 | zh 3萬 -> 30000 | zh 12万50 -> 120050 | "
    "en $2.5 million -> 2500000 | en -$5 million -> -5000000 | en 5 hundred thousand -> 500000 | "
    "en 2 million 300 thousand -> 2300000 | en 1.5 crore -> 15000000 | de 2,5 Mio. Euro -> 2500000 | "
    "de 3 Millionen -> 3000000 | fr 2 mille -> 2000 | es 2 mil millones -> 2000000000 | ru 2,5 тыс. -> 2500 | "
    "ru 12 миллионов -> 12000000 | sw elfu 95 -> 95000 | sw milioni 2.5 -> 2500000 | hi 5 लाख -> 500000 | "
    "hi २ करोड़ ५० लाख -> 25000000 | hi 3 हज़ार 500 -> 3500 | bn ৩ হাজার ৫০০ টাকা -> 3500 | "
    "bn ২ লাখ ৫০ হাজার -> 250000 | bn ৫লক্ষের -> 500000 | bn ১.৫ কোটি -> 15000000 | th 3 ล้านบาท -> 3000000 | "
    "th ๒ แสน ๕ หมื่น -> 250000 | en 3 trillion -> 3000000000000.0 | de 5 hunderttausend -> 500000 | "
    "de 3 Tsd. Euro -> 3000 | es 2 billones -> 2000000000000.0 | ru с 5 тысячами -> 5000 | "
    "ru 2 миллионами -> 2000000 | bn ৫শ টাকা -> 500 | bn ৫ মিলিয়ন -> 5000000 | "
    # The rest of a number, and its halves and quarters.
    "en 2 lakh and 30 thousand -> 230000 | de 5 Millionen und 300 Tausend -> 5300000 | "
    "en 2 thousand and 500 -> 500 | sw elfu 2 na 500 -> 2500 | bn ৩হাজার৫০০ -> 3500 | ja 1万 2千 -> 12000 | "
    "en 2 and a half million -> 2500000 | ru 2 с половиной миллиона -> 2500000 | fr 3 et demi -> 3.5 | "
    "hi साढ़े 3 लाख -> 350000 | hi डेढ़ लाख -> 150000 | hi ढाई हज़ार -> 2500 | hi सवा 2 करोड़ -> 22500000 | "
    "hi पौने २ लाख -> 175000 | bn সাড়ে ৩ লাখ -> 350000 | bn দেড় লাখ টাকা -> 150000 | bn পৌনে ২ হাজার -> 1750 | "
    # Not words of scale: other words, units, and numbers that follow.
    "zh 5千克 -> 5 | zh 5千米 -> 5 | es 60 millas -> 60 | sw asilimia 30 -> 30 | bn ৫০ শতাংশ -> 50 | "
    "bn ৫ লক্ষ্য -> 5 | th 5 พันธุ์ -> 5 | en 3 thousand 500 -> 500 | en 9 thousandths -> 9 | "
    # Han numerals.
    "zh 三百五十 -> 350 | zh 十八 -> 18 | zh 一万二千 -> 12000 | zh 一萬二千 -> 12000 | zh 两千零五十 -> 2050 | "
    "zh 二〇二四 -> 2024 | ja 一億二千三百四十五万六千 -> 123456000 | ja 弐万円 -> 20000 | zh 叁仟伍佰 -> 3500 | "
    # Chinese says five for five of the next scale down, Japanese does not.
    "zh 三万五 -> 35000 | zh 3万5 -> 35000 | zh 一百五 -> 150 | zh 三万零五 -> 30005 | ja 三万五 -> 30005 | "
    # Parts of words.
    "zh 18，千万不要忘记 -> 18 | zh 18个，一一列举 -> 18 | zh 18，这是唯一的答案，万一不对 -> 18 | "
    "zh 四五个 -> none | zh 一两个 -> none | ja 18個を拾い上げる -> 18 | ja それを拾い上げる -> none | "
)


@pytest.mark.parametrize(("language", "text", "number"), NUMBERS)
def test_corrected_extraction(language: str, text: str, number: float | None):
    assert corrected_number(text, language) == number
    in_a_sentence = corrected_number(f"12 + 6: {text}\n", language)
    assert in_a_sentence == (6 if number is None else number)


@pytest.mark.parametrize("language", MATH_LANGUAGES)
def test_both_agree_on_plain_positive_integers(language: str):
    rng = random.Random(0)
    for _ in range(500):
        numbers = [rng.choice((rng.randrange(10), rng.randrange(10_000), rng.randrange(10**12))) for _ in range(4)]
        a, b, c, last = numbers
        text = f"{a} + {b} = {c}. Jibu: {last}{rng.choice(('', '.', ' ', '!', '%', '個', ')'))}"
        assert corrected_number(text, language) == reference_number(text) == last


@pytest.mark.parametrize(
    ("language", "text", "number"),
    [
        ("zh", "答案是八。", 8),
        ("zh", "一共有八个苹果", 8),
        ("ja", "答えは三つです", 3),
        ("ja", "全部で千円です", 1000),
        ("zh", "我不知道一共多少，十分抱歉", None),
        ("zh", "三分之二。", None),
        ("zh", "第一。", None),
        ("zh", "几千", None),
        ("zh", "三点五", None),
        ("zh", "一个人，星期二。", None),
    ],
)
def test_one_numeral_is_a_number_where_there_is_no_other(language: str, text: str, number: float | None):
    assert corrected_number(text, language) == number
    assert corrected_number(f"12 + 6 = 18。{text}", language) == 18


def test_tolerance_and_no_number():
    assert equals(18.0009, 18) and not equals(18.0011, 18) and not equals(-5, 5)
    assert not equals(None, 0.0)
    # The reference counts an answer without a number as the right one where the answer is 0.
    assert equals(reference_number("nothing"), 0.0)


def test_a_number_too_long_for_a_float_is_wrong_and_no_error():
    assert not equals(reference_number("9" * 5000), 9.0) and not equals(corrected_number("9" * 5000, "en"), 9.0)
