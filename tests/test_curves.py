"""Curves as TensorBoard's own reader and W&B's own records show them; a killed run's too."""

import json
import struct
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from jaxalign import log
from jaxalign.errors import InputError
from jaxalign.files import path_of, whole_folder
from jaxalign.log import CurvesConfig, MetricsLog

TENSORBOARD = CurvesConfig(tensorboard=True, wandb="")
WANDB = CurvesConfig(tensorboard=False, wandb="alignment")
Record: Any = wandb_internal_pb2.Record  # pyright: ignore[reportAttributeAccessIssue] - generated at run time
CONTINUED = {"loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)], "heldout_loss": [(0, 0.5), (2, 0.25)]}
"""What `begin_and_continue` leaves."""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def begin_and_continue(run, config):
    """Three steps, of which the third comes after the last checkpoint; then the third again and a fourth."""
    with pytest.raises(ZeroDivisionError), MetricsLog(run / "metrics.jsonl", -1, config, {"files": ["a.csv"]}) as log:
        log.write(0, heldout_loss=0.5)
        log.write(1, loss=1.0)
        log.write(2, loss=2.0)
        log.write(2, heldout_loss=0.25)
        log.write(3, loss=3.0)
        raise ZeroDivisionError
    with MetricsLog(run / "metrics.jsonl", 2, config, {"files": ["a.csv"]}) as log:
        log.write(3, loss=30.0)
        log.write(4, loss=40.0)


def shown_by_tensorboard(folder):
    reader = EventAccumulator(str(folder)).Reload()
    shown = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    return {tag: points for tag, points in shown.items() if points}


def wandb_records(folder):
    """W&B's file: 7 bytes, then LevelDB's log format: blocks of 32 KiB of (checksum, length, part of a record)."""
    (file,) = folder.glob("*.wandb")
    content, at, record = file.read_bytes(), 7, b""
    while at < len(content):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(record)
            record = b""


def shown_by_wandb(folder):
    points = {}
    for record in wandb_records(folder):
        numbers = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for name in numbers:
            if not name.startswith("_"):
                points.setdefault(name, []).append((int(numbers["_step"]), json.loads(numbers[name])))
    return points


def test_tensorboard_shows_a_continued_run_as_one_curve(tmp_path, monkeypatch):
    clock = iter(range(1_800_000_000, 1_900_000_000))
    monkeypatch.setattr("time.time", lambda: next(clock))  # the files' order is that of the seconds in their names
    begin_and_continue(tmp_path, TENSORBOARD)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert shown_by_tensorboard(tmp_path / "tensorboard") == CONTINUED


def test_a_run_begun_anew_begins_its_curve_anew(tmp_path, monkeypatch):
    clock = iter(range(1_800_000_000, 1_900_000_000))
    monkeypatch.setattr("time.time", lambda: next(clock))
    begin_and_continue(tmp_path, TENSORBOARD)
    with MetricsLog(tmp_path / "metrics.jsonl", -1, TENSORBOARD) as log:
        log.write(1, loss=7.0)
    assert shown_by_tensorboard(tmp_path / "tensorboard") == {"loss": [(1, 7.0)]}


def test_event_files_are_written_to_a_bucket(storage, tmp_path):
    run = path_of("gs://bucket/test_curves")
    with MetricsLog(run / "metrics.jsonl", -1, TENSORBOARD) as log:
        log.write(1, loss=1.0)
        log.upload()
        log.write(2, loss=2.0)
    with whole_folder(tmp_path / "fetched") as folder:
        for file in (run / "tensorboard").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    assert shown_by_tensorboard(tmp_path / "fetched") == {"loss": [(1, 1.0), (2, 2.0)]}


def test_rows_are_flushed_with_the_upload(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", -1, TENSORBOARD) as log:
        log.write(1, loss=1.0)
        log.upload()
        assert shown_by_tensorboard(tmp_path / "tensorboard") == {"loss": [(1, 1.0)]}


def test_wandb_offline_holds_a_continued_run_as_one_curve(tmp_path):
    run = tmp_path / "run"
    begin_and_continue(run, WANDB)
    wandb.teardown()  # as at the end of a process; W&B may still be writing when a run has finished
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert shown_by_wandb(folder) == CONTINUED
    (described,) = [record.run for record in wandb_records(folder) if record.WhichOneof("record_type") == "run"]
    assert described.project == "alignment" and described.display_name == "run"
    assert described.run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert ("files", '["a.csv"]') in [(item.key, item.value_json) for item in described.config.update]


def test_a_server_is_told_what_it_lacks(tmp_path, monkeypatch):
    calls, told = [], []

    def init(**settings):
        calls.append((settings["id"], settings["resume"]))

        def log(numbers, step):
            told.append((step, numbers))

        return SimpleNamespace(starting_step=0 if len(calls) == 1 else 2, log=log, finish=lambda exit_code: None)

    monkeypatch.setattr(wandb, "init", init)
    begin_and_continue(tmp_path, WANDB)
    assert calls[0] == calls[1] and calls[0][1] == "allow"
    assert told[5:] == [(2, {"loss": 2.0}), (2, {"heldout_loss": 0.25}), (3, {"loss": 30.0}), (4, {"loss": 40.0})]


def test_what_wandb_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **settings: (_ for _ in ()).throw(wandb.Error("no key")))
    with pytest.raises(InputError, match=r"log.wandb=alignment: no key; WANDB_MODE=offline"):
        MetricsLog(tmp_path / "metrics.jsonl", -1, WANDB)


def test_a_run_that_was_deleted_on_the_site_can_begin_another(tmp_path, monkeypatch):
    """As wandb 0.31.0 has it: after 90 s of tries, with advice that would only make them more."""
    calls, told = [], []

    def init(**settings):
        if settings["id"] in calls[:1]:
            raise wandb.Error(  # a CommError
                f"Timed out while retrying: HTTP 409: run me/alignment/{settings['id']} was previously created and "
                "deleted; try a new run id\nConsider increasing the init_timeout setting:\n  wandb.init(...)"
            )
        calls.append(settings["id"])

        def log(numbers, step):
            told.append((step, numbers))

        return SimpleNamespace(starting_step=0, log=log, finish=lambda exit_code: None)

    monkeypatch.setattr(wandb, "init", init)
    rows = tmp_path / "metrics.jsonl"
    with MetricsLog(rows, -1, WANDB) as log:
        log.write(1, loss=1.0)
    with pytest.raises(InputError) as refused:
        MetricsLog(rows, 1, WANDB)
    assert "run id; remove" in str(refused.value) and "init_timeout" not in str(refused.value)
    assert f"remove {tmp_path / 'wandb.json'}, and a new run on W&B gets all rows" in str(refused.value)
    (tmp_path / "wandb.json").unlink()
    told.clear()
    with MetricsLog(rows, 1, WANDB) as log:
        log.write(2, loss=2.0)
    assert told == [(1, {"loss": 1.0}), (2, {"loss": 2.0})] and len(set(calls)) == 2


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"log\.{package}=.*pip install 'jaxalign\[{package}\]'"):
        CurvesConfig(tensorboard=package == "tensorboard", wandb="alignment" if package == "wandb" else "")


def test_other_processes_open_none(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxalign.log.is_first_process", lambda: False)
    with MetricsLog(tmp_path / "metrics.jsonl", -1, CurvesConfig(tensorboard=True, wandb="alignment")) as log:
        log.write(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
