"""Run the tests that do something to workers, and note what was done and whether it went as promised.

`make readme` makes the table of docs/reliability.md of it. A part that is run whole takes the place of what was noted
of it; of a selection, as by `-k diverged`, each test does. The exit code is 1 if a test has failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, ROOT

NOTES = RESULTS / "faults.json"
RUN = ["tests/parallel/run.py", "--timeout", "900", "-m", "fault", "--transport"]
# What runs each part, and what its tests are called: where they are, and under which launcher.
PARTS = {
    "single": (["-m", "pytest", "tests/single", "-m", "fault"], "tests/single/", ""),
    "horovod": ([*RUN, "horovod"], "tests/parallel/", " under horovodrun"),
    "torch": ([*RUN, "torch"], "tests/parallel/", " under torchrun"),
    "elastic": (["-m", "pytest", "tests/elastic"], "tests/elastic/", ""),
    "cut": (["-m", "pytest", "tests/cluster/test_cut.py", "-rs"], "tests/cluster/", ""),
}

Noted = dict[str, list[dict[str, Any]]]


def read(file: Path) -> Noted:
    """What is noted in a file; nothing if there is none."""
    found: Noted = json.loads(file.read_text()) if file.exists() else {}
    return found


def run(part: str, selection: list[str]) -> tuple[Noted, bool]:
    """Run a part of the tests. Returns what they noted, and whether none failed."""
    command, _, _ = PARTS[part]
    print(f"==== {part} ====", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "faults.json")
        done = subprocess.run([sys.executable, *command, f"--faults={file}", *selection], cwd=ROOT)
        return read(file), done.returncode == 0 or (selection != [] and not file.exists())


def merged(before: Noted, new: Noted, part: str, whole: bool) -> Noted:
    """What is noted now. A part that could not run here, as without root, leaves what there was."""
    _, folder, under = PARTS[part]
    gone = {name for name in before if whole and new and name.startswith(folder) and under in name}
    return {name: one for name, one in sorted({**before, **new}.items()) if name in new or name not in gone}


def main() -> int:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=summary, epilog=details + "Other options go to pytest.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (default: all)")  # fmt: skip
    parser.add_argument("--json", type=Path, default=NOTES, help="(default: benchmarks/results/faults.json)")
    options, selection = parser.parse_known_args()
    succeeded = True
    for part in options.parts:
        new, passed = run(part, selection)
        succeeded &= passed
        noted = merged(read(options.json), new, part, whole=not selection)
        lines = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in noted.items()]
        options.json.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    done = [one["survived"] for test in read(options.json).values() for one in test]
    print(f"{len(done)} faults are noted in {options.json}; {sum(done)} went as promised")
    return int(not succeeded)


if __name__ == "__main__":
    sys.exit(main())
