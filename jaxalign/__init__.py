"""Question-translation alignment of language models: tuning, evaluation and probes in JAX."""
