"""The shipped question set: complete, balanced, aligned, and readable by the same readers as the study's data."""

from collections import Counter

import pytest

from jaxalign.data.check import warn_of_exemplars
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import read_exemplars
from jaxalign.data.tasks import TASKS, Split, TaskData
from jaxalign.files import MINI, exemplars_file

COUNTS = {"emotion": (48, 40, 2), "snli": (12, 12, 6), "paws": (8, 8, 4)}
# A character block that most letters of a text must come from; Latin where not named.
BLOCKS = {
    "zh": ("一", "鿿"), "ja": ("぀", "鿿"), "ru": ("Ѐ", "ӿ"), "bg": ("Ѐ", "ӿ"),
    "hi": ("ऀ", "ॿ"), "th": ("฀", "๿"), "bn": ("ঀ", "৿"),
}  # fmt: skip


def texts(task, language, split):
    return [text for row in TaskData(MINI).rows(task, language, split=split) for text in row.fields]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_counts_balance_and_answers(task, language):
    train, test, shots = COUNTS[task.name]
    counts: dict[Split, int] = {"train": train, "test": test}
    for split, count in counts.items():
        rows = TaskData(MINI).rows(task, language, split=split)
        assert len(rows) == count
        assert set(Counter(row.gold_class for row in rows).values()) == {count // len(task.classes)}
        assert all(task.label_words[language][row.gold_class] == row.answer for row in rows)
    exemplars = read_exemplars(exemplars_file(MINI, "")).of(task.name, language)
    assert [exemplar.label for exemplar in exemplars] == list(task.classes) * (shots // len(task.classes))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_occurs_twice(language):
    exemplars = read_exemplars(exemplars_file(MINI, ""))
    every = [text for task in TASKS.values() for split in ("train", "test") for text in texts(task, language, split)]
    every += [text for task in TASKS for exemplar in exemplars.of(task, language) for text in exemplar.fields]
    assert [text for text, count in Counter(every).items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_in_their_own_script(language):
    low, high = BLOCKS.get(language, ("A", "ɏ"))
    for task in TASKS.values():
        for text in texts(task, language, "test"):
            # Letters without combining marks: vowel signs are not letters to str.isalpha.
            letters = [letter for letter in text if letter.isalpha()]
            assert sum(low <= letter <= high for letter in letters) > 0.8 * len(letters), text
            assert text == text.strip() and '"' not in text and "\n" not in text


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_nothing_is_left_in_english(language):
    for task in TASKS.values():
        english = {*texts(task, "en", "train"), *texts(task, "en", "test")}
        assert english.isdisjoint([*texts(task, language, "train"), *texts(task, language, "test")])


def test_nothing_in_it_is_warned_of(capsys):
    exemplars = read_exemplars(MINI / "exemplars.json")
    cells = (TaskData(MINI).rows(TASKS[task], language) for task, language in exemplars.cells)
    warn_of_exemplars(exemplars, cells)
    assert capsys.readouterr().err == ""
