"""Question translation on the study's SNLI files with Gemma 3 270M: 100 steps of 16 pairs, zh and de into English.

Command: `jaxalign train SNLI/snli_zh10k_train_question.json SNLI/snli_de10k_train_question.json
--config=align_snli_gemma3_270m --config.model=packaged --config.out=RUN`
Hardware: 2 CPU cores. Measured: about 32 minutes, 6.2 GB; held-out loss 1.736 before and 0.961 after; mean emotion
accuracy over eight languages, 100 rows each, 57.1 before and 60.1 after; before the step computed one row at a time.
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("base")
    config.rows = "0:2000"  # of each file
    config.steps = 100
    config.heldout_every = 25
    config.batch.rows_at_once = 1
    config.optimizer.learning_rate = 2e-4
    return config
