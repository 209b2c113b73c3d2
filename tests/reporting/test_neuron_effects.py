"""The headlines of maskings, transplants and the attribution, beside numbers worked out by hand."""

import numpy as np

from jaxalign.reporting.attribution import attribution_lines
from jaxalign.reporting.neuron_effects import effect_lines
from jaxalign.reporting.probe_files import Probe

LANGUAGES = ["en", "sw", "zh"]


def grid(own: float, spill: float, array: str = "log_perplexity_change", languages: list[str] = LANGUAGES) -> Probe:
    """Each language's neurons change it by `own` and the next language by `spill`; random ones do a tenth."""
    K = len(languages)
    change = np.zeros((3, K, K, 3))
    change[0, ..., 0] = own * np.eye(K) + spill * np.roll(np.eye(K), 1, axis=1)
    change[1] = change[0] / 10
    change[2, ..., 0] = change[0, ..., 0] - change[1, ..., 0]
    change[2, ..., 1], change[2, ..., 2] = change[2, ..., 0] - 0.25, change[2, ..., 0] + 0.5
    perplexity = np.array([[8.0] * K, [8.0 * np.exp(-0.75)] * K])
    return Probe({array: change, "perplexity": perplexity}, {"language": languages})


def test_one_run_has_its_values_with_the_interval_beyond_random_neurons():
    head, _, swahili, _, mean = effect_lines("masking", {"base": grid(0.5, -0.2)}, LANGUAGES)
    assert head[0] == "change of log perplexity (nats per token): base" and len(head) == 4
    assert swahili == ["sw Swahili", "+0.500", "−0.100", "+0.450 (+0.200 to +0.950)"]
    assert mean == ["mean (3 languages)", "+0.500", "−0.100", "+0.450"]


def test_two_runs_are_paired_by_language():
    runs = {
        "before": grid(-0.5, 0.0, "accuracy_change"),
        "after": grid(-0.25, 0.1, "accuracy_change", ["zh", "en"]),
    }
    head, english, chinese, _ = effect_lines("masked_accuracy", runs, ["en", "zh"])
    assert head[0] == "change of accuracy (percentage points): before → after"
    assert english[:3] == ["en English", "−50.0 → −25.0, +25.0", "0.0 → +10.0, +10.0"]
    assert chinese[3] == "−45.0 (−70.0 to +5.0) → −22.5 (−47.5 to +27.5), +22.5"


def test_other_languages_are_those_of_the_table():
    _, english, chinese, _ = effect_lines("masking", {"base": grid(0.5, -0.2)}, ["en", "zh"])
    # The neurons of English change Swahili, which is not among them; those of Chinese change English.
    assert (english[2], chinese[2]) == ("0.000", "−0.200")


def test_a_transplant_stands_beside_the_whole_tuning_and_one_language_beside_none():
    head, line = effect_lines("transplant", {"tuned": grid(-0.5, 0.0, languages=["en"])}, ["en"])
    assert head[-1] == "the whole tuning"
    assert line == ["en English", "−0.500", "", "−0.450 (−0.700 to +0.050)", "−0.750"]


def test_attribution_says_where_english_is_largest_and_what_its_own_language_has_at_the_output():
    mass = np.zeros((2, 3, 2, 3), np.float32)
    # Only the last position counts.
    mass[:, :, 0] = 0.9
    mass[:, :, 1] = [
        [[0.1, 0.2, 0.7], [0.5, 0.2, 0.3], [0.4, 0.1, 0.5]],
        [[0.3, 0.0, 0.7], [0.2, 0.1, 0.7], [0.1, 0.6, 0.3]],
    ]
    tokens = ["en", "sw", "undecidable"]
    before = Probe({"language_mass_mean": mass}, {"language": ["en", "sw"], "token_language": tokens})
    after = Probe({"language_mass_mean": mass[::-1, ::-1]}, {"language": ["sw", "en"], "token_language": tokens})
    _, english, swahili = attribution_lines({"before": before, "after": after}, ["en", "sw"])
    assert english == ["en English", "0.500 (layer 2) → 0.500 (layer 2), 0.000", ""]
    assert swahili[1:] == ["0.300 (layer 1) → 0.300 (layer 3), 0.000", "0.600 → 0.000, −0.600"]
    without = Probe(before.arrays, {"language": ["en", "th"], "token_language": ["x", "y", "undecidable"]})
    assert attribution_lines({"base": without}, ["en", "th"])[1:] == [["en English", "", ""], ["th Thai", "", ""]]
