"""The study's run with Qwen1.5-1.8B: question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_qwen15_1_8b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:1x1, one chip of a TPU v5e. Nothing of this run has been measured. The study
reports, for emotion questions, a mean accuracy over 20 languages of 74.23 after and 68.35 before (arXiv 2405.13816v1,
table 2).
Plan: `jaxalign plan --config=align_qwen15_1_8b --config.model=qwen1.5-1.8b --config.topology=v5e:1x1`:
fits, 8.04 of 15.75 GiB a device for 16 rows of 2,048 positions, 4 at once; at peak rates at least 2,090 ms a step
(memory).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("align_mistral_7b")
    config.template = "qwen"
    config.batch.rows_at_once = 4  # sixteen at once do not fit one chip
    return config
