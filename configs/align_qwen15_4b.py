"""The study's run with Qwen1.5-4B: question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_qwen15_4b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:2x2, four chips of a TPU v5e. Nothing of this run has been measured. The study
reports, for emotion questions, a mean accuracy over 20 languages of 82.64 after and 79.52 before (arXiv 2405.13816v1,
table 2).
Plan: `jaxalign plan --config=align_qwen15_4b --config.model=qwen1.5-4b --config.topology=v5e:2x2`:
fits, 10.13 of 15.75 GiB a device for 16 rows of 2,048 positions; at peak rates at least 1,232 ms a step
(memory).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("align_mistral_7b")
    config.template = "qwen"
    return config
