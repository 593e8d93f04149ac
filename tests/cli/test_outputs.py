"""Where results go: names, refusals, batches."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import OutputExists
from tests.builders.samples import data_section
from tests.builders.world import write_folder

COMMANDS = {
    "mix": ("mix", "a:0.5", "b:0.5"),
    "resize": ("resize", "--rank", "2", "a"),
    "bake": ("bake", "--base", "base.safetensors", "a"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_existing_output_needs_force(run, command):
    run.ok(*command, "-o", "new/deep/out.safetensors")
    run.refused(3, *command, "-o", "new/deep/out.safetensors", says=("out.safetensors", "--force"))
    run.ok(*command, "-o", "new/deep/out.safetensors", "--force")
    run.ok(*command)
    run.refused(3, *command, says="--force")  # default names too
    assert not list(run.folder.rglob("*.partial"))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("out.ckpt", "--output out.safetensors"), ("out.bin", "--output out.safetensors"),
        ("out.v1", "--output out.v1.safetensors"), ("out", "--output out.safetensors"), ("", "--output"),
        (".", "-o"), ("..", "-o"),
    ],
)  # fmt: skip
def test_outputs_of_another_name(run, command, output, words):
    run.refused(2, *command, "-o", output, "--force", says=words)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_outputs_that_cannot_be(run, command):
    (run.folder / "folder.safetensors").mkdir()
    run.refused(3, *command, "-o", "folder.safetensors", says="folder.safetensors")
    run.refused(3, *command, "-o", "folder.safetensors", "--force", says="existing folder")
    run.refused(3, *command, "-o", "b.safetensors/out.safetensors", says="b.safetensors")


def test_an_output_may_be_an_input(run):
    expected = run.ok("mix", "a:0.5", "-o", "half.safetensors") and data_section(
        run.folder / "half.safetensors"
    )
    run.ok("mix", "a:0.5", "-o", "a.safetensors", "--force")
    assert data_section(run.folder / "a.safetensors") == expected
    run.ok("resize", "--rank", "2", "a", "-o", "a.safetensors", "--force")
    run.ok("bake", "--base", "base.safetensors", "a", "-o", "apart.safetensors")
    run.ok("bake", "--base", "base.safetensors", "a", "-o", "base.safetensors", "--force")
    assert data_section(run.folder / "base.safetensors") == data_section(
        run.folder / "apart.safetensors"
    )


ONTO_INPUTS = {
    "mix": (("mix", "a:0.5", "b:0.5"), "ab"),
    "resize": (("resize", "--rank", "2", "a"), "a"),
    "convert": (("convert", "a", "--to", "diffusers"), "a"),
    "bake": (("bake", "--base", "base", "a:0.7", "b"), ("a", "b", "base")),
    "unbake": (("unbake", "base", "--lora", "a", "--allow-unrecorded"), ("a", "base")),
    "merge": (("merge", "base:0.5", "lora:a:0.5", "--base", "base"), ("a", "base")),
    "extract": (("extract", "--tuned", "tuned", "--base", "base", "--rank", "1"), ("tuned", "base")),
}  # fmt: skip


@pytest.mark.parametrize("verb", ONTO_INPUTS)
def test_an_output_in_place_of_any_input_is_the_same_file(run, verb):
    """All is read, digests for the header included, before the old file goes."""
    command, inputs = ONTO_INPUTS[verb]
    if "tuned" in inputs:
        run.ok("bake", "--base", "base", "a", "-o", "tuned.safetensors")
    run.ok(*command, "-o", "apart.safetensors")
    expected = (run.folder / "apart.safetensors").read_bytes()
    for name in inputs:
        place = run.folder / f"{name}.safetensors"
        before = place.read_bytes()
        run.refused(3, *command, "-o", place.name, says="--force")
        run.ok(*command, "-o", place.name, "--force")
        assert place.read_bytes() == expected, name
        place.unlink()  # the base is a link to what other tests use
        place.write_bytes(before)


def test_an_input_stays_if_the_output_in_its_place_fails(run):
    for name in ("a", "base"):
        run.refused(7, "bake", "--base", "base", "a:1e9", "-o", f"{name}.safetensors", "--force")


@pytest.mark.parametrize(
    "holds",
    [
        "notes.txt",
        "sub/a.safetensors",
        "adapter_config.json+README.md",
        "adapter_config.json+backup/adapter_config.json",
    ],
)
def test_a_folder_of_other_things_is_never_replaced(run, holds):
    for name in holds.split("+"):
        path = run.folder / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    run.refused(3, "mix", "a", "--to", "peft", "-o", "mine", "--force", says="would remove them")
    run.refused(3, "mix", "a", "--to", "peft", "-o", "mine", says="mine")


def test_a_peft_folder_is_replaced_with_force(run):
    run.ok("mix", "b", "--to", "peft", "-o", "out")
    run.refused(3, "mix", "b", "--to", "peft", "-o", "out", says="--force")
    run.ok("mix", "a", "--to", "peft", "-o", "out", "--force")
    assert not (run.folder / "out" / "text_encoder").exists()
    run.refused(2, "mix", "a", "--to", "peft", "-o", "x.safetensors", says="--output x")


def test_json_and_tables_replace_only_their_like(run):
    for option in ("--json-file", "--results"):
        command = ("resize", "--rank", "2", "a", "-o", "out.safetensors")
        run.refused(3, *command, option, "b.safetensors", says="b.safetensors")
        run.refused(3, *command, option, run.folder, says="replace")
    command = ("resize", "--rank", "2", "a", "-o", "out.safetensors", "--force")
    for _ in range(2):
        run.ok(*command, "--json-file", "x.json", "--results", "x.csv")


@pytest.fixture
def loras(run):
    for name in ("one.safetensors", "x/two.safetensors", "x/y/face [v2].safetensors"):
        path = run.folder / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("a.safetensors", path)
    (run.folder / "loras" / "broken.safetensors").write_bytes(b"not at all")
    return run.folder / "loras"


def _status(result):
    return {os.path.basename(f["path"]): f["status"] for f in result.json["files"]}


def test_batches_keep_sub_folders_and_go_on_after_failures(run, loras):
    command = (
        "resize",
        "--rank",
        "2",
        "loras",
        "--out-dir",
        "small",
        "--results",
        "r.csv",
        "--json",
    )
    result = run(*command)
    assert result.code == 3
    assert _status(result) == {
        "broken.safetensors": "failed", "one.safetensors": "done", "two.safetensors": "done",
        "face [v2].safetensors": "done",
    }  # fmt: skip
    assert "broken.safetensors" in result.err and "Traceback" not in result.err
    small = run.folder / "small"
    written = sorted(p.relative_to(small).as_posix() for p in small.rglob("*.*"))
    assert written == ["one.safetensors", "x/two.safetensors", "x/y/face [v2].safetensors"]
    with (run.folder / "r.csv").open(encoding="utf-8", newline="") as file:
        rows = {os.path.basename(row["file"]): row for row in csv.DictReader(file)}
    assert set(rows) == set(_status(result))
    done = rows["one.safetensors"]
    assert int(done["size_after"]) == (run.folder / "small" / "one.safetensors").stat().st_size
    assert 0 < float(done["norm_kept"]) < 1 and done["worst_module"].startswith("unet.")
    assert "not a valid safetensors file" in rows["broken.safetensors"]["reason"]

    (run.folder / "small" / "one.safetensors").unlink()
    again = run(*command)
    assert _status(again)["one.safetensors"] == "done"
    assert _status(again)["two.safetensors"] == "kept"
    shown = run("resize", "--rank", "2", "loras", "--out-dir", "small")
    assert "1 failed" in shown.out and "3 kept" in shown.out and shown.code == 3


def test_results_inside_the_folder_are_not_taken_for_inputs(run, loras):
    (loras / "broken.safetensors").unlink()
    command = ("resize", "--rank", "2", "loras", "--out-dir", "loras/small", "--json")
    assert set(_status(run.ok(*command)).values()) == {"done"}
    again = run.ok(*command)
    assert set(_status(again).values()) == {"kept"} and len(again.json["files"]) == 3
    assert not (loras / "small" / "small").exists()


def test_two_files_never_share_an_output(run, loras):
    shutil.copy("b.safetensors", loras / "x" / "one.safetensors")
    result = run("resize", "--rank", "2", loras / "one.safetensors", loras / "x" / "one.safetensors",
                 "--out-dir", "small", "--json")  # fmt: skip
    assert result.code == 2
    assert [f["status"] for f in result.json["files"]] == ["done", "failed"]
    run.ok("resize", "--rank", "2", "loras/**/one*", "--out-dir", "p")  # patterns keep sub-folders
    assert (run.folder / "p" / "x" / "one.safetensors").is_file()


def test_a_batch_onto_itself(run, loras):
    (loras / "broken.safetensors").unlink()
    before = run.state()
    result = run("resize", "--rank", "2", "loras", "--out-dir", "loras", "--json")
    assert result.code == 3 and set(_status(result).values()) == {"failed"}
    assert run.state() == before
    result = run.ok("resize", "--rank", "2", "loras", "--out-dir", "loras", "--force", "--json")
    assert set(_status(result).values()) == {"done"}


def test_files_that_would_not_get_smaller_are_skipped(run, loras):
    (loras / "broken.safetensors").unlink()
    result = run.ok("resize", "--rank", "64", "loras", "--out-dir", "small", "--json")
    assert set(_status(result).values()) == {"skipped"}
    assert not (run.folder / "small").exists()
    run.ok("mix", "a", "--to", "peft", "-o", "folders/p")
    result = run.ok("resize", "--rank", "64", "folders", "--out-dir", "small", "--json")
    assert _status(result) == {"p": "skipped"}


def test_batches_into_and_out_of_folders(run, loras):
    (loras / "broken.safetensors").unlink()
    run.ok("resize", "--rank", "2", "loras", "--out-dir", "peft", "--to", "peft")
    assert (run.folder / "peft" / "x" / "two" / "adapter_config.json").is_file()
    run.ok("mix", "b", "--to", "peft", "-o", "peft/both")  # a folder per component is one adapter
    result = run.ok(
        "resize", "--rank", "1", "peft", "--out-dir", "files", "--to", "diffusers", "--json"
    )
    assert len(result.json["files"]) == 4 and set(_status(result).values()) == {"done"}
    assert (run.folder / "files" / "both.safetensors").is_file()
    assert (run.folder / "files" / "x" / "y" / "face [v2].safetensors").is_file()


def test_one_output_for_several_files(run):
    run.refused(2, "resize", "--rank", "2", "a", "b", says="--out-dir")
    run.refused(2, "resize", "--rank", "2", "a", "b", "-o", "x.safetensors", says="--out-dir")
    run.refused(
        2,
        "resize",
        "--rank",
        "2",
        "a",
        "--out-dir",
        "d",
        "-o",
        "x.safetensors",
        says="exclude each other",
    )


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    "theirs", ["notes.txt", "mine.safetensors", "unet/mine.safetensors", "backup/config.json"]
)
def test_a_checkpoint_folder_with_a_users_file_is_never_replaced(run, theirs):
    write_folder(run.folder / "base.safetensors", run.folder / "model")
    recipe = "version: 1\nsteps:\n  one: {bake: {base: model, adapters: [a]}, save: out}\n"
    (run.folder / "r.yaml").write_text(recipe)
    run.ok("run", "r.yaml")
    run.ok("bake", "--base", "model", "a:0.5", "-o", "out", "--force")
    run.ok("run", "r.yaml", "--force")
    run.ok("run", "r.yaml")
    path = run.folder / "out" / theirs
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    (run.folder / "r.yaml").write_text(recipe.replace("[a]", "['a:0.5']"))
    for force in ((), ("--force",)):
        found = run("run", "r.yaml", *force)
        assert found.code == 3 and path.read_text() == "{}"
    bake = ("bake", "--base", "model", "a:0.5", "-o", "out", "--force")
    run.refused(3, *bake, says="would remove them")
    assert path.read_text() == "{}"


def test_the_library_never_removes_a_users_file_either(run):
    save(load(run.folder / "a.safetensors"), run.folder / "p", to="peft")
    save(load(run.folder / "a.safetensors"), run.folder / "p", to="peft", force=True)
    (run.folder / "p" / "notes.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="would remove them"):
        save(load(run.folder / "a.safetensors"), run.folder / "p", to="peft", force=True)
    assert (run.folder / "p" / "notes.txt").is_file()


def test_the_results_of_a_folder_do_not_stay_in_memory(run, loras, monkeypatch):
    """Of many small adapters as much is in memory at a time as of one."""
    import gc
    import weakref

    from loramerge.steps import batch
    from loramerge.verbs.resize import ResizeFiles, resize_files

    alive, write = [], batch.write_result

    def spy(result, *arguments, **options):
        alive.append(weakref.ref(result.adapter))
        return write(result, *arguments, **options)

    monkeypatch.setattr(batch, "write_result", spy)
    found = resize_files(ResizeFiles(files=("loras",), out_dir="small", rank=(2,)))
    gc.collect()
    assert len(alive) == 3 and not any(reference() for reference in alive)
    results = [file.result for file in found.files if file.result is not None]
    assert [result.adapter for result in results] == [None] * 3
    assert all(result.size and result.modules for result in results)


def test_a_folder_has_one_size(run):
    """The size of a folder is that of all its files, in bake and in inspect."""
    run.ok("bake", "--base", "tiny", "zuzu", "-o", "m1")
    written = run.ok("bake", "--base", "tiny", "polka", "-o", "m2", "--json").json["size"]
    assert written == sum(path.stat().st_size for path in (run.folder / "m2").rglob("*.*"))
    (inspected,) = run.ok("inspect", "m2", "--json").json
    assert inspected["size"] == written


# ---- folders that did not exist


def _require_noted(run, output, folder):
    """Require a note of the folder if it was made, on standard error alone."""
    result = run.ok("mix", "a", "b", "-o", output, "--json", "--force")
    assert result.json["outputs"] == [str(Path(output))]
    assert (f"note: the folder {folder} did not exist and was made\n" in result.err) == bool(folder)
    assert ("did not exist" in result.err) == bool(folder)


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("new/er/x.safetensors", Path("new/er")),
        ("x.safetensors", None),
        ("there/x.safetensors", None),
        ("new/../x.safetensors", None),
    ],
)
def test_a_new_folder_is_noted_beside_the_result(run, output, folder):
    Path("there").mkdir()
    _require_noted(run, output, folder)


@pytest.mark.parametrize("wrong", [lambda output: None, lambda output: str(Path(output).parent)])
def test_a_wrong_note_of_folders_is_found(run, monkeypatch, wrong):
    monkeypatch.setattr("loramerge.cli.command._missing_folder", wrong)
    with pytest.raises(AssertionError):
        _require_noted(run, "new/er/x.safetensors", Path("new/er"))
        _require_noted(run, "x.safetensors", None)


def test_no_folder_is_noted_that_was_not_made(run):
    quiet = run.ok("mix", "a", "b", "-o", "new/x.safetensors", "-q")
    assert quiet.out == quiet.err == ""
    assert "did not exist" not in run.ok("bake", "-b", "tiny", "zuzu", "-o", "n/b", "--dry-run").err
    run.refused(3, "mix", "a", "nowhere", "-o", "other/x.safetensors")
