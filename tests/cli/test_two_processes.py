"""The verbs that read a model, in two processes of four devices each: what eight devices in one process find."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.two_processes import end_of, start_two

pytestmark = pytest.mark.slow

JAXALIGN = ("-c", "import sys; from jaxalign.cli.main import main; sys.exit(main())")
CELLS = ("--config.languages=en,de", "--config.rows=0:4")
ATOL = 1e-5
"""The same float32 sums in another order."""


@pytest.fixture
def both(ok: Callable[..., str], model_folder: Path, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Runs a command in one process and in two; the folders that they wrote."""

    def call(verb: str, *flags: str) -> tuple[Path, Path]:
        alone, together = tmp_path / "alone", tmp_path / "together"
        command = (verb, f"--config.model={model_folder}", *flags)
        ok(*command, f"--config.out={alone}")
        codes, said = end_of(start_two(*JAXALIGN, *command, f"--config.out={together}"))
        assert codes == [0, 0], said
        return alone, together

    return call


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_label_scores(both):
    alone, together = both("evaluate", *CELLS)
    one, two = (lines_of(folder / "predictions.jsonl") for folder in (alone, together))
    assert len(one) == len(two) > 0
    for expected, found in zip(one, two, strict=True):
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=ATOL), key


def test_open_answers(both, tmp_path):
    pair = {"source": "Wer ist da?", "target": "Who is there?", "source_language": "de", "target_language": "en"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 3)
    flags = ("--config.tasks=translation", "--config.languages=de", f"--config.pairs={tmp_path / 'pairs.jsonl'}")
    alone, together = both("evaluate", *flags, "--config.generate.max_tokens=8")
    one, two = (json.loads((folder / "open_results.json").read_text())["open_cells"] for folder in (alone, together))
    assert one == two and len(one) == 1


def test_probes(both, ok, model_folder, tmp_path):
    selection = tmp_path / "selection"
    ok("probe", f"--config.model={model_folder}", *CELLS, "--config.probes=neurons", f"--config.out={selection}")
    ok("neurons", selection / "neuron_counts.npz", f"--config.out={selection}", "--config.neurons.top_rate=0.5")
    probes = "logit_lens,attribution,pca,geometry,neurons,masking,masked_accuracy"
    chosen = f"--config.neurons.selection={selection / 'selection.npz'}"
    alone, together = both("probe", *CELLS, f"--config.probes={probes}", chosen)
    files = sorted(file.name for file in alone.glob("*.npz"))
    assert files == sorted(file.name for file in together.glob("*.npz")) and len(files) == 7
    for name in files:
        with np.load(alone / name) as one, np.load(together / name) as two:
            assert set(one) == set(two)
            for key in one:
                if one[key].dtype.kind == "f":
                    np.testing.assert_allclose(two[key], one[key], atol=1e-4, rtol=1e-4, err_msg=f"{name}: {key}")
                else:
                    np.testing.assert_array_equal(two[key], one[key], err_msg=f"{name}: {key}")
