"""SmolLM2 through lm-eval, its `hf` model beside ours: eight local tasks of all types of request, in two languages."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_tasks import tasks, write_tasks

from jaxalign.lm_eval import JaxalignLM
from tests.training.tiny_runs import mesh_of

pytestmark = pytest.mark.real_weights

DOCUMENTS = 4
RTOL = 1e-4
CHOICES = [name for name in tasks() if "emotion" in name or "snli" in name]


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """What the model said to each document's requests."""
    return [sample["resps"] for sample in results["samples"][task]]


def log_likelihoods(results: dict[str, Any], task: str) -> list[float]:
    """Those of every request of a task, in the documents' order."""
    found = [request[0] for document in answers(results, task) for request in document]
    return [one if isinstance(one, float) else one[0] for one in found]


def greedy(results: dict[str, Any], task: str) -> list[bool]:
    """Which continuations were called greedy."""
    return [request[0][1] for document in answers(results, task) for request in document]


def apart(found: list[float], expected: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What lm-eval says of all tasks with each model."""
    if "JAXALIGN_MODELS" not in os.environ:
        pytest.skip("needs JAXALIGN_MODELS, a folder that holds smollm2/")
    folder, model = tmp_path_factory.mktemp("tasks"), str(Path(os.environ["JAXALIGN_MODELS"]) / "smollm2")
    write_tasks(folder, DOCUMENTS)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxalign.runtime.make_mesh", lambda *sizes: mesh_of())
        ours = JaxalignLM(path=model, param_dtype="float32", batch_size=8)
    hf = HFLM(model, dtype="float32", device="cpu")

    def evaluated(one: LM, names: Iterable[str]) -> dict[str, Any]:
        return dict(simple_evaluate(one, tasks=list(names), task_manager=manager, log_samples=True) or {})

    found = {"jaxalign": evaluated(ours, tasks()), "hf": evaluated(hf, tasks())}
    # In float32, torch's log_softmax over 49,152 logits is 2.2e-5 too near to zero, whatever they are. This is a
    # setting of `hf` (softmax_dtype=); the model goes on in float32.
    hf.softmax_dtype = torch.float64
    return found | {"hf, softmax in float64": evaluated(hf, CHOICES)}


@pytest.mark.parametrize("task", CHOICES)
def test_choices_are_those_of_hf(results: dict[str, dict[str, Any]], task: str):
    ours, theirs = results["jaxalign"], results["hf"]
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"][task][metric] == theirs["results"][task][metric]
    assert greedy(ours, task) == greedy(theirs, task)
    found, expected = log_likelihoods(ours, task), log_likelihoods(theirs, task)
    assert sum(found) == pytest.approx(sum(expected), rel=RTOL)
    closer = log_likelihoods(results["hf, softmax in float64"], task)
    assert found == pytest.approx(closer, rel=RTOL)
    print(f"{task}: accuracy {ours['results'][task]['acc,none']}, {len(found)} requests; {apart(found, expected):.1e}")
    print(f"apart at most, {apart(found, closer):.1e} from a softmax in float64")


@pytest.mark.parametrize("task", [name for name in tasks() if "translation" in name])
def test_texts_are_those_of_hf(results: dict[str, dict[str, Any]], task: str):
    ours, theirs = results["jaxalign"], results["hf"]
    assert answers(ours, task) == answers(theirs, task) and len(answers(ours, task)) == DOCUMENTS
    assert ours["results"][task] == theirs["results"][task]
    print(f"{task}: {answers(ours, task)}")


@pytest.mark.parametrize("task", [name for name in tasks() if "perplexity" in name])
def test_perplexities_are_those_of_hf(results: dict[str, dict[str, Any]], task: str):
    ours, theirs = results["jaxalign"], results["hf"]
    found, expected = log_likelihoods(ours, task), log_likelihoods(theirs, task)
    assert found == pytest.approx(expected, rel=RTOL) and sum(found) == pytest.approx(sum(expected), rel=RTOL)
    for metric in ("byte_perplexity,none", "bits_per_byte,none"):
        assert ours["results"][task][metric] == pytest.approx(theirs["results"][task][metric], rel=RTOL)
    print(f"{task}: {sum(found):.3f} nats over {len(found)} texts, {apart(found, expected):.1e} apart at most")
