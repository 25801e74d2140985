"""Plots of runs, tests and reports, all in one style."""
