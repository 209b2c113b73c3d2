import hashlib
import json
import shutil
from pathlib import Path

import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import few_shot_prefix, read_exemplars
from jaxalign.data.study import import_study, read_script, study_exemplars
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.errors import InputError

# Of each task and language: one exemplar a class, texts made up; and two slips that an import must keep.
FIELDS = {"emotion": ["text"], "snli": ["premise", "hypothesis"], "paws": ["sentence1", "sentence2"]}
LOOP_NAMES = {"emotion": "i", "snli": "p h", "paws": "s t"}
SCRIPTS = {
    "emotion_eval_2shot_enout.py": ("emotion", "english"),
    "emotion_eval_2shot.py": ("emotion", "in_language"),
    "emotion_eval_2shot_irrelative.py": ("emotion", "irrelevant"),
    "snli_eval_6shot_enout.py": ("snli", "english"),
    "paws_eval_4shot_enout.py": ("paws", "english"),
}


def shown_words(task, language, variant):
    if variant == "irrelevant":
        return {"positive": "ox", "negative": "horse"}
    return TASKS[task].label_words[language if variant == "in_language" else "en"]


def prefix(task, language, variant):
    """The prompt prefix of a made-up script; Chinese SNLI has a slip in its cue, English emotion trailing spaces."""
    words, cues = shown_words(task, language, variant), TASKS[task].cues[language]
    lines = []
    for name in TASKS[task].classes:
        for field, own in zip(FIELDS[task], TASKS[task].fields, strict=True):
            cue = "前提：" if (task, language, field, name) == ("snli", "zh", "premise", "neutral") else cues[own]
            lines.append(f"{cue}{language} says: it's {name}, {field}")
        lines.append(f'{cues["answer"]}"{words[name]}"' + ("   " if (language, name) == ("en", "positive") else ""))
    return "\n".join(lines)


def script(task, variant, languages):
    """Python of the study's structure, that must never run: its first statement would end the interpreter."""
    names = LOOP_NAMES[task].split()
    prefixes = {language: prefix(task, language, variant) for language in languages}
    lines = ["raise SystemExit('executed')", f"prompt_prefix = {prefixes!r}"]
    lines.append("for step, inputs in enumerate(samples):")
    for index, language in enumerate(languages):
        cues = TASKS[task].cues[language]
        parts = [f"prompt_prefix[{language!r}]"]
        for own, name in zip(TASKS[task].fields, names, strict=True):
            parts += [repr("\n" + cues[own]), name]
        query = " + ".join([*parts, repr("\n" + cues["answer"] + '"')])
        lines += [
            f"    {'elif' if index else 'if'} target_lang == {language!r}:",
            f"        input = [{query} for {', '.join(names)} in rows]",
        ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name, (task, variant) in SCRIPTS.items():
        (folder / name).write_text(script(task, variant, list(LANGUAGES)), encoding="utf-8")
    for task in TASKS.values():
        (folder / "data" / task.folder).mkdir(parents=True)
        for language in LANGUAGES:
            words = {**task.label_words[language], **task.file_words.get(language, {})}
            rows = [{field: "x" for field in task.fields} | {"answer": words[name]} for name in task.classes * 2]
            file = folder / "data" / task.folder / f"{task.name}_{language}6_test.json"
            file.write_text(json.dumps(rows), encoding="utf-8")
    (folder / "data" / "snli" / "snli_de10k_train_question.json").write_bytes(b"[ ]\r\n")
    return folder


@pytest.fixture
def clone(made_up, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_up, tmp_path / "clone"))


def test_the_folder_serves_prompts_and_rows(made_up, tmp_path):
    out = tmp_path / "data"
    import_study(made_up, out)
    assert sorted(path.name for path in out.iterdir()) == ["ap_emotion", "exemplars.json", "paws", "snli"]
    for file in (made_up / "data").glob("*/*.json"):
        assert (out / file.parent.name / file.name).read_bytes() == file.read_bytes()
    exemplars = read_exemplars(out / "exemplars.json")
    for task in TASKS.values():
        for language in LANGUAGES:
            assert few_shot_prefix(task, language, exemplars, "english") == prefix(task.name, language, "english")
            assert len(TaskData(out).rows(task, language)) == 2 * len(task.classes)
    assert few_shot_prefix(TASKS["emotion"], "th", exemplars, "in_language") == prefix("emotion", "th", "in_language")


def test_entries(made_up):
    document = study_exemplars(made_up)
    chinese = document["snli"]["zh"]
    assert chinese["exemplars"][1] == {
        "premise": "zh says: it's neutral, premise",
        "hypothesis": "zh says: it's neutral, hypothesis",
        "label": "neutral",
        "overrides": {"premise": "前提："},
    }
    assert chinese["keywords"] == {"premise": "前提: ", "hypothesis": "假设: ", "answer": "答案: "}
    emotion = document["emotion"]["en"]
    assert emotion["exemplars"][0] == {"text": "en says: it's positive, text", "label": "positive", "trailing": "   "}
    assert emotion["prefix_sha256"]["irrelevant"] == (
        hashlib.sha256(prefix("emotion", "en", "irrelevant").encode("utf-8")).hexdigest()
    )


def test_a_script_is_read_and_not_run(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("open('ran', 'w')\nprompt_prefix = {'en': open('ran', 'w')}\n")
    with pytest.raises(InputError, match="no prompt_prefix for en zh"):
        read_script(file)
    assert list(tmp_path.iterdir()) == [file]


def damaged(clone, name, old, new):
    file = clone / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("snli_eval_6shot_enout.py", "prompt_prefix = {", "prompts = {", "no prompt_prefix for en zh"),
        ("snli_eval_6shot_enout.py", "prompt_prefix = {", "prompt_prefix = {{", "line 2: not Python"),
        ("snli_eval_6shot_enout.py", "\\nHypothese: ' + h", "\\nThese: ' + h", "the query for 'de' is"),
        ("snli_eval_6shot_enout.py", '"neutral"', '"neither"', "no exemplar of snli"),
        ("emotion_eval_2shot.py", "de says", "de sagt", "is not what its exemplars render to"),
        ("data/snli/snli_de6_test.json", "Widerspruch", "Streit", "'Streit' is no label word"),
    ],
)
def test_another_version_is_refused_and_nothing_is_left(clone, tmp_path, name, old, new, message):
    damaged(clone, name, old, new)
    with pytest.raises(InputError) as error:
        import_study(clone, tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["clone"]


def test_a_folder_that_is_no_clone(clone, tmp_path):
    (clone / "snli_eval_6shot_enout.py").unlink()
    with pytest.raises(InputError, match=r"no snli_eval_6shot_enout\.py; a clone of .* is needed"):
        import_study(clone, tmp_path / "out")
    with pytest.raises(InputError, match=r"no emotion_eval_2shot_enout\.py"):
        import_study(tmp_path / "absent", tmp_path / "out")


def test_an_existing_folder_is_kept(made_up, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    import_study(made_up, out)  # an empty one is taken
    with pytest.raises(InputError, match="there is something already"):
        import_study(made_up, out)
