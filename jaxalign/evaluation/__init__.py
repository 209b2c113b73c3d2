"""Few-shot accuracy by label masses: prompts in, predictions out."""
