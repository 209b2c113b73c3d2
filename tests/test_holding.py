"""One command at a time in a folder; what a holder that was killed leaves behind; on this machine and in a bucket."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxalign import holding
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, path_of
from jaxalign.holding import check_held, held

HOLD = """
import sys, time
from jaxalign.files import path_of
from jaxalign.holding import held
with held(path_of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path, storage) -> AnyPath:
    return tmp_path / "out" if request.param == "local" else path_of(f"gs://bucket/{tmp_path.name}")


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    """A holder elsewhere is given up after a second."""
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(holding, "SILENT_SECONDS", 1.0)


@pytest.fixture
def elsewhere(folder) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def record(folder: AnyPath) -> dict[str, Any]:
    return json.loads((folder / "in_use.json").read_bytes())


def changed(folder: AnyPath, **values: Any) -> None:
    """The file of the folder with other values in it."""
    content = json.dumps(record(folder) | values).encode()
    if isinstance(folder, Path):
        with (folder / "in_use.json").open("r+b") as file:  # in place, as a holder writes
            file.write(content)
            file.truncate()
    else:
        (folder / "in_use.json").write_bytes(content)


def test_a_second_process_is_refused_and_told_who_is_there(folder, elsewhere):
    with (
        pytest.raises(InputError, match=rf"process {elsewhere.pid} on .* \(since 20.*\) is at work there"),
        held(folder),
    ):
        pass
    assert record(folder)["process"] == elsewhere.pid


def test_a_killed_holder_on_this_machine_stops_nobody(folder, elsewhere, monkeypatch):
    monkeypatch.setattr(holding, "SILENT_SECONDS", 1e9)  # nothing is waited for
    elsewhere.kill()
    elsewhere.wait()
    with held(folder):
        assert record(folder)["process"] == os.getpid()
    assert not (folder / "in_use.json").exists()


def test_a_silent_holder_on_another_machine_is_given_up(folder, elsewhere, capsys):
    elsewhere.kill()
    elsewhere.wait()
    changed(folder, host="far", lock="another boot")
    started = time.monotonic()
    with held(folder):
        assert time.monotonic() - started >= 1
        assert record(folder)["process"] == os.getpid()
    assert f"left by process {elsewhere.pid} on far" in capsys.readouterr().err


def test_a_living_holder_on_another_machine_is_not(folder, elsewhere, monkeypatch):
    monkeypatch.setattr(holding, "SILENT_SECONDS", 60.0)
    elsewhere.kill()
    elsewhere.wait()
    changed(folder, host="far", lock="another boot")
    beat = threading.Timer(0.5, changed, [folder], {"beat": 1})
    beat.start()
    with pytest.raises(InputError, match=r"on far .* is at work there"), held(folder):
        pass
    beat.join()
    assert record(folder)["host"] == "far"


def test_a_holder_gives_signs_of_life_and_notices_that_it_was_taken_for_dead(folder):
    with held(folder):
        before = record(folder)["beat"]
        wait_for(lambda: record(folder)["beat"] > before + 1)
        check_held()

        def noticed() -> bool:
            changed(folder, token="another's", host="far")  # again where a sign of life was being written
            time.sleep(0.1)
            return bool(holding.lost)

        wait_for(noticed)
        with pytest.raises(InputError, match=r"on far .* has taken it over"):
            check_held()
    check_held()
    assert record(folder)["token"] == "another's"  # left alone


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_within_the_block_the_same_thread_may_ask_again(tmp_path):
    refused = []

    def other() -> None:
        try:
            with held(tmp_path):
                pass
        except InputError as error:
            refused.append(str(error))

    with held(tmp_path):
        with held(tmp_path):
            pass
        assert record(tmp_path)["process"] == os.getpid()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another thread" in refused[0]


def test_nothing_is_left(tmp_path):
    with held(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("garbage", ["{", "[" * 100_000, '"\\ud800', '{"token": 1}' + " " * 5000 + "]", "\0" * 4096])
def test_garbage_in_the_file_is_a_holder_that_may_live(tmp_path, capsys, garbage):
    """And then nothing of it is left that the new holder would take for another's."""
    (tmp_path / "in_use.json").write_text(garbage)
    with held(tmp_path):
        assert record(tmp_path)["process"] == os.getpid()
        wait_for(lambda: record(tmp_path)["beat"] > 0)
        check_held()
    assert "left by another process" in capsys.readouterr().err
    assert not (tmp_path / "in_use.json").exists()


def test_a_host_s_name_does_not_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "in_use.json").write_text(json.dumps({"host": "\x1b[2Ja\u202eb\n", "process": 7, "since": None}))
    with held(tmp_path):
        pass
    assert "left by process 7 on [2Jab (since None)" in capsys.readouterr().err


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("all of it")
    (tmp_path / "in_use.json").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="nothing can be written there"), held(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "all of it"


def test_a_copied_folder_is_free_after_a_while(tmp_path, elsewhere, folder):
    """The file was copied with it, and nobody gives signs of life there."""
    if isinstance(folder, Path):
        shutil.copytree(folder, tmp_path / "copy")
        with held(tmp_path / "copy"):
            assert record(tmp_path / "copy")["process"] == os.getpid()
        assert record(folder)["process"] == elsewhere.pid


@pytest.mark.parametrize("place", ["file/below", "file", "long" * 100])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="nothing can be written there"), held(tmp_path / place):
        pass
