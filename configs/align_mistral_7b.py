"""The study's main run: Mistral-7B-v0.1 on question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_mistral_7b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:2x4, eight chips of a TPU v5e. Nothing of this run has been measured. The study
reports, for emotion questions, a mean accuracy over 20 languages of 90.81 after and 87.07 before (arXiv 2405.13816v1,
table 2).
Plan: `jaxalign plan --config=align_mistral_7b --config.model=mistral-7b-v0.1 --config.topology=v5e:2x4`:
fits, 6.71 of 15.75 GiB a device for 16 rows of 2,048 positions; at peak rates at least 904 ms a step
(compute).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("base")
    config.dtype = "bfloat16"
    config.param_dtype = "bfloat16"
    config.template = "mistral"
    config.remat = "full"
    config.loss.chunk = 1024  # a matrix unit wants many rows
    config.batch_tokens = 16384
    config.batch_size = 32
    return config
