"""`jaxalign data`: question pairs and test files on disk, what is wrong with them, and what is in them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.data.build import build_examples, write_pairs
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
from jaxalign.data.study import import_study
from jaxalign.data.tasks import TASKS, TaskData, parse_rows, task_file
from jaxalign.data.tokenizer import resolve_template
from jaxalign.errors import InputError
from jaxalign.files import data_folder, local_path, write_json
from jaxalign.loading import config_and_tokenizer, model_path
from jaxalign.reporting.words import one_line
from jaxalign.verbs.settings import chosen_languages, chosen_tasks, out_folder, rendering, split_list


def build(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the translation examples that the config describes to `config.out`, a .json file or a folder."""
    out = out_folder(config)
    file = out if out.suffix == ".json" else out / "pairs.json"
    pairs = build_pairs(config)
    write_pairs(file, pairs)
    print(f"{len(pairs)} examples in {file}")


def build_pairs(config: ConfigDict) -> list[QuestionPair]:
    """The translation examples of `config.tasks` from the train files of `config.data`, as `config.build` says."""
    keys = config.build
    english_only = keys.control in ("copy", "answers")
    sources, target = (["en"], "en") if english_only else (split_list(keys.sources), keys.target)
    return [
        pair
        for task in chosen_tasks(config)
        for pair in build_examples(
            data_folder(config.data),
            task,
            sources,
            target,
            rows=parse_rows(config.rows),
            instruction=keys.instruction,
            control=keys.control,
            seed=config.seed,
        )
    ]


def gather_pairs(config: ConfigDict, paths: Sequence[str]) -> list[QuestionPair]:
    """The rows `config.rows` of each file; without files, the pairs that `data build` would make."""
    if not paths:
        return build_pairs(config)
    gathered, rows = [], parse_rows(config.rows)
    for path in paths:
        pairs = read_pairs([Path(path)], rendering(config))
        if rows.stop is not None and rows.stop > len(pairs):
            raise InputError(f"rows={config.rows}: {path} has {len(pairs)} rows")
        gathered += pairs[rows]
    return gathered


def import_clone(config: ConfigDict, paths: Sequence[str]) -> None:
    """Makes a data folder of a clone of the study's repository."""
    out = local_path(paths[1])
    import_study(Path(paths[0]), out)
    print(f"{out}: use it with --config.data={out}")


def validate(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints every error of the files, one a line; InputError if there is any."""
    errors = {file: found for path in paths for file, found in errors_of(Path(path), rendering(config)).items()}
    messages = [message for found in errors.values() for message in found]
    for message in messages:
        print(one_line(message))
    if messages:
        bad = sum(map(bool, errors.values()))
        raise InputError(f"{len(messages)} errors in {bad} of {len(errors)} files; they are listed above")
    print(f"{len(errors)} files, no errors")


def describe(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints what the pairs of the files hold, and with `config.out` writes it to describe.json there."""
    document = describe_files(config, paths)
    for line in described_lines(document):
        print(line)
    if config.out:
        write_json(out_folder(config) / "describe.json", document)


def describe_files(config: ConfigDict, paths: Sequence[str]) -> dict[str, Any]:
    """The content of describe.json; without `config.model` lengths are in characters, and labels are left out."""
    of_file = {path: read_pairs([Path(path)], rendering(config)) for path in paths}
    pairs = [pair for found in of_file.values() for pair in found]
    tasks, languages = chosen_tasks(config), chosen_languages(config)
    document: dict[str, Any] = {
        "pairs": {path: len(found) for path, found in of_file.items()},
        "directions": Counter(f"{pair.source_language}→{pair.target_language}" for pair in pairs),
        **doubles(pairs),
        "control_characters": control_characters(pairs),
        "tasks": [task.name for task in tasks],
        "test_rows": test_rows(config, pairs),
    }
    if not config.model:
        return {**document, "unit": "characters", "languages": describe_languages(pairs, len)}
    model_config, tokenizer = config_and_tokenizer(model_path(config.model))
    template = resolve_template(config.template, model_config.family)
    lengths, limit = rendered_lengths(pairs, template, tokenizer), config.batch.length
    too_long = sum(length > limit for length in lengths)
    return {
        **document,
        "unit": "tokens",
        "languages": describe_languages(pairs, token_lengths(pairs, tokenizer).__getitem__),
        "rows": {
            "template": template,
            **summary(lengths),
            "limit": limit,
            "dropped": too_long if config.batch.too_long == "drop" else 0,
            "cut": too_long if config.batch.too_long == "cut" else 0,
        },
        "label_words": describe_labels(tasks, languages, tokenizer),
    }


def test_rows(config: ConfigDict, pairs: Sequence[QuestionPair]) -> list[dict[str, Any]]:
    """Per task and language of the pairs: which test rows of `config.data` stand in them."""
    data, records = data_folder(config.data), []
    spoken = {code for pair in pairs for code in (pair.source_language, pair.target_language)}
    for task in chosen_tasks(config):
        for language in filter(spoken.__contains__, chosen_languages(config)):
            try:
                task_file(data, task, language, "test")
            except InputError:  # not every task has every language
                continue
            rows = TaskData(data).rows(task, language)
            place = {"task": task.name, "language": language, "count": len(rows)}
            records.append({**place, "among_the_pairs": rows_among(pairs, task, rows)})
    return records


def described_lines(document: Mapping[str, Any]) -> Iterator[str]:
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
