"""The three tasks: fields, classes, cue words and label words of every language, and the reader of their files.

Cue and label words are those of the study's evaluation scripts (github.com/Shimao-Zhang/LLM-Multilingual-Learner,
commit 5605459), its slips included: Russian and Spanish PAWS cues are the judicial "sentence", Swahili SNLI says
"Hypothesis: ". Prompts of the study's style must match them byte for byte; prompts.MENDED_CUES has the others.

Files are DATA/{folder}/{task}_{language}{rows}_{split}.json or, for paws where there is no DATA/paws/, PAWS-X as TFDS
prepares it: DATA/paws_x_wiki/{language}/{version}/.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxalign.data.fields import Rows, json_rows, numbered, object_of, text_of
from jaxalign.data.languages import code_of, did_you_mean, known_language, language_of
from jaxalign.data.pairs import tfds_features, tfds_rows
from jaxalign.errors import InputError, gather
from jaxalign.log import warn

Split = Literal["test", "train"]
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Task:
    """A classification task given in every language.

    fields: of a row, in the order in which a prompt shows them. exemplar_fields: the same in an exemplars file.
    classes: in exemplar order; they are the English label words.
    cues: language -> field name or "answer" -> the text before that field's value.
    label_words: language -> class -> label word of the study's script.
    file_words: language -> class -> the word that the released test files hold where it is not the script's.
    train_words: words of train files that no test file uses -> class.
    """

    name: str
    folder: str
    fields: tuple[str, ...]
    exemplar_fields: tuple[str, ...]
    classes: tuple[str, ...]
    cues: Mapping[str, Mapping[str, str]]
    label_words: Mapping[str, Mapping[str, str]]
    file_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    train_words: Mapping[str, str] = field(default_factory=dict)


_EMOTION = {
    # answer cue, positive, negative
    "en": ("Emotion: ", "positive", "negative"),
    "zh": ("情感: ", "积极", "消极"),
    "de": ("Emotion: ", "positiv", "negativ"),
    "fr": ("Émotion: ", "positif", "négatif"),
    "es": ("Emoción: ", "positivo", "negativo"),
    "it": ("Emozione: ", "positivo", "negativo"),
    "nl": ("Emotie: ", "positief", "negatief"),
    "ja": ("感情: ", "ポジティブ", "ネガティブ"),
    "ru": ("Эмоция: ", "позитивный", "отрицательный"),
    "sv": ("Känsla: ", "positiv", "negativ"),
    "sl": ("Čustvo: ", "pozitivno", "negativno"),
    "pl": ("Emocja: ", "pozytywny", "negatywny"),
    "bg": ("Емоция: ", "положителен", "отрицателен"),
    "no": ("Følelse: ", "positivt", "negativ"),
    "ms": ("Emosi: ", "positif", "negatif"),
    "is": ("Tilfinning: ", "jákvæð", "neikvæð"),
    "hi": ("भावना: ", "सकारात्मक", "नकारात्मक"),
    "th": ("อารมณ์: ", "เชิงบวก", "เชิงลบ"),
    "sw": ("Hisia: ", "chanya", "hasi"),
    "bn": ("আবেগ: ", "ইতিবাচক", "নেতিবাচক"),
}

_SNLI = {
    # premise cue, hypothesis cue, answer cue, entailment, neutral, contradiction
    "en": ("Premise: ", "Hypothesis: ", "Answer: ", "entailment", "neutral", "contradiction"),
    "zh": ("前提: ", "假设: ", "答案: ", "蕴含", "中立", "矛盾"),
    "de": ("Prämisse: ", "Hypothese: ", "Antwort: ", "Konsequenz", "neutral", "Widerspruch"),
    "fr": ("Prémisse: ", "Hypothèse: ", "Répondre: ", "implication", "neutre", "contradiction"),
    "es": ("Premisa: ", "Hipótesis: ", "Respuesta: ", "vinculación", "neutro", "contradicción"),
    "it": ("Premessa: ", "Ipotesi: ", "Risposta: ", "implicazione", "neutro", "contraddizione"),
    "nl": ("Premisse: ", "Hypothese: ", "Antwoord: ", "gevolg", "neutrale", "tegenspraak"),
    "ja": ("前提: ", "仮説: ", "答え: ", "含意", "中立", "矛盾"),
    "ru": ("Предпосылка: ", "Гипотеза: ", "Отвечать: ", "логическое следствие", "нейтральный", "противоречие"),
    "sv": ("Premiss: ", "Hypotes: ", "Svar: ", "medföring", "neutral", "motsägelse"),
    "sl": ("Predpogoj: ", "Hipoteza: ", "Odgovori: ", "vpletenost", "nevtralen", "protislovje"),
    "pl": ("Przesłanka: ", "Hipoteza: ", "Odpowiedź: ", "majorat", "neutralny", "sprzeczność"),
    "bg": ("Предпоставка: ", "Хипотеза: ", "Отговор: ", "следствие", "неутрален", "противоречие"),
    "no": ("Premiss: ", "Hypotese: ", "Svar: ", "entailment", "nøytral", "motsigelse"),
    "ms": ("Premis: ", "Hipotesis: ", "Jawab: ", "entailment", "neutral", "percanggahan"),
    "is": ("Forsenda: ", "Tilgáta: ", "Svaraðu: ", "afleiðing", "hlutlaus", "mótsögn"),
    "hi": ("आधार: ", "परिकल्पना: ", "उत्तर: ", "परिणाम", "तटस्थ", "विरोधाभास"),
    "th": ("ฐาน: ", "สมมติฐาน: ", "คำตอบ: ", "การมีส่วนร่วม", "เป็นกลาง", "ความขัดแย้ง"),
    "sw": ("Nguzo: ", "Hypothesis: ", "Jibu: ", "kuhusika", "upande wowote", "utata"),
    "bn": ("ভিত্তি: ", "হাইপোথিসিস: ", "উত্তর: ", "এনটেইলমেন্ট", "নিরপেক্ষ", "দ্বন্দ্ব"),
}

_PAWS = {
    # sentence1 cue, sentence2 cue, answer cue; the label words are English in every language
    "en": ("Sentence 1: ", "Sentence 2: ", "Answer: "),
    "zh": ("句子 1: ", "句子 2: ", "答案: "),
    "de": ("Satz 1: ", "Satz 2: ", "Antwort: "),
    "fr": ("Phrase 1: ", "Phrase 2: ", "Répondre: "),
    "es": ("Sentencia 1: ", "Sentencia 2: ", "Respuesta: "),
    "it": ("Frase 1: ", "Frase 2: ", "Risposta: "),
    "nl": ("Zin 1: ", "Zin 2: ", "Antwoord: "),
    "ja": ("文 1: ", "文 2: ", "答え: "),
    "ru": ("Приговор 1: ", "Приговор 2: ", "Ответить: "),
    "sv": ("Mening 1: ", "Mening 2: ", "Svar: "),
    "sl": ("Stavek 1: ", "Stavek 2: ", "Odgovori: "),
    "pl": ("Zdanie 1: ", "Zdanie 2: ", "Odpowiedź: "),
    "bg": ("Изречение 1: ", "Изречение 2: ", "Отговор: "),
    "no": ("Setning 1: ", "Setning 2: ", "Svar: "),
    "ms": ("Ayat 1: ", "Ayat 2: ", "Jawab: "),
    "is": ("Setning 1: ", "Setning 2: ", "Svaraðu: "),
    "hi": ("वाक्य 1: ", "वाक्य 2: ", "उत्तर: "),
    "th": ("ประโยค 1: ", "ประโยค 2: ", "คำตอบ: "),
    "sw": ("Sentensi 1: ", "Sentensi 2: ", "Jibu: "),
    "bn": ("বাক্য 1: ", "বাক্য 2: ", "উত্তর: "),
}

# Where the released SNLI test files hold other words than the script compares with, found row by row against English.
# Norwegian has its neutral and contradiction words exchanged in all 400 rows.
_SNLI_FILE_WORDS = {
    "ja": {"neutral": "中性"},
    "no": {"neutral": "motsigelse", "contradiction": "nøytral"},
    "bn": {"entailment": "ধারণ করে"},
}


def _columns(table: Mapping[str, tuple[str, ...]], names: tuple[str, ...], start: int) -> dict[str, dict[str, str]]:
    """language -> {name: word}, the names given to the table's columns from `start` on."""
    return {language: dict(zip(names, row[start : start + len(names)], strict=True)) for language, row in table.items()}


TASKS: dict[str, Task] = {
    "emotion": Task(
        name="emotion",
        folder="ap_emotion",
        fields=("input",),
        exemplar_fields=("text",),
        classes=("positive", "negative"),
        # A review stands on its line without a cue.
        cues={language: {"input": "", "answer": row[0]} for language, row in _EMOTION.items()},
        label_words=_columns(_EMOTION, ("positive", "negative"), 1),
    ),
    "snli": Task(
        name="snli",
        folder="snli",
        fields=("premise", "hypothesis"),
        exemplar_fields=("premise", "hypothesis"),
        classes=("entailment", "neutral", "contradiction"),
        cues=_columns(_SNLI, ("premise", "hypothesis", "answer"), 0),
        label_words=_columns(_SNLI, ("entailment", "neutral", "contradiction"), 3),
        file_words=_SNLI_FILE_WORDS,
    ),
    "paws": Task(
        name="paws",
        folder="paws",
        fields=("sentence1", "sentence2"),
        exemplar_fields=("sentence1", "sentence2"),
        classes=("same", "different"),
        cues=_columns(_PAWS, ("sentence1", "sentence2", "answer"), 0),
        label_words={language: {"same": "same", "different": "different"} for language in _PAWS},
        train_words={"yes": "same", "no": "different"},
    ),
}


def task_named(name: str) -> Task:
    """The task of a name; an unknown one raises InputError with the nearest."""
    if name not in TASKS:
        raise InputError(f"tasks: no task {name!r}{did_you_mean(name, TASKS)}: {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class TaskRow:
    """One item of a task in one language; row i, from 0, is the same item in every language.

    answer: the file's own gold word; "" where a train row has none.
    gold_class: the class of the English row with the same index ("corrected" scoring); "" where that row has none.
    """

    task: str
    language: str
    row: int
    fields: tuple[str, ...]
    answer: str
    gold_class: str


def correct_by_reference(task: Task, row: TaskRow, predicted_class: str) -> bool:
    """The rule of the study's scripts: the script's word for the predicted class is the row's own answer.

    Three SNLI files hold other words than the script, so there a right prediction may count as wrong. The in-language
    script asks whether the word it emits starts with the answer; no label word starts another, so it is the same rule.
    """
    return task.label_words[row.language][predicted_class] == row.answer


def correct_by_class(row: TaskRow, predicted_class: str) -> bool:
    """The corrected rule: the predicted class is that of the English row with the same index."""
    return predicted_class == row.gold_class


def parse_rows(text: str) -> slice:
    """A row range from "START:STOP" (STOP not included, counted from 0) or "all"."""
    if text.strip() == "all":
        return ALL_ROWS
    match = re.fullmatch(r"\s*(\d{1,18}):(\d{1,18})\s*", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"rows: {text!r} is no range of rows; write START:STOP with START < STOP, as 0:50, or all")
    return slice(int(match[1]), int(match[2]))


class TaskFile(NamedTuple):
    task: Task
    language: str
    split: Split


def task_file_named(path: Path) -> TaskFile | None:
    """The parts of a name like emotion_de500_test.json, rows being digits as in 500 or 10k; None for other names."""
    match = re.fullmatch(rf"({'|'.join(TASKS)})_(.+?)\d+k?_(test|train)\.json", path.name, re.ASCII)
    language = known_language(match[2]) if match else None
    if match is None or language is None:
        return None
    split: Any = match[3]
    return TaskFile(TASKS[match[1]], language.code, split)


def task_file(data: Path, task: Task, language: str, split: Split) -> Path:
    """The one file or data set of a task in one language."""
    if task.name == "paws" and is_paws_x(data):
        files = (data / "paws_x_wiki").glob("*/*/dataset_info.json")
        versions = sorted(file.parent for file in files if code_of(file.parent.parent.name) == language)
        if len(versions) != 1:
            names = " and ".join(str(version.relative_to(data)) for version in versions) or "none"
            raise InputError(f"{data / 'paws_x_wiki' / language}: one prepared version is needed there, found {names}")
        return versions[0]
    folder = data / task.folder
    found = sorted(path for path in folder.glob("*.json") if task_file_named(path) == (task, language, split))
    pattern = f"{task.name}_{language}[ROWS]_{split}.json"
    if not found:
        raise InputError(f"{folder}: no {pattern} there; is {data} the data folder?")
    if len(found) > 1:
        raise InputError(f"{folder}: {' and '.join(path.name for path in found)} both match {pattern}; keep one")
    return found[0]


class TaskData:
    """The tasks' files of one data folder: each is read once, when it is first asked for, and kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[tuple[str, str, Split], list[TaskRow]] = {}

    def rows(self, task: Task, language: str, chosen: slice = ALL_ROWS, split: Split = "test") -> list[TaskRow]:
        """The chosen rows of a task in one language; every row of the file is checked, chosen or not.

        The English file must lie beside it, with the same items. In train files a row may lack "answer".
        """
        language = language_of(language).code
        key = task.name, language, split
        if key not in self._read:
            self._read[key] = self._beside_english(task, language, split)
        rows = self._read[key]
        if not rows[chosen]:
            file = task_file(self.folder, task, language, split)
            raise InputError(f"{file}: no row in {chosen.start}:{chosen.stop}; the file has {len(rows)}")
        return rows[chosen]

    def _beside_english(self, task: Task, language: str, split: Split) -> list[TaskRow]:
        """The rows of a file, with the classes of the English rows of the same indices."""
        file = task_file(self.folder, task, language, split)
        rows = read_task_file(file, task, language, split)
        if language == "en":
            return rows
        try:
            english_file = task_file(self.folder, task, "en", split)
        except InputError as error:
            raise InputError(f"{file}: its classes come from the English file of the same rows, but {error}") from None
        english = self.rows(task, "en", split=split)
        if len(rows) != len(english):
            raise InputError(
                f"{file}: {len(rows)} rows, but {english_file} has {len(english)}; row i must be the same item in both"
            )
        _check_answers(task, language, rows, english, file)
        return [replace(row, gold_class=own.gold_class) for row, own in zip(rows, english, strict=True)]


def _check_answers(task: Task, language: str, rows: Sequence[TaskRow], english: Sequence[TaskRow], file: Path) -> None:
    """Compares answers with the classes of the English rows, by the script's words and by those of the released files.

    Refused are contradictions in a quarter of the rows or more, and such as are none beside the English rows one
    further or one back; of fewer there is a warning. Wrong labels are few; of rows in another order half contradict
    where there are two classes, and two thirds where there are three.
    """

    def contradictions(words: Mapping[str, str], shift: int = 0) -> list[int]:
        classes = _classes_of(task, words)
        beside = zip(rows[max(0, -shift) :], english[max(0, shift) :], strict=False)
        both = [(row, own.gold_class) for row, own in beside if row.answer and own.gold_class]
        return [row.row for row, gold in both if classes.get(row.answer) != gold]

    own = task.label_words[language]
    ways = [own, {**own, **task.file_words.get(language, {})}]
    found, words = min(((contradictions(way), way) for way in ways), key=lambda each: len(each[0]))
    if not found:
        return
    labelled = sum(bool(row.answer and own.gold_class) for row, own in zip(rows, english, strict=True))
    row = found[0]
    message = (
        f"{file}: {len(found)} of {labelled} answers contradict the English rows (the first in row {row}: "
        f"{rows[row].answer!r} beside {english[row].answer!r})"
    )
    if 4 * len(found) >= labelled or not all(contradictions(words, shift) for shift in (-1, 1)):
        raise InputError(
            f"{message}; row i must be the same item in both: look for a row that is missing, and for label words that "
            "are exchanged"
        )
    warn(f"{message}; corrected scoring goes by the English row")


def _classes_of(task: Task, words: Mapping[str, str]) -> dict[str, str]:
    """Answer -> class, of label words by class."""
    return {word: name for name, word in words.items()} | dict(task.train_words)


def read_task_file(file: Path, task: Task, language: str, split: Split) -> list[TaskRow]:
    """The rows of one file, with the classes that their own answers say; InputErrors tells of every bad row."""
    rows = _paws_x_rows(file, split) if file.is_dir() else json_rows(file)
    classes = _classes_of(task, task.label_words[language])
    known = {*task.label_words[language].values(), *task.file_words.get(language, {}).values()}
    known |= set(task.train_words) if split == "train" else set()

    def text(item: Mapping[str, Any], name: str, where: str) -> str:
        text = text_of(item, name, where, "fill it in or leave the row out of every language")
        if name == "answer" and text not in known:
            raise InputError(
                f"{where}, field 'answer': {text!r} is no label word of this task and language; "
                f"known: {', '.join(sorted(known))}"
            )
        return text

    def row_of(number: int, item: Any, where: str) -> TaskRow:
        item = object_of(item, where)
        names = task.fields if split == "train" and "answer" not in item else (*task.fields, "answer")
        found = dict(zip(names, gather(partial(text, item, name, where) for name in names), strict=True))
        answer = found.pop("answer", "")
        return TaskRow(task.name, language, number, tuple(found.values()), answer, classes.get(answer, ""))

    read = gather(partial(row_of, number, item, where) for number, (where, item) in enumerate(rows))
    if not read:
        raise InputError(f"{file}: an array of rows is needed, found an empty one")
    return read


def is_paws_x(data: Path) -> bool:
    """Whether a data folder holds PAWS-X in place of the study's paws/."""
    return (data / "paws_x_wiki").is_dir() and not (data / "paws").is_dir()


def _paws_x_rows(folder: Path, split: str) -> Rows:
    """Rows of sentence1, sentence2 and answer, as a file of the study's has them.

    TFDS orders rows by their ids, so row i is the same item in every language that has the same items.
    """
    words = {"paraphrase": "same", "different_meaning": "different"}
    names = tfds_features(folder)["label"].names
    return numbered(folder, [{**row, "answer": words[names[row["label"]]]} for row in tfds_rows(folder, split)])
