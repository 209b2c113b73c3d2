"""`jaxalign data validate` and `jaxalign data describe`: what is wrong with files of data, and what is in them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.cli.settings import chosen_languages, chosen_tasks, out_folder, rendering
from jaxalign.data.check import (
    control_characters,
    describe_labels,
    describe_languages,
    doubles,
    errors_of,
    rendered_lengths,
    rows_among,
    summary,
    token_lengths,
)
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.tasks import TASKS, Task, read_task_rows, task_file
from jaxalign.data.templates import resolve_template
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.files import data_folder, write_json
from jaxalign.load import config_and_tokenizer, model_path
from jaxalign.reporting.escaping import one_line


def validate(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints every error of the files, one a line; InputError if there is any."""
    if not paths:
        raise InputError("data validate takes files of pairs, task files, data sets or data folders; none is named")
    errors = {file: found for path in paths for file, found in errors_of(Path(path), rendering(config)).items()}
    for message in (message for found in errors.values() for message in found):
        print(one_line(message))
    bad = sum(map(bool, errors.values()))
    if bad:
        raise InputError(
            f"{sum(map(len, errors.values()))} errors in {bad} of {len(errors)} files; they are listed above"
        )
    print(f"{len(errors)} files, no errors")


def describe(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints what the pairs of the files hold, and with `config.out` writes it to describe.json there."""
    if not paths:
        raise InputError("data describe takes files of pairs; none is named")
    document = describe_files(config, [Path(path) for path in paths])
    for line in lines_of(document):
        print(line)
    if config.out:
        write_json(out_folder(config) / "describe.json", document)


def describe_files(config: ConfigDict, paths: Sequence[Path]) -> dict[str, Any]:
    """The content of describe.json; without `config.model` lengths are in characters, and labels are left out."""
    pairs = {str(path): read_pairs([path], rendering(config)) for path in paths}
    together = [pair for found in pairs.values() for pair in found]
    document: dict[str, Any] = {
        "pairs": {path: len(found) for path, found in pairs.items()},
        "directions": Counter(f"{pair.source_language}→{pair.target_language}" for pair in together),
        **doubles(together),
        "control_characters": control_characters(together),
        "tasks": [task.name for task in chosen_tasks(config)],
        "test_rows": test_rows(config, together),
    }
    if not config.model:
        return {**document, "unit": "characters", "languages": describe_languages(together, len)}
    model_config, tokenizer = config_and_tokenizer(model_path(config.model))
    template = resolve_template(config.template, model_config.family)
    return {
        **document,
        "unit": "tokens",
        "languages": describe_languages(together, token_lengths(together, tokenizer).__getitem__),
        "rows": row_lengths(config, together, template, tokenizer),
        "label_words": describe_labels(chosen_tasks(config), chosen_languages(config), tokenizer),
    }


def row_lengths(
    config: ConfigDict, pairs: Sequence[QuestionPair], template: str, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Positions that pairs take as they are tuned on, and how many take more than there are."""
    lengths, limit = rendered_lengths(pairs, template, tokenizer), config.batch.length
    too_long = sum(length > limit for length in lengths)
    return {
        "template": template,
        **summary(lengths),
        "limit": limit,
        "dropped": too_long if config.batch.too_long == "drop" else 0,
        "cut": too_long if config.batch.too_long == "cut" else 0,
    }


def test_rows(config: ConfigDict, pairs: Sequence[QuestionPair]) -> list[dict[str, Any]]:
    """Per task and language of the pairs: which test rows of `config.data` stand in them."""
    data, records = data_folder(config.data), []
    spoken = {code for pair in pairs for code in (pair.source_language, pair.target_language)}
    for task in chosen_tasks(config):
        for language in chosen_languages(config):
            if language in spoken and has_test_file(data, task, language):
                rows = read_task_rows(data, task, language, "test", slice(None))
                place = {"task": task.name, "language": language, "count": len(rows)}
                records.append({**place, "among_the_pairs": rows_among(pairs, task, rows)})
    return records


def has_test_file(data: Path, task: Task, language: str) -> bool:
    """Whether a data folder has the task's test rows in a language."""
    try:
        task_file(data, task, language, "test")
    except InputError:
        return False
    return True


def lines_of(document: Mapping[str, Any]) -> Iterator[str]:
    """The document for the terminal."""
    directions = ", ".join(f"{name} {count:,}" for name, count in document["directions"].items())
    yield f"{sum(document['pairs'].values()):,} pairs ({directions})"
    yield ""
    yield (
        f"{'language':8}  {'prompts':>8}  {'responses':>9}  {'mean':>7}  {'median':>7}  {'95 %':>7}  {'longest':>7}  "
        f"scripts (lengths in {document['unit']})"
    )
    for code, of in document["languages"].items():
        length = of["length"]
        scripts = ", ".join(f"{name} {share:.1%}" for name, share in of["scripts"].items() if share >= 0.001)
        odd = f"; {of['in_other_scripts']:,} texts mostly in another script" if of["in_other_scripts"] else ""
        yield (
            f"{code:8}  {of['prompts']:8,}  {of['responses']:9,}  {length['mean']:7.1f}  {length['median']:7.1f}  "
            f"{length['p95']:7.1f}  {length['max']:7,}  {scripts}{odd}"
        )
    yield ""
    if "rows" in document:
        rows = document["rows"]
        yield (
            f"as tuned on (template {rows['template']}): mean {rows['mean']:.1f}, longest {rows['max']:,} of "
            f"{rows['limit']:,} positions; {rows['dropped']:,} dropped, {rows['cut']:,} cut"
        )
    yield (
        f"{document['repeated_pairs']:,} pairs repeat an earlier one, {document['prompts_of_several_responses']:,} "
        "prompts have several responses"
    )
    if counts := document["control_characters"]:
        named = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        yield f"control characters in the texts: {named}; tuning teaches the model to write those of responses"
    for record in document["test_rows"]:
        yield (
            f"test rows of {record['task']} {record['language']} among the pairs: "
            f"{len(record['among_the_pairs']):,} of {record['count']:,}"
        )
    if passed_over := [name for name in TASKS if name not in document["tasks"]]:
        yield f"test rows and label words of {', '.join(passed_over)} were not looked at: --config.tasks=all does"
    for record in document.get("label_words", ()):
        shared = [f"{words} share {' '.join(map(repr, tokens))}" for words, tokens in record["shared"].items()]
        missing = [f"{word} begins with no token" for word in record["without_tokens"]]
        yield f"label words, {record['task']} {record['variant']} {record['language']}: {'; '.join(shared + missing)}"
