"""Ways to probe the same prompts, each in a process of its own that waits for its turn.

Arguments: a way, a probe, the model folder, the work file, threads, batch size. Started by probe.py. Says
{"ready": ...} when the model is loaded; then answers each line with {"seconds": ..., "numbers": ...}.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from workers import answer, keep_to, peak_mib, reset_peak, torch_model

Cell = dict[str, Any]
"""language; prompts: token ids; label_sets: candidate ids."""
Way = Callable[[Cell], np.ndarray]
"""What a probe finds in each prompt, [prompts, ...]: the lens [L, labels + entropy in bits], states [L + 1, D]; or in
all of them together: how often each neuron's gate is positive [L, F]."""

WAYS = ("study", "mended", "jaxalign")
PROBES = ("lens", "states", "neurons")


def study(model: Any, probe: str) -> Way:
    """One prompt at a time; the lens with final norm and head on every position of every layer, as the study has it."""
    import torch

    def lens(ids: Any, label_sets: list[list[int]]) -> Any:
        with block_outputs(model) as outputs:
            model.model(ids, use_cache=False)
        logits = model.lm_head(model.model.norm(torch.stack(outputs)))  # [L, 1, T, V]
        return lens_numbers(logits[:, 0, -1], label_sets)

    def count(ids: Any) -> Any:
        with gates(model) as found:
            model.model(ids, use_cache=False)
        return torch.stack([(gate[0] > 0).sum(dim=0) for gate in found])

    def run(cell: Cell) -> np.ndarray:
        with torch.inference_mode():
            prompts = [torch.tensor([prompt]) for prompt in cell["prompts"]]
            if probe == "neurons":
                return np.sum([count(ids).numpy() for ids in prompts], axis=0)
            if probe == "lens":
                return np.stack([lens(ids, cell["label_sets"]).numpy() for ids in prompts])
            states = (model.model(ids, use_cache=False, output_hidden_states=True).hidden_states for ids in prompts)
            return np.stack([torch.stack(of_prompt)[:, 0].mean(dim=1).numpy() for of_prompt in states])

    return run


def mended(model: Any, probe: str, size: int) -> Way:
    """Batches of prompts of like length, padded on the right; of the lens's positions the last alone."""
    import torch

    def run_batch(prompts: list[list[int]], label_sets: list[list[int]]) -> Any:
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        if probe == "neurons":
            with gates(model) as found:
                model.model(ids, attention_mask=mask, use_cache=False)
            return torch.stack([((gate > 0) & mask[:, :, None].bool()).sum(dim=(0, 1)) for gate in found])
        if probe == "states":
            output = model.model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            states = torch.stack(output.hidden_states)  # [L + 1, B, T, D]
            return ((states * mask[:, :, None]).sum(dim=2) / lengths[:, None]).transpose(0, 1)
        with block_outputs(model, lambda hidden: hidden[torch.arange(len(prompts)), lengths - 1]) as outputs:
            model.model(ids, attention_mask=mask, use_cache=False)
        layers = [lens_numbers(model.lm_head(model.model.norm(hidden)), label_sets) for hidden in outputs]
        return torch.stack(layers, dim=1)

    def run(cell: Cell) -> np.ndarray:
        prompts: list[list[int]] = cell["prompts"]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with torch.inference_mode():
            parts = [
                run_batch([prompts[i] for i in order[first : first + size]], cell["label_sets"]).numpy()
                for first in range(0, len(order), size)
            ]
        return np.sum(parts, axis=0) if probe == "neurons" else np.concatenate(parts)[np.argsort(order)]

    return run


@contextmanager
def gates(model: Any) -> Iterator[list[Any]]:
    """Each layer's gate before its activation, [B, T, F], filled in by the next forward pass."""
    found: list[Any] = []
    hooks = [
        block.mlp.gate_proj.register_forward_hook(lambda module, inputs, output: found.append(output))
        for block in model.model.layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def block_outputs(model: Any, kept: Callable[[Any], Any] = lambda hidden: hidden) -> Iterator[list[Any]]:
    """What `kept` takes of the residual after each block, filled in by the next forward pass."""
    found: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found.append(kept(output[0] if isinstance(output, tuple) else output))

    hooks = [block.register_forward_hook(keep) for block in model.model.layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def lens_numbers(logits: Any, label_sets: list[list[int]]) -> Any:
    """Masses and entropy in bits, [..., labels + 1], of logits [..., V]."""
    import torch

    probabilities = logits.float().softmax(-1)
    masses = [probabilities[..., ids].sum(-1) for ids in label_sets]
    entropy = torch.special.entr(probabilities).sum(-1) / np.log(2.0)
    return torch.stack([*masses, entropy], dim=-1)


def ours(folder: Path, probe: str, size: int) -> Way:
    """jaxalign's probes, compiled programs kept as its commands keep them."""
    import jax.numpy as jnp

    from jaxalign import runtime
    from jaxalign.model.config import read_config
    from jaxalign.model.ragged import Runner, shared_length
    from jaxalign.model.readout import head_gram, pad_label_sets
    from jaxalign.model.transformer import Decoder
    from jaxalign.model.weights import load_params, place_on
    from jaxalign.probing.capture import capture_batch, run_shared_text
    from jaxalign.probing.logit_lens import lens_batch
    from jaxalign.probing.neurons import count_batch

    runtime.start()
    config, mesh = read_config(folder), runtime.make_mesh(1, -1, 1)
    variables = {"params": load_params(folder, config, jnp.float32, place_on(mesh))}
    decoder = Decoder(config)
    runner = Runner(decoder, variables, mesh, size)
    if probe == "states":
        wanted = {"layers": tuple(range(config.layers + 1)), "position": "prompt_mean"}

        def run_states(cell: Cell) -> np.ndarray:
            prompts = cell["prompts"]
            shared = shared_length(prompts)
            text = runner.run_prefix(variables, prompts[0][:shared], run_shared_text)
            rests = [prompt[shared:] for prompt in prompts]
            return runner(capture_batch, variables, rests, text, np.zeros(0, np.int32), **wanted)

        return run_states
    if probe == "neurons":
        return lambda cell: np.sum(
            [active for _, (active, _) in runner.batches(count_batch, variables, cell["prompts"])], axis=0
        )
    # As the probe does, once for all languages; and not before memory is measured.
    gram = cache(partial(head_gram, decoder, variables))

    def run(cell: Cell) -> np.ndarray:
        prompts = cell["prompts"]
        shared = shared_length(prompts)
        prefix = runner.run_prefix(variables, prompts[0][:shared])
        rests, labels = [prompt[shared:] for prompt in prompts], pad_label_sets(cell["label_sets"])
        masses, entropy, *_ = runner(lens_batch, variables, rests, prefix, labels, gram())
        return np.concatenate([masses[:, :, : len(cell["label_sets"])], entropy[:, :, None]], axis=2)

    return run


def main(way: str, probe: str, folder: Path, work_file: Path, threads: int, size: int) -> None:
    keep_to(threads)
    cells = json.loads(work_file.read_text())
    if way == "jaxalign":
        run = ours(folder, probe, size)
    else:
        model = torch_model(folder, threads)
        run = study(model, probe) if way == "study" else mended(model, probe, size)
    loaded, begun = reset_peak(), time.perf_counter()
    # Ours meets every shape once, which compiles or loads it; torch's first calls are slower than the rest.
    for cell in cells if way == "jaxalign" else cells[:1]:
        run(cell if way == "jaxalign" else {**cell, "prompts": cell["prompts"][:2]})
    warmed = {"warm_up_seconds": time.perf_counter() - begun, "warm_up_peak_mib": peak_mib()}
    answer({"ready": {"loaded_mib": loaded, **warmed}})
    for _ in sys.stdin:
        begun = time.perf_counter()
        numbers = [run(cell) for cell in cells]
        seconds = time.perf_counter() - begun
        file = work_file.with_name(f"{way}_{probe}.npz")
        np.savez(file, allow_pickle=False, **{cell["language"]: n for cell, n in zip(cells, numbers, strict=True)})
        answer({"seconds": seconds, "numbers": str(file), "peak_mib": peak_mib()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
