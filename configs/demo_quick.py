"""The demo's path in some 80 seconds: two languages, eight rows each, three steps. It shows the path, and no gain.

Command: `jaxalign demo --config=demo_quick`
Hardware: 2 CPU cores. Measured: 82 s, 3.0 GB, nothing compiled before, beside other work.
"""

from ml_collections import ConfigDict

from jaxalign.configuration import load_config


def get_config() -> ConfigDict:
    config = load_config("demo")
    config.out = "jaxalign-demo-quick"
    config.languages = "en,de"
    config.rows = "0:8"
    config.steps = 3
    config.batch.pairs_per_step = 4
    config.heldout = 0.0
    config.probes = "logit_lens"
    return config
