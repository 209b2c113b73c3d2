"""lm-eval's own command line with our model, on task files of this machine."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from lm_eval_tasks import write_tasks

from jaxalign.lm_eval import main

TASKS = "mini_emotion_de,mini_translation_de_en,mini_perplexity_en"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, limit=3)
    return folder


@pytest.fixture
def command(tasks: Path) -> Command:
    """Runs `python -m jaxalign.lm_eval` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("sys.argv", ["jaxalign.lm_eval", *map(str, arguments), "--include_path", str(tasks)])
            # To read lm-eval's own 13,000 task files takes ten seconds.
            patch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
            code = main()
        return code, out.getvalue(), err.getvalue()

    return call


def results_in(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics of each task, answers of each task) as lm-eval has written them."""
    [file] = folder.rglob("results_*.json")
    samples = {
        path.name.partition("samples_")[2].rpartition("_")[0]: [
            json.loads(line)["resps"] for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in folder.rglob("samples_*.jsonl")
    }
    return json.loads(file.read_text(encoding="utf-8"))["results"], samples


def test_the_command_line_gives_what_hf_gives(command: Command, folders: dict[str, Path], tmp_path: Path):
    folder = folders["qwen2"]
    results = {}
    for name, arguments in (("jaxalign", f"path={folder}"), ("hf", f"pretrained={folder},dtype=float32")):
        out = tmp_path / name
        code, said, err = command(
            *("--model", name, "--model_args", arguments, "--tasks", TASKS, "--batch_size", "4", "--device", "cpu"),
            *("--output_path", out, "--log_samples", "--gen_kwargs", "max_gen_toks=8"),
        )
        assert code == 0, err
        assert "mini_emotion_de" in said
        results[name] = results_in(out)
    ours, theirs = results["jaxalign"], results["hf"]
    assert ours[0]["mini_emotion_de"]["acc,none"] == theirs[0]["mini_emotion_de"]["acc,none"]
    assert ours[0]["mini_perplexity_en"]["bits_per_byte,none"] == pytest.approx(
        theirs[0]["mini_perplexity_en"]["bits_per_byte,none"], rel=1e-5
    )
    assert ours[1]["mini_translation_de_en"] == theirs[1]["mini_translation_de_en"]
    assert len(ours[1]) == 3 and len(ours[1]["mini_translation_de_en"]) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("path=nowhere", "nowhere"),
        ("path=nowhere,revision=main", "revision"),
        ("path=nowhere,batch_size=4", "--batch_size"),
        ("dtype=float32", "path="),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: str, named: str):
    code, _, err = command("--model", "jaxalign", "--model_args", arguments, "--tasks", "mini_emotion_de")
    ours = [line for line in err.splitlines() if line.startswith("jaxalign: ")]
    assert code == 2 and len(ours) == 1 and named in ours[0] and "Traceback" not in err
    assert err.splitlines()[-1] == ours[0]


def test_what_the_system_refuses_is_one_line(command: Command, folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders["qwen2"], tmp_path / "model")
    (tmp_path / "model/config.json").unlink()
    (tmp_path / "model/config.json").symlink_to("config.json")
    code, _, err = command(
        "--model", "jaxalign", "--model_args", f"path={tmp_path / 'model'}", "--tasks", "mini_emotion_de"
    )
    assert code == 2 and "symbolic link" in err.splitlines()[-1] and "Traceback" not in err


def test_without_the_extra_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match="2"):
        run_path("jaxalign/lm_eval.py", run_name="__main__")
    assert capsys.readouterr().err == "jaxalign: lm-eval is not installed: pip install 'jaxalign[lm-eval]'\n"


PROCESS = """
import sys

class Without:  # None in sys.modules would be a torch that is there, to datasets
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *where):
        return None if name.partition(".")[0] in ("torch", "peft") else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Without, sys.meta_path)
from jaxalign.lm_eval import main

sys.exit(main())
"""


@pytest.mark.slow
def test_no_torch_is_needed(folders: dict[str, Path], tasks: Path, tmp_path: Path):
    """Neither by us nor by lm-eval. datasets looks for torch's metadata, and is told not to."""
    arguments = ("--model", "jaxalign", "--model_args", f"path={folders['qwen2']}", "--tasks", TASKS)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments, "--include_path", tasks, "--output_path", tmp_path / "out"],
        env=os.environ
        | {
            "USE_TORCH": "0",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(results_in(tmp_path / "out")[0]) == set(TASKS.split(","))
