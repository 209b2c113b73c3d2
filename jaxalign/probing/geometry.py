"""How alike languages lie in each layer: their states of parallel prompts against the English ones."""

from collections.abc import Sequence
from typing import Any

from jaxalign.errors import InputError
from jaxalign.probing.capture import Capture, capture_languages, captured_layers
from jaxalign.probing.likeness import GEOMETRY_AXES, geometry_arrays, language_geometry
from jaxalign.probing.prompts import TASK, VARIANT
from jaxalign.probing.records import write_probe
from jaxalign.probing.run import ProbeRun

ENGLISH = "en"
LEAST_ROWS = 3
"""CKA without one of them still needs two."""


def check_languages(languages: Sequence[str]) -> None:
    """Refuses languages that hold no pair to compare."""
    if ENGLISH not in languages or len(languages) < 2:
        raise InputError(
            f"geometry: languages {','.join(languages)}: others are compared with {ENGLISH}; name it and one more"
        )


def write_geometry(run: ProbeRun, capture: Capture) -> dict[str, Any]:
    """Compares every language with English; writes `geometry.npz` and, naming its axes, `geometry.json`, to `run.out`.

    Args:
      run: its languages are English and at least one other.
      capture: which layers, and which states of a prompt.

    Returns:
      The content of the JSON file.
    """
    check_languages(run.languages)
    others = [language for language in run.languages if language != ENGLISH]
    # English first: of the others, one at a time is held.
    captured = capture_languages(run, capture, [ENGLISH, *others])
    english = next(captured)
    if len(english.rows) < LEAST_ROWS:
        raise InputError(f"geometry: {len(english.rows)} rows of each language are too few; take at least {LEAST_ROWS}")
    arrays = geometry_arrays([language_geometry(each.states, english.states) for each in captured])
    document = {
        "axes": GEOMETRY_AXES,
        "layer": list(captured_layers(capture, run.decoder.config.layers)),
        "language": others,
        "row": english.rows,
        "bound": ["low", "high"],
        "position": str(capture.position),
        "compared_with": ENGLISH,
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "geometry", arrays, document)
    return document
