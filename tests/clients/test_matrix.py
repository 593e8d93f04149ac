"""Programs' own loaders read what we write, and change by it what we say.

Checkouts are named by environment variables; without one, its program is left out. Every family,
dialect and kind that `dialects.programs` speaks of is written in small shapes (LoRA on every layer,
other kinds on some of each sort) and read by the program in a process of its own; each row must come
out as the table has it: read whole and with our ΔW, or left out, refused or computed otherwise just
where the table says so.

    LORAMERGE_COMFYUI=~/ComfyUI python -m pytest -n 0 -s -m slow tests/clients

prints the counts of keys. ComfyUI needs its `comfy_kitchen`, in the version of its requirements.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors import safe_open

from loramerge.adapter import Adapter
from loramerge.adapter.readers import Reading, form_of, reading
from loramerge.adapter.save import save
from loramerge.dialects import DIALECTS
from loramerge.dialects.programs import READERS
from loramerge.errors import LoramergeError, NotExpressible
from loramerge.families import FAMILIES
from tests.clients import written
from tests.clients.readers.job import Array

pytestmark = [pytest.mark.slow, pytest.mark.peers]
pytest.importorskip("torch")

CHECKOUTS = {
    "comfyui": "LORAMERGE_COMFYUI",
    "a1111": "LORAMERGE_A1111",
    "forge": "LORAMERGE_FORGE",
    "kohya": "LORAMERGE_SD_SCRIPTS",
    "musubi": "LORAMERGE_MUSUBI",
    "invokeai": "LORAMERGE_INVOKEAI",
}
KINDS = (*written.KINDS, *written.VECTORS)
VECTOR_FORMS = ("bias", "lone bias", "norm", "norm without bias")
TOLERANCE = 1e-4
ROUNDING = 2.5e-7  # of the base's float32 numbers, which are near 1, when a program adds to them
WHOLE = {"": ""}
# networks with layers that are stored as one, of which some kinds cannot be written; the others of
# the family are read in these kinds
STORED_FUSED = {("wan", "animate")}
# ComfyUI makes the network that a checkpoint's tensors tell, and so one of a family's at a time
ROWS = [
    (program, family, network)
    for program in CHECKOUTS
    for family in sorted({f for reads in READERS[program].reads for f in reads.families})
    for network in (written.NETWORKS.get(family, WHOLE) if program == "comfyui" else WHOLE)
]


class Case(NamedTuple):
    """A file that the program is to read."""

    path: Path
    dialect: str
    adapter: Adapter


def _cases(program: str, family: str, lacks: str, folder: Path) -> dict[str, Case]:
    """Every kind in every dialect of which the table speaks."""
    found = {}
    usual = FAMILIES[family].common_dialect
    reads = [r for r in READERS[program].reads if family in r.families]
    for dialect in sorted({d for r in reads for d in r.dialects}):
        barred = "|".join(r.refuses for r in reads if dialect in r.dialects and r.refuses)
        for kind in KINDS:
            for name, adapter in _variants(written.adapter_of(family, kind, lacks), barred):
                path = folder / f"{dialect} {kind}{name}.safetensors"
                if adapter.deltas:
                    try:
                        save(adapter, path, to=None if dialect == usual else dialect)
                    except (NotExpressible, LoramergeError):
                        continue
                    found[path.stem] = Case(path, dialect, adapter)
    return found


def _variants(adapter: Adapter, barred: str) -> Iterator[tuple[str, Adapter]]:
    """An adapter, and what is left of it without the modules for which the whole is refused."""
    yield "", adapter
    if barred:
        left = {s: d for s, d in adapter.deltas.items() if not re.search(barred, s.modules[0])}
        if len(left) < len(adapter.deltas):
            yield ", known modules", replace(adapter, deltas=left)


def _run(program: str, family: str, lacks: str, cases: Mapping[str, Case], folder: Path) -> Any:
    """Let the program read the files; the result is its report."""
    job = folder / "job.json"
    content = written.job_of(family, lacks) | {"files": [str(case.path) for case in cases.values()]}
    job.write_text(json.dumps(content))
    script = Path(written.__file__).parent / "readers" / f"{program}.py"
    checkout = os.environ[CHECKOUTS[program]]
    done = subprocess.run(
        [sys.executable, str(script), checkout, str(job), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "report.json").read_text())


def _off(found: Mapping[str, Array], expected: Mapping[str, Array]) -> set[str]:
    """Tensors that changed otherwise than expected, or not at all."""
    off = {tag for tag in found if tag not in expected}
    for tag, change in expected.items():
        error = np.linalg.norm(found[tag] - change) if tag in found else np.inf
        if error > TOLERANCE * np.linalg.norm(change) + ROUNDING * np.sqrt(change.size):
            off.add(tag)
    return off


def _tags(family: str, names: Any) -> set[str]:
    """The tensors of the original file that hold modules; `names` are those of sites."""
    places = written.places(family)
    wanted = set(names)
    return {
        tag
        for (module, parameter), ((tag, _, _), _) in places.items()
        if (module if parameter == "weight" else f"{module}.{parameter}") in wanted
    }


def _predicted(family: str, said: Reading, expected: Mapping[str, Array]) -> set[str]:
    """The tensors that the table lets us expect to be off."""
    if said.refused:
        return set(expected)
    names = [*said.unread, *(name for names in said.otherwise.values() for name in names)]
    split = [part for name in names for part in _modules(name)]
    return _tags(family, split)


def _modules(name: str) -> list[str]:
    """The modules of a site's name: `block.to_q+to_k`."""
    if "+" not in name:
        return [name]
    first, *rest = name.split("+")
    head = first
    for _ in range(rest[0].count(".") + 1):
        head = head.rpartition(".")[0]
    return [first, *(f"{head}.{part}" for part in rest)]


@pytest.mark.parametrize(("program", "family", "network"), ROWS)
def test_a_program_reads_the_modules_of_its_row(
    program: str, family: str, network: str, tmp_path: Path
) -> None:
    if not os.environ.get(CHECKOUTS[program]):
        pytest.skip(f"{CHECKOUTS[program]} names no checkout")
    lacks = written.NETWORKS[family][network] if network else ""
    cases = _cases(program, family, lacks, tmp_path)
    report = _run(program, family, lacks, cases, tmp_path)
    unexplained = []
    for name, (path, dialect, adapter) in cases.items():
        expected = written.expected(family, adapter)
        with np.load(tmp_path / f"{name}.npz") as changed:
            found = dict(changed)
        off = _off(found, expected)
        with safe_open(path, "np") as file:
            keys = len(list(file.keys()))
        said = reading(adapter, READERS[program], DIALECTS[dialect])
        told = report[name]["refused"] or f"{len(off)} tensors off"
        read = keys - len(report[name]["unread"])
        sys.stdout.write(f"{program:8} {family:15} {network:14} {name:28} {read}/{keys}  {told}\n")
        if said is None:  # the table says nothing of it
            continue
        if said.otherwise and not said.refused:  # it computes just what we say that it computes
            theirs = {name: what for what, names in said.otherwise.items() for name in names}
            others = written.expected(family, adapter, theirs)
            if amiss := _off(found, others) - _tags(family, said.unread):
                tag = sorted(amiss)[0]
                far = np.linalg.norm(found[tag] - others[tag]) / np.linalg.norm(others[tag])
                unexplained.append(f"{name}: {len(amiss)} not by the formula: {tag}, {far:.1e} off")
        nothing_read = set(expected) <= _predicted(family, said, expected)
        if not said.refused and report[name]["refused"] and not nothing_read:
            unexplained.append(f"{name}: refused")
        elif off and off - _predicted(family, said, expected):
            unexplained.append(f"{name}: {sorted(off - _predicted(family, said, expected))[:3]}")
        elif not off and not said.whole:
            unexplained.append(f"{name}: read whole, though the table says {said.words(keys)}")
    tried = {form_of(c.adapter, s, d) for c in cases.values() for s, d in c.adapter.deltas.items()}
    claimed = {form for r in READERS[program].reads if family in r.families for form in r.forms}
    if (family, network) in STORED_FUSED:
        claimed &= tried
    # a family may have no layer with a bias, and then no difference of one
    assert claimed - tried <= set(VECTOR_FORMS), "the table claims what no run has seen"
    assert unexplained == []
