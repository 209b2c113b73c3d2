"""Everything textual: languages, tasks, question pairs, prompts, chat templates, label words, token batches.

Text is kept as it is, character for character: nothing here strips or normalises.
"""
