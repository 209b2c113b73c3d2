"""Figures and reports, drawn from the files of runs alone."""
