"""What each kernel may take on sm_90. The table is the one place to tighten when a kernel gets better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import ptxas
import sass

ARCHITECTURE = "sm_90"


@dataclass(frozen=True)
class Limit:
    """Bounds for one kernel."""

    blocks: int  # of a multiprocessor at once, at least
    fences: int = 0  # MEMBAR.SC, at most
    # Accesses of 128 bits, at least: one for each dtype that a layer may have there.
    loads: int = 4
    stores: int = 4


# Pattern of a name → its limit; the first that fits.
LIMITS = {
    "layer_norms_kernel<false>": Limit(blocks=6, loads=3, stores=0),  # all but float64
    "layer_norms_kernel<true>": Limit(blocks=4, loads=1, stores=0),  # float64
    "pack_kernel<*, false>": Limit(blocks=5),
    "pack_kernel<double, true>": Limit(blocks=4),
    "pack_kernel<*, true>": Limit(blocks=5),
    # The second of three says whether there are distances, the third whether float64 is among the types.
    "blend_kernel<*, true, *>": Limit(blocks=3, loads=1, stores=1),
    "blend_kernel<*, false, *>": Limit(blocks=4, loads=1, stores=1),
    "step_kernel<*, false>": Limit(blocks=3, loads=3, stores=3),  # all but float64
    "step_kernel<*, true>": Limit(blocks=2, loads=1, stores=1),  # float64
    "update_estimates_kernel": Limit(blocks=8, loads=0, stores=0),
    "write_piece": Limit(blocks=8, loads=0, stores=0),
}


def violations(usages: Iterable[ptxas.Usage], codes: Iterable[sass.Code], names: Mapping[str, str]) -> list[str]:
    """What is beyond the limits, of the kernels for ARCHITECTURE."""
    taken = {usage.kernel: usage for usage in usages if usage.architecture == ARCHITECTURE}
    told = []
    for code in codes:
        name = names.get(code.kernel, code.kernel)
        limit = next((limit for pattern, limit in LIMITS.items() if fnmatchcase(name, pattern)), None)
        if limit is None:
            told.append(f"{name} has no limit in scripts/kernel_limits.py")
        else:
            told += [f"{name} {fault}" for fault in _faults(limit, taken[code.kernel], code)]
    return told


def _faults(limit: Limit, usage: ptxas.Usage, code: sass.Code) -> list[str]:
    blocks = sass.resident_blocks(usage.registers, usage.shared)
    faults = {
        f"takes {usage.registers} registers: {blocks} blocks, not {limit.blocks}": blocks < limit.blocks,
        f"has {code.fences} MEMBAR.SC: at most {limit.fences}": code.fences > limit.fences,
        f"has {code.local} accesses to local memory": code.local > 0,
        f"has {code.word_loads} loads of 128 bits: at least {limit.loads}": code.word_loads < limit.loads,
        f"has {code.word_stores} stores of 128 bits: at least {limit.stores}": code.word_stores < limit.stores,
    }
    return [fault for fault, is_so in faults.items() if is_so]
