"""lm-eval's `hf` model and ours at the same requests, each in a process of its own that waits for its turn.

Arguments: a way, the model folder, the work file, threads, batch size. Started by lm_eval_speed.py. Says {"ready": ...}
when the model is loaded; then answers each line that names a task with {"seconds": ..., "answers": ...}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from workers import answer, keep_to, peak_mib

WAYS = ("hf", "hf, batched", "jaxalign")


def language_model(way: str, folder: Path, threads: int, batch_size: int) -> LM:
    """The model of a way, in float32."""
    if way == "jaxalign":
        from jaxalign.lm_eval import JaxalignLM

        return JaxalignLM(path=str(folder), param_dtype="float32", batch_size=batch_size)
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(threads)
    return HFLM(str(folder), dtype="float32", device="cpu", batch_size=batch_size if way == "hf, batched" else 1)


def run(model: LM, task: dict[str, Any]) -> list[Any]:
    """The answers to a task's requests."""
    kind = task["type"]
    requests = [Instance(kind, {}, tuple(given), 0, metadata=("", 0, 1)) for given in task["arguments"]]
    return getattr(model, kind)(requests, disable_tqdm=True)


def main(way: str, folder: Path, work_file: Path, threads: int, batch_size: int) -> None:
    keep_to(threads)
    work = json.loads(work_file.read_text())
    model = language_model(way, folder, threads, batch_size)
    loaded, begun = peak_mib(), time.perf_counter()
    # Ours meets every shape once, which compiles; torch's first calls are slower than the rest.
    for task in work.values():
        run(model, task if way == "jaxalign" else {**task, "arguments": task["arguments"][:1]})
    answer({"ready": {"loaded_mib": loaded, "warm_up_seconds": time.perf_counter() - begun}})
    for line in sys.stdin:
        begun = time.perf_counter()
        answers = run(model, work[json.loads(line)])
        answer({"seconds": time.perf_counter() - begun, "answers": answers, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
