"""The study's and QAlign's released files, read, rendered and rebuilt."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from jaxalign.data.batches import fit_pairs, training_plan
from jaxalign.data.build import build_examples, write_pairs
from jaxalign.data.check import warn_of_exemplars
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.pairs import Rendering, instruction_languages, languages_of, read_pairs
from jaxalign.data.prompts import (
    Difference,
    differences,
    differences_table,
    few_shot_prefix,
    few_shot_prompt,
    label_words,
    read_exemplars,
    variants_of,
)
from jaxalign.data.study import import_study
from jaxalign.data.tasks import TASKS, TaskData, TaskRow, correct_by_class, correct_by_reference, task_file
from jaxalign.data.tokenizer import load_tokenizer
from tests.data.tiny_tokenizers import render
from tests.defaults import base_layout

ALL = slice(None)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def exemplars(shared):
    return read_exemplars(shared / "data" / "exemplars.json")


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_tables_and_prefixes_are_the_scripts(shared, exemplars, task):
    document = read(shared / "data" / "exemplars.json")[task.name]
    assert list(document) == list(LANGUAGES)
    for language, entry in document.items():
        cues = dict(zip((*task.fields, "answer"), entry["keywords"].values(), strict=True))
        assert task.cues[language] == cues
        if entry["labels"]:
            assert task.label_words[language] == entry["labels"]
        file_words = {**task.label_words[language], **task.file_words.get(language, {})}
        assert file_words == entry["test_file_labels"]
        mismatch = {name: words["test_file"] for name, words in (entry.get("label_mismatch") or {}).items()}
        assert task.file_words.get(language, {}) == mismatch
        assert entry["prefix_sha256"] == {
            "english_answer" if variant == "english" else variant: sha256(
                few_shot_prefix(task, language, exemplars, variant)
            )
            for variant in variants_of(task)
        }
        if "irrelevant_labels" in entry:
            assert label_words(task, language, "irrelevant") == entry["irrelevant_labels"]


def test_differences_name_the_cells_whose_prompts_differ(exemplars):
    """Each cell is rendered in both styles; its difference is the listed texts exchanged, and nothing else."""
    listed: dict[tuple[str, str], list[Difference]] = {}
    for item in differences(exemplars):
        listed.setdefault((item.task, item.language), []).append(item)
    differing = set()
    for task in TASKS.values():
        for language in LANGUAGES:
            row = TaskRow(task.name, language, 0, tuple(f"({name})" for name in task.fields), "", "")
            for variant in variants_of(task):
                study, mended = (few_shot_prompt(row, exemplars, variant, style) for style in ("study", "mended"))
                if study != mended:
                    differing.add((task.name, language))
                shown = listed.get((task.name, language), [])
                for item in sorted(shown, key=lambda item: len(item.study), reverse=True):
                    study = study.replace(item.study, item.mended)
                assert study == mended
    assert differing == set(listed)
    places = [(item.task, item.language) for item in differences(exemplars) if item.where.startswith("exemplar")]
    assert places == [("emotion", "en"), ("snli", "zh"), ("snli", "zh"), ("snli", "nl")]


# Percent that an oracle, which answers the true class, gets by the study's rule; 100 in every other cell.
REFERENCE_CEILINGS = {("snli", "no"): 33.3, ("snli", "ja"): 66.7, ("snli", "bn"): 66.7}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_an_oracle_is_wrong_only_where_the_study_scores_wrongly(shared, task):
    for language in LANGUAGES:
        rows = TaskData(shared / "data").rows(task, language)
        right = sum(correct_by_reference(task, row, row.gold_class) for row in rows)
        assert round(100 * right / len(rows), 1) == REFERENCE_CEILINGS.get((task.name, language), 100)
        assert all(correct_by_class(row, row.gold_class) for row in rows)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_prompts_of_the_reference_rows(shared, exemplars, model):
    reference = read(shared / "reference" / f"{model}.json")["rows"]
    assert len(reference) == 180
    for expected in reference:
        task, row = TASKS[expected["task"]], expected["row"]
        (item,) = TaskData(shared / "data").rows(task, expected["language"], slice(row, row + 1))
        assert sha256(few_shot_prompt(item, exemplars, "english")) == expected["prompt_sha256"]


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_all_test_files_read(shared, task):
    counts = {"emotion": (500, [250, 250]), "snli": (600, [200, 200, 200]), "paws": (500, [250, 250])}[task.name]
    for language in LANGUAGES:
        rows = TaskData(shared / "data").rows(task, language)
        classes = [row.gold_class for row in rows]
        assert (len(rows), [classes.count(name) for name in task.classes]) == counts
        # Once the file's own words are known, its gold and the English row's class agree everywhere.
        words = {**task.label_words[language], **task.file_words.get(language, {})}
        assert all(row.answer == words[row.gold_class] for row in rows)
        objects = read(task_file(shared / "data", task, language, "test"))
        assert [list(row.fields) for row in rows] == [[item[name] for name in task.fields] for item in objects]


def test_train_files_read(shared):
    snli = TaskData(shared / "data").rows(TASKS["snli"], "en", split="train")
    counts = {name: sum(row.gold_class == name for row in snli) for name in (*TASKS["snli"].classes, "")}
    assert counts == {"entailment": 3289, "neutral": 3335, "contradiction": 3361, "": 15}
    paws = TaskData(shared / "data").rows(TASKS["paws"], "en", split="train")
    assert [sum(row.gold_class == name for row in paws) for name in TASKS["paws"].classes] == [5000, 5000]
    assert {row.answer for row in paws} == {"yes", "no"}


@pytest.mark.parametrize("language", ["de", "es", "it", "sw", "zh"])
def test_released_training_files_are_rebuilt(shared, tmp_path, language):
    """From the English train file and the translations alone, every row of the released file, in its order."""
    snli = TASKS["snli"]
    released = read(shared / "data" / "snli" / f"snli_{language}10k_train_question.json")
    cues = snli.cues[language]
    pattern = re.compile(
        f'{cues["premise"]}(.*)\n{cues["hypothesis"]}(.*)\n{cues["answer"]}"\n'
        f"Translate the input from {LANGUAGES[language].name} to English:\n"
    )
    english = (shared / "data" / "snli" / "snli_en10k_train.json").read_bytes()
    translated = []
    for row, gold in zip(released, json.loads(english), strict=True):
        match = pattern.fullmatch(row["input"])
        assert match
        # An unlabelled English row stays unlabelled.
        answer = {"answer": snli.label_words[language][gold["answer"]]} if "answer" in gold else {}
        translated.append({"premise": match[1], "hypothesis": match[2], **answer})
    (tmp_path / "snli").mkdir()
    (tmp_path / "snli" / "snli_en10k_train.json").write_bytes(english)
    (tmp_path / "snli" / f"snli_{language}10000_train.json").write_text(json.dumps(translated), encoding="utf-8")

    pairs = build_examples(tmp_path, snli, [language])
    write_pairs(tmp_path / "built.json", pairs)
    assert read(tmp_path / "built.json") == released
    assert pairs == read_pairs([shared / "data" / "snli" / f"snli_{language}10k_train_question.json"])
    assert languages_of(pairs) == [code for code in LANGUAGES if code in (language, "en")]


@pytest.mark.real_weights
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.parametrize("language", ["zh", "de"])
def test_packing_the_snli_questions_wastes_little(shared, models, name, language):
    tokenizer = load_tokenizer(models / name)
    file = shared / f"data/snli/snli_{language}10k_train_question.json"
    pairs = read_pairs([file])
    fitted = fit_pairs([render(pair, "none", tokenizer) for pair in pairs], 512, "drop")
    layout = base_layout(pairs_per_step=0, rows_per_step=16, length=512)
    assert len(fitted.pairs) > 9900
    assert training_plan(fitted.pairs, layout, epochs=1, steps=0, seed=0).padding <= 0.05


def test_mispairing_at_full_size_keeps_no_target(shared, tmp_path):
    """10,000 rows, of whose targets two read the same."""
    file = shared / "data" / "snli" / "snli_en10k_train.json"
    (tmp_path / "snli").mkdir()
    for language in ("en", "de"):
        rows = [{key: value for key, value in row.items() if key != "answer"} for row in read(file)]
        (tmp_path / "snli" / f"snli_{language}10k_train.json").write_text(json.dumps(rows), encoding="utf-8")
    true = build_examples(tmp_path, TASKS["snli"], ["de"])
    pairs = build_examples(tmp_path, TASKS["snli"], ["de"], control="mispaired")
    assert len({pair.response for pair in true}) == 9_999
    assert not any(pair.response == own.response for pair, own in zip(pairs, true, strict=True))
    assert sorted(pair.response for pair in pairs) == sorted(pair.response for pair in true)


@pytest.mark.parametrize(
    ("language", "count"),
    [("de", 7464), ("es", 7468), ("fr", 7464), ("ja", 7466), ("ru", 7360), ("sw", 7469), ("zh", 7363)],
)
def test_qaligns_question_pairs_read(shared, language, count):
    folder = shared / "data" / "qalign" / "gsm8k_questions" / f"{language}-en"
    pairs = read_pairs([folder / f"train.{language}"], Rendering("before"))
    assert len(pairs) == count
    english = (folder / "train.en").read_bytes().split(b"\n")
    assert [pair.response.encode("utf-8") for pair in pairs] == english[:-1]
    assert {instruction_languages(pair.prompt, "") for pair in pairs} == {(language, "en")}


def test_the_study_imports(shared, tmp_path):
    """A clone of the study's repository gives the same exemplars, cues and hashes; other notes are not written."""
    place = os.environ.get("JAXALIGN_STUDY_CLONE")
    if not place:
        pytest.skip("needs JAXALIGN_STUDY_CLONE, a clone of github.com/Shimao-Zhang/LLM-Multilingual-Learner")
    import_study(Path(place), tmp_path / "out")
    imported, expected = read(tmp_path / "out" / "exemplars.json"), read(shared / "data" / "exemplars.json")
    for task in TASKS:
        for language in LANGUAGES:
            entry, other = imported[task][language], expected[task][language]
            assert entry == {name: other[name] for name in ("exemplars", "keywords", "prefix_sha256")}
    copied = sorted((tmp_path / "out").glob("*/*.json"))
    assert len(copied) >= 60
    for file in copied:
        theirs = shared / "data" / file.relative_to(tmp_path / "out")
        if theirs.exists():
            assert file.read_bytes() == theirs.read_bytes()


def test_the_documents_tell_what_mended_prompts_differ_in(exemplars):
    page = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    assert differences_table(exemplars).strip() in page


def test_what_the_released_data_is_warned_of(shared, capsys):
    """Nothing but that both exemplars of emotion are test rows, in every language."""
    exemplars = read_exemplars(shared / "data" / "exemplars.json")
    cells = {
        (task.name, language): TaskData(shared / "data").rows(task, language)
        for task in TASKS.values()
        for language in LANGUAGES
    }
    warn_of_exemplars(exemplars, cells.values())
    assert capsys.readouterr().err == (
        f"warning: {shared / 'data' / 'exemplars.json'}: 40 of 32000 test rows are an exemplar of their own prompt, "
        "which shows their answer; first emotion en row 20, emotion en row 99\n"
    )
