"""Whether a step fits a TPU slice and how fast it could be there, from the compiled program, without a chip."""
