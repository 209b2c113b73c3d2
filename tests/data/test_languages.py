import pytest

from jaxalign.data.languages import LANGUAGES, language_named, language_of, parse_languages
from jaxalign.errors import InputError


def test_order_and_tiers_are_the_papers():
    codes = list(LANGUAGES)
    assert " ".join(codes) == "en zh de fr es it nl ja ru sv sl pl bg no ms is hi th sw bn"
    assert [code for code in LANGUAGES if LANGUAGES[code].tier == "high"] == codes[:10]
    assert [code for code in LANGUAGES if LANGUAGES[code].tier == "low"] == codes[10:]
    assert all(language.code == code for code, language in LANGUAGES.items())
    assert {code for code in LANGUAGES if LANGUAGES[code].script == "Cyrillic"} == {"ru", "bg"}
    assert {code for code in LANGUAGES if LANGUAGES[code].family == "Germanic"} == {"en", "de", "nl", "sv", "no", "is"}


def test_languages_of_a_setting():
    assert parse_languages("de,sw") == ["de", "sw"]
    assert parse_languages("sw, de") == ["sw", "de"]
    assert parse_languages("all") == list(LANGUAGES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("de,swa", "unknown language 'swa'; did you mean 'sw' (Swahili)?"),
        ("germn", "unknown language 'germn'; did you mean 'de' (German)?"),
        ("DE", "unknown language 'DE'; did you mean 'de' (German)?"),
        ("", "unknown language ''"),
        ("de,,sw", "unknown language ''"),
        ("de,sw,de", "de named more than once"),
    ],
)
def test_bad_settings_are_named(text, message):
    with pytest.raises(InputError) as error:
        parse_languages(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_errors_begin_with_the_place():
    assert language_named("Bengali", "x").code == "bn"
    with pytest.raises(InputError, match=r"^pairs.csv, row 3: unknown language 'Bengaly'; did you mean 'Bengali'\?"):
        language_named("Bengaly", "pairs.csv, row 3")
    with pytest.raises(InputError, match=r"^pairs.csv, row 3: unknown language 'xx'"):
        language_of("xx", "pairs.csv, row 3")
