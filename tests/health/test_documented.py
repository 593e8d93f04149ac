"""Every code of a finding stands in the document, and every limit is used."""

from __future__ import annotations

import re
from pathlib import Path

import loramerge
from loramerge.algebra.health import LIMITS
from loramerge.algebra.health.repairs import REPAIRS
from tests.health.faults import FAULTS

ROOT = Path(loramerge.__file__).parent
SOURCES = [*(ROOT / "algebra" / "health").glob("*.py"), ROOT / "verbs" / "inspect" / "weights.py"]
DOCUMENT = (ROOT.parent / "docs" / "health.md").read_text("utf-8")


def _codes() -> set[str]:
    found = set()
    for path in SOURCES:
        text = path.read_text("utf-8")
        found |= {
            m[1]
            for m in re.finditer(r'Problem\(\s*"(?:error|warning|note)",\s+"([a-z0-9-]+)"', text)
        }
    return found


def test_every_code_is_documented():
    codes = _codes()
    assert len(codes) > 20 and codes >= LIMITS.keys() - {"intruders"}
    assert [code for code in sorted(codes) if f"`{code}`" not in DOCUMENT] == []


def test_every_limit_is_used():
    text = "".join(path.read_text("utf-8") for path in SOURCES)
    assert [code for code in LIMITS if f'LIMITS["{code}"]' not in text] == []


def test_repairs_mend_what_is_found():
    found = _codes() | {"alpha-zero"}  # which reading finds
    assert {code for repair in REPAIRS.values() for code in repair.codes} <= found
    assert len(FAULTS) > 20
