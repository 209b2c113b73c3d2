"""A door to lm-eval, EleutherAI's evaluation harness: `python -m jaxalign.lm_eval --model jaxalign ...`."""
