"""The study's recipe with Llama-3.1-70B: question translation, zh and de into English, three epochs.

Command: `jaxalign train ZH.json DE.json --config=align_llama31_70b --config.model=MODEL --config.out=RUN`
Hardware: meant for v5e:4x8, 32 chips of a TPU v5e. Nothing of this run has been measured.
Plan: `jaxalign plan --config=align_llama31_70b --config.model=llama-3.1-70b --config.topology=v5e:4x8`:
fits, 11.71 of 15.75 GiB a device for 16 rows of 2,048 positions; at peak rates at least 2,097 ms a step
(compute).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("align_mistral_7b")
    config.template = "none"  # a base model that the study did not tune
    config.mesh.tensor = 4  # 16 pairs a step make few rows: more ways to split them would leave chips idle
    return config
