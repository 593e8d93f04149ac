"""`resize FOLDER --out-dir --copy-rest` leaves a folder in which nothing is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import loramerge as lm


def _folder() -> Path:
    loras = Path("loras/sub")
    loras.mkdir(parents=True)
    lm.save(lm.resize("zuzu", rank=1), loras / "thin.safetensors")
    shutil.copy("b.safetensors", "loras")
    return loras.parent


def test_files_that_would_not_get_smaller_are_copied_byte_for_byte(run):
    folder = _folder()
    command = ("resize", folder, "--rank", "2", "--out-dir", "small")
    assert "skipped" in run.ok(*command).out
    assert not Path("small/sub/thin.safetensors").exists()
    out = run.ok(*command, "--copy-rest").out
    assert "1 copied" in out and "would not be smaller" in out
    thin = Path("small/sub/thin.safetensors")
    assert thin.read_bytes() == (folder / "sub/thin.safetensors").read_bytes()
    again = run.ok(*command, "--copy-rest", "--json").json
    assert [file["status"] for file in again["files"]] == ["kept", "kept"]
    assert str(thin) in again["outputs"]


def test_a_peft_folder_is_copied_whole(run):
    lm.save(lm.resize("zuzu", rank=1), "loras/thin", dialect="peft")
    Path("loras/thin/README.md").write_text("a card")
    run.ok("resize", "loras", "--rank", "4", "--to", "peft", "--out-dir", "small", "--copy-rest")
    names = [p.name for p in sorted(Path("small/thin").rglob("*")) if p.is_file()]
    assert "README.md" in names and "adapter_config.json" in names
    run.ok("inspect", "small/thin")


def test_copies_need_a_folder(run):
    run.refused(2, "resize", "b", "--rank", "2", "--copy-rest", says="--out-dir FOLDER")
