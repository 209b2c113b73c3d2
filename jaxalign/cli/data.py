"""`jaxalign data build` and `jaxalign data import`: question pairs and test files on disk."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.cli.settings import chosen_tasks, out_folder, rendering, split_list
from jaxalign.data.build import build_examples, write_pairs
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.study import import_study
from jaxalign.data.tasks import parse_rows
from jaxalign.errors import InputError
from jaxalign.files import data_folder, local_path


def build(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the translation examples that the config describes to `config.out`, a .json file or a folder."""
    if paths:
        raise InputError(f"{paths[0]}: data build takes no files; it reads the train files of --config.data")
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
    return [pair for path in paths for pair in pairs_of_file(Path(path), config)]


def pairs_of_file(path: Path, config: ConfigDict) -> list[QuestionPair]:
    """The rows `config.rows` of one file."""
    pairs, rows = read_pairs([path], rendering(config)), parse_rows(config.rows)
    if rows.stop is not None and rows.stop > len(pairs):
        raise InputError(f"--config.rows={config.rows}: {path} has {len(pairs)} rows")
    return pairs[rows]


def import_clone(config: ConfigDict, paths: Sequence[str]) -> None:
    """Makes a data folder of a clone of the study's repository."""
    if len(paths) != 2:
        raise InputError("data import takes two arguments: the clone, and the folder to write")
    clone, out = Path(paths[0]), local_path(paths[1])
    import_study(clone, out)
    print(f"{out}: use it with --config.data={out}")
