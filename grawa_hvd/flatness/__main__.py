"""`python -m grawa_hvd.flatness`: how flat the valley of a saved model is.

Functions are named as module:name, and looked up from the folder where the command is run, too. Example:
  python -m grawa_hvd.flatness --model train:build_model --weights model.pt --data train:evaluation_loader
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grawa_hvd.flatness.measure import LOSSES, flatness
from grawa_hvd.flatness.result import Flatness


def factory(name: str) -> Callable[[], Any]:
    """The function `module:name`.

    Raises:
        argparse.ArgumentTypeError: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} must be module:function, but: {error}") from error
    return found


def options_parser() -> argparse.ArgumentParser:
    """Of the options."""
    parser = argparse.ArgumentParser(
        prog="python -m grawa_hvd.flatness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=factory, required=True, metavar="MODULE:FACTORY", help="returns the model, without arguments")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a state_dict, by torch.save; without: as the factory made it",
    )
    add("--data", type=factory, required=True, metavar="MODULE:LOADER",
        help="returns the loader of batches (x, y), without arguments")  # fmt: skip
    add("--loss", choices=LOSSES, default="cross_entropy", help="of torch.nn.functional (default: %(default)s)")
    add("--iterations", type=int, default=100, help="of Lanczos: as many pseudo-eigenvalues (default: %(default)s)")
    add("--vectors", type=int, default=10, help="random ones, for norm and trace (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random vectors (default: %(default)s)")
    add("--device", default="cpu", help="where to compute, as cuda:0 (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all of it there, eigenvalues and weights included")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def as_json(found: Flatness) -> str:
    """All of it, with lists for tensors and {value, error} for estimates."""
    plain = {
        name: value._asdict() if hasattr(value, "_asdict") else value.tolist() if hasattr(value, "tolist") else value
        for name, value in vars(found).items()
    }
    return json.dumps({**plain, "lanczos_norm": found.lanczos_norm}, indent=1)


def load(model: torch.nn.Module, path: Path, parser: argparse.ArgumentParser) -> None:
    """Give the model the weights of a file."""
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of a file that is no such thing torch raises what it likes
        parser.error(f"--weights must be a state_dict of the model, by torch.save, but {path} is none: {error}")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write where it is asked for."""
    sys.path.insert(0, os.getcwd())
    parser = options_parser()
    options = parser.parse_args(arguments)
    model = options.model()
    try:
        model = model.to(options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device must be one that torch has here, but is {options.device!r}: {error}")
    if options.weights:
        load(model, options.weights, parser)
    try:
        found = flatness(
            model, options.loss, options.data(), vectors=options.vectors, iterations=options.iterations,
            seed=options.seed, progress=not options.quiet,
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    print(found)
    if options.json:
        options.json.write_text(as_json(found))


if __name__ == "__main__":
    main()
