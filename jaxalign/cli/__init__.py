"""The command line: a file per verb, thin over the stages."""
