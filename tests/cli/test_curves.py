"""The curves of a training command, against its metrics.jsonl."""

import json

import numpy as np

from tests.test_curves import shown_by_tensorboard


def test_tensorboard_shows_the_rows_of_metrics(ok, model_folder, tmp_path):
    run = tmp_path / "run"
    command = ("train", "--config.tasks=paws", "--config.build.sources=de", "--config.steps=3", "--config.log_every=1")
    ok(*command, "--config.log.tensorboard=true", f"--config.model={model_folder}", f"--config.out={run}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = shown_by_tensorboard(run / "tensorboard")
    assert [step for step, _ in shown["loss"]] == [1, 2, 3]
    for name, points in shown.items():
        assert points == [(row["step"], float(np.float32(row[name]))) for row in rows if name in row]
