"""How alike languages lie in each layer: their states of parallel prompts against the English ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.model.transformer import Decoder
from jaxalign.probing.capture import Capture, capture_languages, captured_layers
from jaxalign.probing.likeness import GEOMETRY_AXES, geometry_arrays, language_geometry
from jaxalign.probing.prompts import TASK, VARIANT, ProbeData
from jaxalign.probing.records import write_probe

ENGLISH = "en"
LEAST_ROWS = 3
"""CKA without one of them still needs two."""


def check_languages(languages: Sequence[str]) -> None:
    """Refuses languages that hold no pair to compare."""
    if ENGLISH not in languages or len(languages) < 2:
        raise InputError(
            f"geometry: languages {','.join(languages)}: others are compared with {ENGLISH}; name it and one more"
        )


def write_geometry(
    out: Path,
    decoder: Decoder,
    variables: Any,
    mesh: Mesh,
    data: ProbeData,
    languages: Sequence[str],
    capture: Capture,
    batch_size: int,
    description: Mapping[str, Any],
    on_rows: Callable[[int], object] = lambda rows: None,
) -> dict[str, Any]:
    """Compares every language with English: writes `out/geometry.npz` and, naming its axes, `out/geometry.json`.

    Args:
      languages: English and at least one other.
      capture: which layers, and which states of a prompt.
      description: what the JSON file says besides: model, adapter, config, versions.
      on_rows: told after each batch how many prompts it held.

    Returns:
      The content of the JSON file.
    """
    check_languages(languages)
    others = [language for language in languages if language != ENGLISH]
    # English first: of the others, one at a time is held.
    captured = capture_languages(decoder, variables, mesh, data, [ENGLISH, *others], capture, batch_size, on_rows)
    english = next(captured)
    if len(english.rows) < LEAST_ROWS:
        raise InputError(f"geometry: {len(english.rows)} rows of each language are too few; take at least {LEAST_ROWS}")
    arrays = geometry_arrays([language_geometry(each.states, english.states) for each in captured])
    document = {
        "axes": GEOMETRY_AXES,
        "layer": list(captured_layers(capture, decoder.config.layers)),
        "language": others,
        "row": english.rows,
        "bound": ["low", "high"],
        "position": str(capture.position),
        "compared_with": ENGLISH,
        "task": TASK.name,
        "variant": VARIANT,
        **description,
    }
    write_probe(out, "geometry", arrays, document)
    return document
