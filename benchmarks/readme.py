"""The tables of the documents, from the committed results: `python -m benchmarks.readme` writes them there.

A table stands between `<!-- NAME -->` and `<!-- end -->`. With `--check` nothing is written, and the exit code says
whether the documents tell what the results say.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from typing import Any

from benchmarks.accuracy import digits, simulated
from benchmarks.reliability import TABLES as RELIABILITY
from benchmarks.tables import ROOT, markdown, results
from experiments.document import TABLES
from experiments.document_papers import TABLES as PAPERS

TITLES = {
    "tiny500": "tiny tensors", "resnet20": "ResNet-20", "densenet121": "DenseNet-121", "vgg16": "VGG-16",
    "huge": "one tensor", "dense10": "ten layers", "resnet50": "ResNet-50", "wrn28_10": "WRN-28-10", "gpt2": "GPT-2",
}  # fmt: skip
KERNELS = {
    "norms": ("norms", "LayerTable"), "norms, list": ("norms", "list"), "pack": ("pack", "LayerTable"),
    "blend": ("blend", "LayerTable"), "SGD step": ("sgd_step", "StepTable"), "AdamW step": ("adamw_step", "StepTable"),
}  # fmt: skip
STEPS = {
    "SGD": ("SGD", "ours"), "SGD, proximity": ("SGD", "ours, proximity"),
    "AdamW": ("AdamW", "ours"), "AdamW, proximity": ("AdamW", "ours, proximity"),
}  # fmt: skip
ROUNDS = {
    "uniform": "grawa_hvd uniform", "LGRAWA": "grawa_hvd LGRAWA", "torch's averager": "torch PeriodicModelAverager",
    "authors' way": "authors: layer by layer",
    "a step of `hvd.DistributedOptimizer`": "hvd.DistributedOptimizer step",
}  # fmt: skip
RATES = {"none": "unshaped", "1gbit": "1 Gbit/s", "100mbit": "100 Mbit/s"}
HOROVOD = "hvd.DistributedOptimizer"
GAINS = {
    HOROVOD: f"`{HOROVOD}`, each step", "LGRAWA τ = 4": "LGRAWA, every 4 steps", "LGRAWA τ = 16": "every 16 steps",
    "LGRAWA τ = 32": "every 32 steps", "no communication": "never: the most there is to win",
}  # fmt: skip


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a cell by what was measured."""
    return {row["name"]: row for row in rows}


def spread(summary: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{summary['median']:.2f} ({summary['lower_quartile']:.2f}–{summary['upper_quartile']:.2f})"


def kernels() -> str:
    """Speed-up over the best peer, and share of the limit, on one and two threads."""
    cells = results("kernels_cpu")["cells"]
    shapes = {cell["model"]: (cell["layers"], cell["parameters"]) for cell in cells}
    found = {(c["model"], c["operation"], c["threads"]): by_name(c["rows"]) for c in cells}

    def entry(model: str, operation: str, way: str) -> str:
        rows = [found[model, operation, threads][way] for threads in (1, 2)]
        gains = [row["speedup_over_best_peer"] for row in rows]
        gain = " / ".join(f"{value:.{0 if value >= 10 else 1 if value >= 3 else 2}f}" for value in gains)
        share = " / ".join(f"{100 * row['share_of_limit']:.0f}" for row in rows)
        return f"{gain} ({share}%)"

    rows = []
    for model in sorted(shapes, key=lambda model: shapes[model][1]):
        layers, parameters = shapes[model]
        size = f"{4 * parameters / 1e6:.{1 if parameters < 1e6 else 0}f} MB"
        rows.append([f"{TITLES[model]}, {layers}, {size}", *(entry(model, *where) for where in KERNELS.values())])
    return markdown(list(KERNELS), rows)


GPU_KERNELS = {name: where for name, where in KERNELS.items() if name != "norms, list"}
DTYPES = {"float32": "gpu_kernels", "bfloat16": "gpu_kernels_bfloat16"}


def gpu_cells() -> list[tuple[str, str, dict[str, dict[str, dict[str, Any]]]]]:
    """The cells on the GPU: title, dtype, and the rows of each operation by name; from the smallest model on."""
    found = []
    for dtype, name in DTYPES.items():
        cells = results(name)["cells"]
        for model in sorted({cell["model"] for cell in cells}, key=lambda model: list(TITLES).index(model)):
            mine = [cell for cell in cells if cell["model"] == model]
            size = mine[0]["parameters"] * (4 if dtype == "float32" else 2) / 1e6
            title = f"{TITLES[model]}, {mine[0]['layers']}, {size:.{1 if size < 3 else 0}f} MB"
            found.append((title, dtype, {cell["operation"]: by_name(cell["rows"]) for cell in mine}))
    return found


def gpu_kernels() -> str:
    """On the GPU: share of a copy's bandwidth, and how many times as fast as torch, on the device and as a call."""
    rows = []
    for title, dtype, cells in gpu_cells():
        copy = cells["pack"]["plain copy"]["gigabytes_per_second"]
        entries = []
        for operation, way in GPU_KERNELS.values():
            row = cells[operation][way]
            gains = (row["device_speedup_over_best_peer"], row["speedup_over_best_peer"])
            share = f"{100 * row['gigabytes_per_second'] / copy:.0f}%"
            entries.append(f"{share}, {' / '.join(f'{gain:.{0 if gain >= 10 else 1}f}' for gain in gains)}")
        rows.append([f"{title}, {dtype}", *entries])
    return markdown(list(GPU_KERNELS), rows)


def gpu_times() -> str:
    """On the GPU: microseconds of the device, of the host, and of a call by itself."""
    rows = []
    for title, dtype, cells in gpu_cells():
        entries = []
        for operation, way in GPU_KERNELS.values():
            row = cells[operation][way]
            times = (row["device_microseconds"]["median"], row["host_microseconds"], row["microseconds"]["median"])
            entries.append(" / ".join(f"{time:.{0 if time >= 100 else 1}f}" for time in times))
        rows.append([f"{title}, {dtype}", *entries])
    return markdown(list(GPU_KERNELS), rows)


def steps(file: str) -> str:
    """A local step over that of the bare optimizer."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
        (cell["model"], cell["optimizer"]): by_name(cell["rows"]) for cell in results(file)["cells"]
    }
    models = list(dict.fromkeys(model for model, _ in found))
    rows = [
        [TITLES[model], *(spread(found[model, kind][way]["over_bare"]) for kind, way in STEPS.values())]
        for model in models
    ]
    return markdown(list(STEPS), rows)


def rounds(file: str) -> str:
    """A round over a bare allreduce."""
    rows = []
    for cell in (cell for run in results(file)["runs"] for cell in run["cells"]):
        found = by_name(cell["rows"])
        bare = 1e3 * cell["rows"][0]["seconds"]["median"]
        ratios = [spread(found[name]["over_bare_allreduce"]) if name in found else "" for name in ROUNDS.values()]
        rows.append([f"{TITLES[cell['model']]}, {cell['transport']}, {cell['ranks']} ranks", f"{bare:.1f}", *ratios])
    return markdown(["bare allreduce, ms", *ROUNDS], rows)


def gains() -> str:
    """A line each of what is won: images a second over Horovod's at each rate, and the bytes on the wire."""
    cells = {cell["rate"]: by_name(cell["rows"]) for cell in results("cluster")["cells"]}
    first = next(iter(cells.values()))
    rows = []
    for name, title in GAINS.items():
        speeds = [f"× {found[name]['images_over_horovod']['median']:.1f}" for found in cells.values()]
        rows.append([title, *speeds, f"{100 * first[name]['own_bytes_over_horovod']['median']:.0f}%"])
    return markdown([*(RATES[rate] for rate in cells), "bytes"], rows)


def cluster() -> str:
    """Images a second over Horovod's, and bytes on the wire, of all that was measured."""
    cells = {cell["rate"]: by_name(cell["rows"]) for cell in results("cluster")["cells"]}
    first = next(iter(cells.values()))
    rows = []
    for name in first:
        if name == HOROVOD:
            speeds = [f"{found[name]['images_per_second']['median']:.1f} images/s" for found in cells.values()]
        else:
            speeds = [f"× {found[name]['images_over_horovod']['median']:.2f}" for found in cells.values()]
        share = f"{first[name]['own_bytes_over_horovod']['median']:.4f}"
        rows.append([name.replace(HOROVOD, f"`{HOROVOD}`"), *speeds, share])
    return markdown([*(RATES[rate] for rate in cells), "bytes, of Horovod's"], rows)


DOCUMENTS = {
    "README.md": {"CLUSTER": gains},
    "docs/results.md": {"DIGITS": digits, "CLUSTER_ALL": cluster},
    "docs/performance.md": {
        "GPU_KERNELS": gpu_kernels,
        "GPU_STEP": partial(steps, "gpu_local_step"),
        "STEP": partial(steps, "local_step"),
        "ROUND_16": partial(rounds, "gpu_round"),
        "ROUND": partial(rounds, "round_loopback"),
    },
    "docs/kernels.md": {"GPU_TIMES": gpu_times, "KERNELS": kernels},
    "docs/simulation.md": {"SIMULATED": simulated},
    "docs/experiments.md": TABLES,
    "docs/experiments_papers.md": PAPERS,
    "docs/reliability.md": RELIABILITY,
}


def filled(document: str, text: str) -> str:
    """The text of a document with the tables that the results make."""
    for name, table in DOCUMENTS[document].items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{document} has no table between <!-- {name} --> and <!-- end -->")
        made = table()
        text = pattern.sub(lambda marks, made=made: f"{marks[1]}{made}{marks[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a document is out of date")
    options = parser.parse_args()
    is_old = False
    for document in DOCUMENTS:
        path = ROOT / document
        text = path.read_text()
        new = filled(document, text)
        is_old |= new != text
        if not options.check:
            path.write_text(new)
    return int(options.check and is_old)


if __name__ == "__main__":
    sys.exit(main())
