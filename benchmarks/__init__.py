"""Measurements of grawa_hvd: each module is a command, `python -m benchmarks.<name> --help`."""
