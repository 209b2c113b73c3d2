"""QAlign (arXiv 2401.07817) with Llama-2-13B, all parameters: questions translated into English, then English answers.

Command: `jaxalign train QUESTIONS METAMATH.json --config=qalign_llama2_13b --config.model=MODEL --config.out=RUN`
with the files of qalign_llama2_7b.
Hardware: meant for v5e:8x8, 64 chips of a TPU v5e. Nothing of this run has been measured. QAlign reports a mean
accuracy over ten languages of 57.1 (MGSM) and 62.6 (MSVAMP), and without the first stage 43.9 and 51.8.
Plan: `jaxalign plan --config=qalign_llama2_13b --config.model=llama-2-13b --config.topology=v5e:8x8`:
fits, 8.16 of 15.75 GiB a device for 128 rows of 512 positions; at peak rates at least 1,759 ms a step
(interconnect).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    return load_config("qalign_llama2_7b")
