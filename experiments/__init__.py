"""Experiments on what averaging does; each is run by `python -m experiments.NAME`."""
