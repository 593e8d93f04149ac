"""meta: the header's strings edited, the data as it was."""

from __future__ import annotations

import json
import os
import shutil
import struct

import numpy as np
import pytest

from loramerge.adapter.formats.kohya_hashes import kohya_hashes
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.files.reader import TensorFile
from tests.builders.samples import (
    attention,
    data_section,
    make,
    read_safetensors,
    safetensors_bytes,
    sayable,
    write,
)
from tests.builders.world import rewrite


def _entries(path):
    return read_safetensors(path)[1]


def test_without_options_it_shows(run):
    before = run.state()
    found = run.ok("meta", "a", "--json").json
    assert found["metadata"] == _entries(run.folder / "a.safetensors") and found["outputs"] == []
    assert "ss_network_dim" in run.ok("meta", "a").out
    assert run.state() == before


def test_edits(run):
    path = run.folder / "a.safetensors"
    data, before = data_section(path), _entries(path)
    found = run.ok("meta", "a", "--set", "modelspec.title=Ein Titel = ü", "--unset", "ss_network_dim",
                   "--json").json  # fmt: skip
    after = _entries(path)
    assert after["modelspec.title"] == "Ein Titel = ü" and "ss_network_dim" not in after
    assert found["changed"]["modelspec.title"] == [None, "Ein Titel = ü"]
    assert found["changed"]["ss_network_dim"] == [before["ss_network_dim"], None]
    assert data_section(path) == data
    raw = path.read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] % 8 == 0
    before = run.state()
    assert "nothing to change" in run.ok("meta", "a", "--set", "modelspec.title=Ein Titel = ü").err
    assert run.state() == before


def test_another_file(run):
    before = (run.folder / "a.safetensors").read_bytes()
    run.ok("meta", "a", "--set", "x=" + "y" * 100_000, "-o", "o.safetensors")
    assert (run.folder / "a.safetensors").read_bytes() == before
    assert data_section(run.folder / "o.safetensors") == data_section(run.folder / "a.safetensors")
    run.refused(3, "meta", "a", "--set", "x=1", "-o", "o.safetensors", says="--force")
    run.ok("meta", "a", "--set", "x=1", "-o", "o.safetensors", "-f")
    assert _entries(run.folder / "o.safetensors")["x"] == "1"
    run.refused(2, "meta", "a", "--set", "x=1", "-o", "o.pt", says="o.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 4096, 300_000])
def test_headers_of_any_length(run, size):
    path = run.folder / "a.safetensors"
    data = data_section(path)
    run.ok("meta", "a", "--set", "comment=" + "z" * size)
    run.ok("meta", "a", "--set", "comment=" + "z" * (size // 2))
    assert data_section(path) == data and _entries(path)["comment"] == "z" * (size // 2)
    assert TensorFile(path).tensors.keys() == read_safetensors(path)[0].keys()


def test_hashes_of_kohya_files_stay_right(run):
    path = run.folder / "a.safetensors"
    stale = _entries(path)["sshs_legacy_hash"]
    run.ok("meta", "a", "--set", "modelspec.title=t")  # not part of the hashes
    assert _entries(path)["sshs_legacy_hash"] == stale
    run.ok("meta", "a", "--set", "ss_training_comment=" + "long " * 300_000)
    file = TensorFile(path)
    found = kohya_hashes(file.tensors.items(), file.metadata)
    assert {k: file.metadata[k] for k in found} == found
    assert found["sshs_legacy_hash"] != stale


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "lora_diffusion"])
def test_strip(run, dialect):
    path = run.folder / "s.safetensors"
    source = run.folder / "m.safetensors"
    modules = sayable("lora_diffusion", "sd21", attention("sd21"))
    write(make("sd21", "kohya", modules, alpha=2.0), source)
    save(load(source), path, to=dialect, metadata={"secret": "where I live"})
    before = load(path)
    run.ok("meta", "s.safetensors", "--strip", "--set", "format=pt")
    after, entries = load(path), _entries(path)
    assert "secret" not in entries and not [
        k for k in entries if k.startswith(("ss_", "loramerge"))
    ]
    assert {s: d.alpha for s, d in after.deltas.items()} == {
        s: d.alpha for s, d in before.deltas.items()
    }
    if dialect == "lora_diffusion":
        assert entries["unet:0:rank"] == "3" and "unet" in entries
    if dialect == "diffusers":
        assert "lora_adapter_metadata" in entries


def test_an_edit_that_changes_what_is_read_is_refused(run):
    def with_alpha(_, metadata):
        config = json.loads(metadata["lora_adapter_metadata"])
        config |= {k: 3 for k in config if k.endswith("lora_alpha")}
        config |= {k: {} for k in config if k.endswith("alpha_pattern")}
        metadata["lora_adapter_metadata"] = json.dumps(config)

    rewrite(run.folder / "b.safetensors", run.folder / "c.safetensors", with_alpha)
    run.refused(5, "meta", "c", "--unset", "lora_adapter_metadata", says=("would change", "hint"))
    run.refused(3, "meta", "c", "--set", "lora_adapter_metadata={", says="JSON")


def test_checkpoints_and_files_that_are_nothing_known(run):
    path = run.folder / "base.safetensors"
    data = data_section(path)
    run.ok("meta", "base", "--set", "modelspec.author=me", "-o", "named.safetensors")
    assert data_section(run.folder / "named.safetensors") == data
    odd = {
        "z": np.arange(3, dtype="int64"),
        "a": np.zeros((0, 2), "float16"),
        "q": np.ones(5, "uint8"),
    }
    (run.folder / "odd.safetensors").write_bytes(safetensors_bytes(odd))
    run.ok("meta", "odd", "--set", "k=v")
    arrays, metadata = read_safetensors(run.folder / "odd.safetensors")
    assert metadata == {"k": "v"} and list(arrays) == list(odd)
    run.ok("meta", "odd", "--unset", "*")
    assert "no metadata" in run.ok("meta", "odd").out


def test_peft_folders(run):
    run.ok("convert", "a", "--to", "peft", "-o", "p")
    data = data_section(run.folder / "p" / "adapter_model.safetensors")
    run.ok("meta", "p", "--set", "note=hello")
    run.ok("meta", "p", "--set", "note=other", "-o", "q")
    for name, note in (("p", "hello"), ("q", "other")):
        file = run.folder / name / "adapter_model.safetensors"
        assert data_section(file) == data and _entries(file)["note"] == note
        assert (run.folder / name / "adapter_config.json").is_file()
    run.ok("convert", "b", "--to", "peft", "-o", "two")
    run.refused(4, "meta", "two", says=("several", "text_encoder/adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--set", "nothing"), "KEY=VALUE"), (("--set", "=x"), "KEY=VALUE"),
     (("--unset", "ss_network_dom"), "did you mean ss_network_dim?"),
     (("--set", "__metadata__=x"), "cannot be stored")],
)  # fmt: skip
def test_options_that_cannot_be_meant(run, options, says):
    run.refused(2, "meta", "a", *options, says=says)


def test_files_that_are_not_there_or_have_no_header(run):
    run.refused(3, "meta", "nothing", says="nothing")
    (run.folder / "x.pt").write_bytes(b"x")
    run.refused(4, "meta", "x.pt", says="pickled")
    (run.folder / "bad.safetensors").write_bytes(b"x" * 20)
    run.refused(3, "meta", "bad", "--set", "a=b", says="not a valid")


def test_a_crash_leaves_the_file(run, monkeypatch):
    from loramerge.files.positioned import PositionedFile

    before = (run.folder / "a.safetensors").read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PositionedFile, "copy_from", fails)
    assert run("meta", "a", "--set", "k=v").code == 3
    assert (run.folder / "a.safetensors").read_bytes() == before
    assert not [p for p in run.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.name != "posix", reason="links and modes differ there")
def test_links_and_modes_stay(run):
    """The link still leads to the file, which keeps its permissions, and is the one that is edited."""
    (run.folder / "real").mkdir()
    real, link = run.folder / "real" / "file.safetensors", run.folder / "link.safetensors"
    shutil.move("a.safetensors", real)
    real.chmod(0o640)
    link.symlink_to("real/file.safetensors")
    run.ok("meta", "link.safetensors", "--set", "modelspec.title=t")
    assert link.is_symlink() and link.readlink().as_posix() == "real/file.safetensors"
    assert real.stat().st_mode & 0o777 == 0o640
    assert _entries(real)["modelspec.title"] == "t"
    assert [path.name for path in real.parent.iterdir()] == ["file.safetensors"]
    run.ok("meta", "link.safetensors", "--set", "modelspec.title=u", "-o", "other.safetensors")
    assert _entries(real)["modelspec.title"] == "t"


def test_shipped_files_cannot_be_changed(run):
    run.refused(2, "meta", "zuzu", "--set", "a=b", says=("comes with loramerge", "--output"))
    run.ok("meta", "zuzu", "--set", "a=b", "-o", "mine.safetensors")


def test_an_entry_that_looks_like_a_parameter_is_said_to_do_nothing(run):
    found = run.ok("meta", "a.safetensors", "--set", "lora_alpha=16")
    assert "does not change an adapter's effect" in found.err
    assert "does not change" not in run.ok("meta", "a.safetensors", "--set", "my.note=16").err


def _require_former_values(run):
    """Require that the report names what each entry was, and whether the file was replaced."""
    run.ok("meta", "a", "--set", "x=1", "--set", "long=" + "y " * 100, "--set", "none=")
    command = ("meta", "a", "--set", "x=2", "--unset", "long", "--set", "none=0", "--set", "new=3")
    shown = run.ok(*command, "-o", "other.safetensors").out.splitlines()
    assert shown[0].split() == ["written", "other.safetensors"]
    shown = [line.split(maxsplit=1) for line in run.ok(*command).out.splitlines()]
    assert ["replaced", "a.safetensors"] in shown
    assert ["changed", "x = 2 (was 1)"] in shown
    assert ["changed", "none = 0 (was empty)"] in shown
    assert ["set", "new = 3"] in shown
    assert ["removed", f"long (was {'y ' * 30}…)"] in shown


def test_former_values_are_named(run):
    _require_former_values(run)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda key, before, after: ("set", f"{key} = {after}"),
        lambda key, before, after: ("changed", f"{key} = {after} (was {after})"),
    ],
)
def test_a_report_without_former_values_is_found(run, monkeypatch, wrong):
    monkeypatch.setattr("loramerge.cli.meta._change", wrong)
    with pytest.raises(AssertionError):
        _require_former_values(run)
