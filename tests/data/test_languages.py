import pytest

from jaxalign.data.languages import LANGUAGES, code_of, known_language, language_of, parse_languages
from jaxalign.errors import InputError


def test_order_and_tiers_are_the_papers():
    codes = list(LANGUAGES)
    assert " ".join(codes) == "en zh de fr es it nl ja ru sv sl pl bg no ms is hi th sw bn"
    assert [code for code in LANGUAGES if LANGUAGES[code].tier == "high"] == codes[:10]
    assert [code for code in LANGUAGES if LANGUAGES[code].tier == "low"] == codes[10:]
    assert all(language.code == code for code, language in LANGUAGES.items())
    assert {code for code in LANGUAGES if LANGUAGES[code].script == "Cyrillic"} == {"ru", "bg"}
    assert {code for code in LANGUAGES if LANGUAGES[code].family == "Germanic"} == {"en", "de", "nl", "sv", "no", "is"}


# What the data sets, models and tools of the field write for the study's languages.
MEANINGS = {
    "en": "EN eng English en-US en_GB en_XX eng_Latn ENGLISH",
    "zh": "zh-CN zh_CN zh-TW zh-Hans zh_Hant zh-Hans-CN zh_Hant_TW zho chi cmn zho_Hans zho_Hant cmn_Hans chinese",
    "de": "De DE de-AT de_DE deu ger deu_Latn GERMAN german",
    "fr": "fr-CA fra fre fra_Latn French",
    "es": "es-419 es_MX spa spa_Latn Castilian",
    "ja": "ja_XX ja-JP jpn jpn_Jpan Japanese",
    "ru": "ru_RU rus_Cyrl Russian",
    "sl": "sl_SI slv slv_Latn Slovenian Slovene",
    "no": "nb NB nb-NO nb_NO nor nob nob_Latn no-NO Norwegian Bokmål BOKMÅL",
    "ms": "msa may zsm zsm_Latn ms-MY Malay",
    "is": "isl ice isl_Latn is_IS Icelandic",
    "hi": "hin hin_Deva hi_IN hi-Deva-IN",
    "th": "tha tha_Thai th_TH",
    "sw": "swa swh swh_Latn sw_KE Kiswahili",
    "bn": "ben ben_Beng bn-BD bn_IN Bangla bengali",
}


@pytest.mark.parametrize("code", MEANINGS)
def test_codes_tags_and_names_mean_one_language(code: str):
    for name in MEANINGS[code].split():
        assert language_of(name, "x").code == code_of(name) == code
        assert parse_languages(f"{name} ") == [code]


def test_names_of_several_words():
    for name in ("Chinese (Simplified)", "simplified  chinese", "Mandarin Chinese", "Traditional Chinese"):
        assert code_of(name) == "zh"
    # The letter a with a ring as two characters.
    assert code_of("Norwegian Bokma\u030al") == code_of("Norwegian (Bokmål)") == "no"
    assert code_of("Swahili (macrolanguage)") == "sw"


STRANGERS = """tr ko pt uk cs da jp cn tur ind nn nno yue zh-yue hi-Latn hin_Latn ru-Latn zh_Latn de-1901 Danish Turkish
Javanese Slovak Ukrainian Hungarian Malayalam xx dee"""


def test_a_language_that_is_not_the_studys_gets_no_suggestion():
    for name in STRANGERS.split():
        assert known_language(name) is None and code_of(name) == name
        with pytest.raises(InputError, match=rf"^rows.csv, row 3: unknown language '{name}'; known: en zh ") as error:
            language_of(name, "rows.csv, row 3")
        assert "did you mean" not in str(error.value) and "zh-CN, deu_Latn" in str(error.value)


def test_languages_of_a_setting():
    assert parse_languages("de,sw") == ["de", "sw"]
    assert parse_languages("sw, zh-CN,deu_Latn") == ["sw", "zh", "de"]
    assert parse_languages("all") == list(LANGUAGES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Germn", "unknown language 'Germn'; did you mean 'German'? Known: en zh"),
        ("Bengalli", "unknown language 'Bengalli'; did you mean 'Bengali'?"),
        ("", "unknown language ''"),
        ("de,,sw", "unknown language ''"),
        ("de,sw,de", "de named more than once"),
        ("zh-CN,zho_Hans,nb", "zh named more than once"),
    ],
)
def test_bad_settings_are_named(text: str, message: str):
    with pytest.raises(InputError) as error:
        parse_languages(text)
    assert message in str(error.value) and "\n" not in str(error.value)
