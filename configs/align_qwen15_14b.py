"""The study's run with Qwen1.5-14B: question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_qwen15_14b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:2x4, eight chips of a TPU v5e. Nothing of this run has been measured. The study
reports, for emotion questions, a mean accuracy over 20 languages of 92.25 after and 86.27 before (arXiv 2405.13816v1,
table 2).
Plan: `jaxalign plan --config=align_qwen15_14b --config.model=qwen1.5-14b --config.topology=v5e:2x4`:
fits, 12.81 of 15.75 GiB a device for 16 rows of 2,048 positions; at peak rates at least 1,726 ms a step
(compute).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("align_mistral_7b")
    config.template = "qwen"
    return config
