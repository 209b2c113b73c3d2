"""QAlign (arXiv 2401.07817) with Llama-2-7B, all parameters: questions translated into English, then English answers.

Command: `jaxalign train QUESTIONS METAMATH.json --config=qalign_llama2_7b --config.model=MODEL --config.out=RUN`
with QUESTIONS the nine files of translated GSM8K questions, joined by commas (sw-en/train.sw,zh-en/train.zh,...), and
METAMATH.json MetaMathQA-395K. The runs are RUN/stage1 and RUN/stage2, the tuned model is the second.
Hardware: meant for v5e:4x8, 32 chips of a TPU v5e. Nothing of this run has been measured. QAlign reports a mean
accuracy over ten languages of 49.6 (MGSM) and 57.2 (MSVAMP), and without the first stage 38.4 and 46.2.
Plan: `jaxalign plan --config=qalign_llama2_7b --config.model=llama-2-7b --config.topology=v5e:4x8`:
fits, 6.63 of 15.75 GiB a device for 128 rows of 512 positions; at peak rates at least 827 ms a step
(interconnect).
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("base")
    config.stages = ({"build.instruction": "before"}, {})  # answers carry no instruction
    config.tune = "all"
    config.dtype = "bfloat16"
    config.param_dtype = "float32"  # so that no rounding comes between the stages
    config.template = "alpaca"
    config.heldout = 0.0
    config.batch.pairs_per_step = 128
    config.batch.length = 512
    config.batch.too_long = "cut"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_fraction = 0.03
    config.remat = "full"
    config.seed = 1234
    return config
