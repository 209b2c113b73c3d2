"""The whole path on the mini set with Gemma 3 270M (base): tuned on two languages, evaluated in eight.

Command: `jaxalign demo`
Hardware: 2 CPU cores. Measured: 8 min 18 s, 3.1 GB; mean accuracy over the eight languages 58.4 before and 62.8
after.
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("base")
    config.model = "packaged"  # what the `demo` extra installs
    config.out = "jaxalign-demo"
    config.languages = "en,zh,de,fr,ru,hi,th,sw"
    config.batch.rows_at_once = 1
    config.optimizer.learning_rate = 2e-4
    config.log_every = 1
    config.heldout_every = 5
    config.checkpoint_every = 10
    return config
