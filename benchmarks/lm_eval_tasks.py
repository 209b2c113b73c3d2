"""Task files for lm-eval, made of the mini question set: `python benchmarks/lm_eval_tasks.py FOLDER`.

All three types of request, in English and German: multiple choice behind exemplars and without, translation into the
other language, perplexity. They are used as `--include_path FOLDER --tasks mini_emotion_en,...`.
"""

import sys
from pathlib import Path
from typing import Any, get_args

from jaxalign.data.tasks import TASKS, Split, task_file
from jaxalign.files import data_folder, read_json, write_json

LANGUAGES = {"en": "English", "de": "German"}
ACCURACY = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
PERPLEXITY = [
    {"metric": name, "aggregation": aggregation, "higher_is_better": False}
    for name, aggregation in (("byte_perplexity", "weighted_perplexity"), ("bits_per_byte", "bits_per_byte"))
]
TEXTS_TOGETHER = 10
"""Reviews that make one document of the perplexity tasks."""

Documents = dict[str, list[dict[str, Any]]]
"""The documents of the splits train and test."""


def rows(task: str, language: str, split: Split) -> list[dict[str, Any]]:
    """A file of the mini set; row i is the same item in every language."""
    return read_json(task_file(data_folder("mini"), TASKS[task], language, split))


def choice(task: str, language: str, exemplars: int) -> tuple[dict[str, Any], Documents]:
    """Which label word follows a row."""
    words, cues = list(TASKS[task].label_words[language].values()), TASKS[task].cues[language]
    shown = [f"{cues.get(field, '')}{{{{{field}}}}}" for field in TASKS[task].fields]
    documents = {
        split: [{**row, "label": words.index(row["answer"])} for row in rows(task, language, split)]
        for split in get_args(Split)
    }
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "\n".join([*shown, cues["answer"].strip()]),
        "doc_to_choice": words,
        "doc_to_target": "label",
        "num_fewshot": exemplars,
        "metric_list": ACCURACY,
    }
    return config, documents


def translation(source: str, target: str, exemplars: int) -> tuple[dict[str, Any], Documents]:
    """A review in the other language."""
    documents = {
        split: [
            {"source": asked["input"], "target": answer["input"]}
            for asked, answer in zip(rows("emotion", source, split), rows("emotion", target, split), strict=True)
        ]
        for split in get_args(Split)
    }
    config = {
        "output_type": "generate_until",
        "doc_to_text": f"{LANGUAGES[source]}: {{{{source}}}}\n{LANGUAGES[target]}:",
        "doc_to_target": "target",
        "num_fewshot": exemplars,
        "generation_kwargs": {"until": ["\n\n", f"\n{LANGUAGES[source]}:"], "max_gen_toks": 48, "do_sample": False},
        "metric_list": EXACT,
    }
    return config, documents


def perplexity(language: str) -> tuple[dict[str, Any], Documents]:
    """Reviews, several after one another."""
    texts = [row["input"] for row in rows("emotion", language, "test")]
    together = ["\n".join(texts[first : first + TEXTS_TOGETHER]) for first in range(0, len(texts), TEXTS_TOGETHER)]
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": PERPLEXITY,
    }
    return config, {"test": [{"text": text} for text in together]}


def tasks() -> dict[str, tuple[dict[str, Any], Documents]]:
    """Name -> what lm-eval's task file says, but for where the documents lie; and the documents."""
    return {
        **{f"mini_emotion_{language}": choice("emotion", language, exemplars=4) for language in LANGUAGES},
        **{f"mini_snli_{language}": choice("snli", language, exemplars=0) for language in LANGUAGES},
        "mini_translation_de_en": translation("de", "en", exemplars=4),
        "mini_translation_en_de": translation("en", "de", exemplars=4),
        **{f"mini_perplexity_{language}": perplexity(language) for language in LANGUAGES},
    }


def write_tasks(folder: Path, limit: int | None = None) -> None:
    """The task files (JSON, which is YAML too) and their documents, `limit` test documents of each at most."""
    for name, (config, documents) in tasks().items():
        files = {}
        for split, of_split in documents.items():
            file = folder / f"{name}_{split}.json"
            write_json(file, of_split if split == "train" else of_split[:limit])
            files[split] = str(file.resolve())
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        if "train" in documents:
            # The same exemplars before every document, as the tasks of MMLU have them.
            source |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
        write_json(folder / f"{name}.yaml", {"task": name, **source, **config, "metadata": {"version": 1}})


if __name__ == "__main__":
    write_tasks(Path(sys.argv[1]))
