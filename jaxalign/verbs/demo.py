"""`jaxalign demo`: the whole path, from a baseline evaluation to a report."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.configuration import changed
from jaxalign.errors import InputError
from jaxalign.files import check_writable
from jaxalign.loading import with_adapter
from jaxalign.reporting.compare import compare
from jaxalign.reporting.text import accuracy_tables
from jaxalign.verbs.data import build_pairs
from jaxalign.verbs.evaluate import check_settings, evaluate_model
from jaxalign.verbs.export import export
from jaxalign.verbs.probe import probe_model, probe_settings
from jaxalign.verbs.report import report
from jaxalign.verbs.settings import EvaluationData, load_model, out_folder, split_list
from jaxalign.verbs.train import ready_to_tune, train_model

PROBED = "0:12"
"""Rows of each language that the probes read: enough to draw, and quick."""


def demo(config: ConfigDict, paths: Sequence[str]) -> None:
    """Evaluates, tunes, evaluates again, probes, reports and exports, in the folder `config.out`."""
    if config.stages:
        raise InputError("config.stages: demo tunes once; train runs several stages")
    started = time.monotonic()
    out = out_folder(config)
    before, run, after, adapter = (str(out / name) for name in ("before", "run", "after", "adapter"))

    def title(text: str) -> None:
        print(f"\n[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    data = EvaluationData(config)
    check_settings(config, data)
    probes = probe_settings(changed(config, out=before, rows=PROBED), data, split_list(config.probes))
    tuning = ready_to_tune(changed(config, out=run))
    pairs = build_pairs(config)
    check_writable(out)
    title(f"Loading the model: {config.model}")
    base = load_model(config)
    title(f"Before: {config.tasks} in {config.languages}, then what the layers hold")
    evaluate_model(changed(config, out=before), base, data)
    probe_model(probes, base)
    title(
        f"Tuning on questions translated from {config.build.sources} into {config.build.target}; no answers are shown"
    )
    train_model(tuning, base, pairs, [])
    title("After: the same rows again")
    tuned = with_adapter(base, Path(run))
    evaluate_model(changed(config, out=after, adapter=run), tuned, data)
    probe_model(replace(probes, config=changed(config, out=after, adapter=run, rows=PROBED)), tuned)
    title("Report and export")
    report(changed(config, out=str(out / "report.html")), [before, after])
    shutil.rmtree(adapter, ignore_errors=True)  # that of an earlier demo here: export replaces nothing
    export(changed(config, out=adapter), [run, before, after])
    title("Done. Accuracy before and after:")
    print(accuracy_tables(compare(Path(before), Path(after))))
    print(f"\nopen {out / 'report.html'}")
