"""The independent path of the `verify` extra: an exported folder as transformers and peft read it, run by torch.

The one file of the package that imports them, and it does so only when asked: training and evaluation need none.
"""

import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGES = ("torch", "peft")


class Independent(NamedTuple):
    """What the other libraries make of a folder: logits float32 [B, T, V], and the facts that they run it with."""

    logits: np.ndarray
    tied_head: bool
    scale: float | None
    """What peft multiplies A B with; None without an adapter."""
    versions: dict[str, str]


def is_installed() -> bool:
    """Whether the `verify` extra is."""
    return all(find_spec(name) is not None for name in PACKAGES)


def independent_run(model: Path, adapter: Path | None, tokens: np.ndarray) -> Independent:
    """The model folder, with the PEFT folder on it if there is one, applied to tokens int [B, T], in float32."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    scale = None
    if adapter is not None:
        import peft
        from peft.tuners.lora import LoraLayer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, not the folder
            network = peft.PeftModel.from_pretrained(network, str(adapter), local_files_only=True)
        scales = {layer.scaling["default"] for layer in network.modules() if isinstance(layer, LoraLayer)}
        # Several would be patterns, which our reader refuses.
        (scale,) = scales
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    names = ("transformers", *PACKAGES) if adapter is not None else ("transformers", "torch")
    return Independent(logits, tied, scale, {name: metadata.version(name) for name in names})
