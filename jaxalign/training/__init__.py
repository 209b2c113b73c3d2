"""Tuning a decoder on batches: the optimizer, the pure step, checkpoints and the loop around them."""
