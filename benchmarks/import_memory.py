"""Peak memory of an import: `python benchmarks/import_memory.py --out FILE.json`.

Writes a checkpoint of random bits (bfloat16, shards of a quarter of a gigabyte) for each size, and imports it in a
process of its own, as bfloat16. The ceiling: the bytes that are kept, the resident size after importing jax, the
largest leaf once more, and 256 MiB. The kernel counts pages of mapped files as resident, so these are in the peak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers import peak_resident_bytes

GIGABYTE = 10**9
SHARD_BYTES = GIGABYTE // 4
ALLOWANCE = 256 * 2**20
WIDTHS = {1: 1024, 4: 2048}
"""Gigabytes -> width of the model. Its vocabulary is large and its head its own, so leaves of every kind are large."""


def model_config(gigabytes: int) -> Any:
    """A Llama of about so many bytes in bfloat16."""
    from jaxalign.model.config import ModelConfig

    width, vocabulary, head_dim = WIDTHS[gigabytes], 128_256, 64
    mlp, heads = 11 * width // 4, width // head_dim
    per_layer = width * width * 5 // 2 + 3 * width * mlp
    return ModelConfig(
        family="llama",
        vocab_size=vocabulary,
        width=width,
        layers=(gigabytes * GIGABYTE // 2 - 2 * vocabulary * width) // per_layer,
        heads=heads,
        kv_heads=heads // 4,
        head_dim=head_dim,
        mlp_dim=mlp,
        norm_eps=1e-5,
        query_scale=head_dim**-0.5,
        rope_base=500_000.0,
        max_positions=8192,
        tied_head=False,
    )


def write_checkpoint(folder: Path, config: Any) -> int:
    """A folder that load_params reads; returns the bytes of its tensors."""
    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file

    from jaxalign.files import write_json
    from jaxalign.model.config import config_to_hf
    from jaxalign.model.weights import weight_table

    bits = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for weight in weight_table(config):
            for layer in range(config.layers if weight.stacked else 1):
                prefix = "" if weight.path.startswith("lm_head") else "model."
                numbers = bits.integers(0, 2**16, weight.stored_shape, np.uint16)
                yield prefix + weight.name(layer), numbers.view(jnp.bfloat16)

    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    written = 0

    def close_shard() -> None:
        name = f"model-{len(set(weight_map.values())):05}.safetensors"
        save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors():
        shard[name] = tensor
        written += tensor.nbytes
        if sum(held.nbytes for held in shard.values()) > SHARD_BYTES:
            close_shard()
    close_shard()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_json(folder / "config.json", config_to_hf(config))
    return written


def import_checkpoint(folder: Path) -> dict[str, int]:
    """Imports a folder in this process and says what memory that took."""
    import jax

    jax.devices()
    after_jax = peak_resident_bytes()
    from jaxalign.model.config import read_config
    from jaxalign.model.weights import load_params, place_on
    from jaxalign.runtime import make_mesh

    before = peak_resident_bytes()
    params = load_params(folder, read_config(folder), "bfloat16", place_on(make_mesh()))
    leaves = jax.block_until_ready(jax.tree.leaves(params))
    return {
        "after_importing_jax": after_jax,
        "after_importing_jaxalign": before,
        "kept": sum(leaf.nbytes for leaf in leaves),
        "largest_leaf": max(leaf.nbytes for leaf in leaves),
        "peak": peak_resident_bytes(),
    }


def measure(gigabytes: int) -> dict[str, Any]:
    """One size: the bytes, the peak, and the ceiling that it stays under or not."""
    with tempfile.TemporaryDirectory() as folder:
        stored = write_checkpoint(Path(folder), model_config(gigabytes))
        child = subprocess.run(
            [sys.executable, __file__, "--folder", folder], capture_output=True, text=True, check=False
        )
    if child.returncode:
        raise SystemExit(child.stderr)
    row = json.loads(child.stdout.splitlines()[-1])
    ceiling = row["kept"] + row["after_importing_jax"] + row["largest_leaf"] + ALLOWANCE
    return {"gigabytes": gigabytes, "stored": stored, **row, "ceiling": ceiling, "under": row["peak"] <= ceiling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=int, nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, help="import this folder here, and print what that took")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(import_checkpoint(options.folder)))
        return
    rows = [measure(gigabytes) for gigabytes in options.gigabytes]
    for row in rows:
        print(
            ", ".join(f"{name} {number / 2**20:,.0f} MiB" for name, number in row.items() if number > 100), row["under"]
        )
    if options.out:
        from jaxalign.files import write_json

        write_json(options.out, rows)


if __name__ == "__main__":
    main()
