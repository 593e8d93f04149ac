"""The adapter in Python: immutable, a mapping by module, and plain to look at."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, Info, Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.deltas import adapter, low_rank, site

A, B = "unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_out"


def sample() -> Adapter:
    return adapter({A: low_rank((6, 5), 2, 1), B: low_rank((6, 4), 2, 2)})


def test_an_adapter_maps_modules_and_sites_to_deltas() -> None:
    a = sample()
    assert len(a) == 2 and list(a) == [A, B] and a
    assert A in a and site(A) in a and "unet.other" not in a and site("unet.other") not in a
    assert a[A] is a[site(A)] is a.deltas[site(A)] and a.get("unet.other") is None
    assert dict(a.items()) == dict(a.modules())
    for missing in ("unet.other", Site(("unet.other",))):
        with pytest.raises(KeyError):
            a[missing]
    assert not len(Adapter({})) and Adapter({})


def test_an_adapter_is_immutable() -> None:
    a = sample()
    with pytest.raises(FrozenInstanceError):
        a.deltas = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        a.deltas[site(A)] = a[B]  # type: ignore[index]
    with pytest.raises(TypeError):
        a.embeddings["<s>"] = None  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        a.info.path = "b"  # type: ignore[misc]


def test_its_maker_counts_while_nothing_has_changed() -> None:
    a = sample()
    made = a.with_deltas(a.deltas, made="a step")
    assert a.maker is None and made.maker == "a step"
    assert made.with_deltas(dict(made.deltas), path=None).maker == "a step"
    assert made.with_deltas({site(A): made[A]}).maker is None
    assert replace(made, embeddings={"<s>": next(iter(made[A].stored().values()))}).maker is None


def test_an_adapter_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(sample()))
    assert list(again) == [A, B] and np.array_equal(again[A].dense(), sample()[A].dense())


def test_one_line_says_what_it_is(tmp_path: Path) -> None:
    a = sample()
    save(a, tmp_path / "style.safetensors")
    assert repr(a).startswith("Adapter(computed, ") and "2 modules, lora of rank 2" in repr(a)
    assert repr(load(tmp_path / "style.safetensors")).startswith("Adapter('style.safetensors', ")
    assert len(repr(a)) < 120


def test_a_notebook_shows_a_table_in_which_nothing_is_markup() -> None:
    evil = "unet.<script>alert(1)</script>"
    a = Adapter({Site((evil,)): low_rank((6, 5), 2)}, {"<b>": None}, Info(path="<i>.safetensors"))  # type: ignore[dict-item]
    shown = a._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "<i>" not in shown and "<b>" not in shown
    many = Adapter({Site((f"unet.{i}",)): low_rank((6, 5), 2) for i in range(20)})
    assert "and 8 modules more" in many._repr_html_()


def test_arithmetic_works_whatever_was_imported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(sample(), path)
    code = (
        "import sys\n"
        "from loramerge.adapter.load import load\n"
        f"a = load({str(path)!r})\n"
        "assert 'loramerge.api' not in sys.modules\n"
        "b = 0.5 * a + a / 4 - a\n"
        f"print(b[{A!r}].dense().sum() / a[{A!r}].dense().sum(), (0 * a)[{A!r}].dense().sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ratio, zero = map(float, done.stdout.split())
    assert abs(ratio + 0.25) < 1e-5 and zero == 0.0
