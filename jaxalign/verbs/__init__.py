"""What each verb does, for the command line and for Python: `verb(config, paths)`, settings being a locked config."""
