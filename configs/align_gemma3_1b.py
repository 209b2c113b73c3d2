"""The study's recipe with Gemma 3 1B (text, base): question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_gemma3_1b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:1x1, one chip of a TPU v5e. Nothing of this run has been measured.
Plan: `jaxalign plan --config=align_gemma3_1b --config.model=gemma-3-1b --config.topology=v5e:1x1`:
fits, 9.53 of 15.75 GiB a device for 16 rows of 2,048 positions; at peak rates at least 1,244 ms a step
(compute).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("align_mistral_7b")
    config.template = "none"  # a base model that the study did not tune
    return config
