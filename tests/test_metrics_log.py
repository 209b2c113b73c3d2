import json

import pytest

from jaxalign.files import path_of
from jaxalign.log import MetricsLog, Progress


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_is_on_disk_when_written(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path, keep_through=-1) as log:
        log.write(1, loss=2.5, tokens=7)
        assert rows(path) == [{"step": 1, "loss": 2.5, "tokens": 7}]


def test_rows_past_the_restored_step_and_a_cut_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, keep_through=-1) as log:
        for step in (0, 1, 2, 3):
            log.write(step, loss=float(step))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricsLog(path, keep_through=2) as log:
        log.write(3, loss=30.0)
    assert [(row["step"], row["loss"]) for row in rows(path)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_new_run_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    with MetricsLog(path, keep_through=-1):
        pass
    assert rows(path) == []


def test_the_file_is_closed_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), MetricsLog(tmp_path / "metrics.jsonl", keep_through=-1) as log:
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        log.write(1)


def test_rows_in_a_bucket_go_up_all_at_once(storage, monkeypatch):
    path = path_of("gs://bucket/test_metrics_log/metrics.jsonl")
    with MetricsLog(path, keep_through=-1) as log:
        log.write(1, loss=1.0)
        assert rows(path) == []
        log.upload()
        assert [row["step"] for row in rows(path)] == [1]
        log.write(2, loss=2.0)
        log.write(3, loss=3.0)
        assert [row["step"] for row in rows(path)] == [1]
    assert [row["step"] for row in rows(path)] == [1, 2, 3]
    monkeypatch.setattr("jaxalign.log.UPLOAD_SECONDS", 0.0)
    with MetricsLog(path, keep_through=2) as log:
        log.write(3, loss=30.0)
        assert [(row["step"], row["loss"]) for row in rows(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_bar_shows_steps_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(total=40, done=10) as progress:
        for _ in range(2):
            progress.advance(loss=1.25, tokens=600.0, seconds=0.5)
    shown = capsys.readouterr().err
    assert "step 10/40" in shown and "left" in shown
    assert "step 12/40" in shown and "loss 1.2500, 1,200 target tokens/s" in shown
