"""A file of another format is named as what it is, whichever verb it is given to and however."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from tests.builders.commands import Runner
from tests.builders.samples import safetensors_bytes
from tests.tail import tail

_GGUF = b"GGUF\x03\0\0\0" + bytes(64)
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 144\n"


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("readme.txt", "hello")
    return stream.getvalue()


# content → what it is called
FOREIGN = {
    "gguf": (_GGUF, "a GGUF file"),
    "page": (b"<!DOCTYPE html>\n<html>log in</html>" + bytes(60), "a web page"),
    "pointer": (_POINTER, "a Git LFS pointer"),
    "zip": (_zip(), "a zip archive"),
    "pickle": (pickle.dumps({"a": [1] * 50}, 2), "a pickle"),
}
# a command with the file in each place that takes one
COMMANDS = {
    "inspect": "inspect {}",
    "inspect's base": "inspect a --base {}",
    "mix": "mix {}:0.5 a -o o.safetensors",
    "resize": "resize {} --rank 2 -o o.safetensors",
    "convert": "convert {} --to kohya -o o.safetensors",
    "diff's first": "diff {} a",
    "diff's second": "diff a {}",
    "meta": "meta {}",
    "mix's base": "mix a --base {} -o o.safetensors",
    "merge's first": "merge {} base -o o.safetensors",
    "merge's second": "merge base {} -o o.safetensors",
    "extract's tuned": "extract --tuned {} --base base --rank 2 -o o.safetensors",
    "extract's base": "extract --tuned base --base {} --rank 2 -o o.safetensors",
    "bake's base": "bake --base {} --lora a -o o.safetensors",
    "bake's adapter": "bake --base base --lora {} -o o.safetensors",
    "base add": "base add x {}",
    "train": "train --base {} --images pictures -o o.safetensors --dry-run",
    "preview's base": "preview a --base {} --prompt x -o p.png",
    "preview's adapter": "preview {} --base base --prompt x -o p.png",
}


def _refused(run: Runner, command: str, name: str, says: str) -> None:
    before = {path.name for path in run.folder.iterdir()}
    run.refused(3, *command.format(name).split(), says=says)
    assert {path.name for path in run.folder.iterdir()} == before


_OF_TAIL = ("merge's first", "merge's second", "extract's tuned", "extract's base")


@pytest.mark.parametrize("where", [tail(w) if w in _OF_TAIL else w for w in COMMANDS])
def test_each_command_names_it(where: str, run: Runner) -> None:
    (run.folder / "pictures").mkdir(exist_ok=True)
    for kind, (content, words) in FOREIGN.items():
        (run.folder / f"{kind}.safetensors").write_bytes(content)
        said = "a PyTorch file (a pickle)" if kind == "pickle" else words
        _refused(run, COMMANDS[where], f"{kind}.safetensors", f"this is {said}")


@pytest.mark.parametrize("where", ["inspect", "meta", "base add", "bake's base"])
def test_under_the_name_of_a_pickle_too(where: str, run: Runner) -> None:
    for kind, (content, words) in FOREIGN.items():
        if (where, kind) in {("meta", "zip"), ("base add", "zip")} or (
            kind == "pickle" and where in ("meta", "base add")
        ):
            continue  # what begins as torch's own files do is opened only where its tensors are read
        (run.folder / f"{kind}.ckpt").write_bytes(content)
        _refused(run, COMMANDS[where], f"{kind}.ckpt", f"this is {words}")


@pytest.mark.parametrize("command", ["run {}", "plan {}", "recipes --from-mergekit {}"])
def test_under_the_name_of_a_recipe_too(command: str, run: Runner) -> None:
    for kind, (content, words) in FOREIGN.items():
        (run.folder / f"{kind}.yaml").write_bytes(content)
        said = "a PyTorch file (a pickle)" if kind == "pickle" else words
        _refused(run, command, f"{kind}.yaml", f"this is {said}")
        (run.folder / f"{kind}.safetensors").write_bytes(content)
        if "recipes" not in command:
            _refused(run, command, f"{kind}.safetensors", "this is a")
    (run.folder / "r.yaml").write_text('{"version": 1, "steps": {}}', "utf-8")
    assert "JSON" not in run(*command.format("r.yaml").split()).err


def test_a_base_of_pointers_names_the_file(run: Runner) -> None:
    """A folder that was cloned without its large files."""
    file = run.folder / "cloned" / "unet" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(_POINTER)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "x"]}
    (run.folder / "cloned" / "model_index.json").write_text(json.dumps(index))
    for command in COMMANDS.values():
        if not command.startswith(("meta", "train", "preview a")):  # tests/train has these
            _refused(run, command, "cloned", "this is a Git LFS pointer")


def test_a_folder_of_gguf_files_is_told_from_one_without_weights(run: Runner) -> None:
    (run.folder / "quantised").mkdir()
    (run.folder / "quantised" / "model-Q4_K.gguf").write_bytes(_GGUF)
    for command in COMMANDS.values():
        if not command.startswith(("train", "preview a")):
            result = run(*command.format("quantised").split())
            assert result.code in (3, 4), command
            assert "model-Q4_K.gguf (a GGUF file)" in result.err, command


def test_a_file_given_as_a_folder_of_the_library(run: Runner) -> None:
    run.refused(3, "library", "add", "a.safetensors", says="this is a file, and a folder is needed")


def test_a_folder_of_mlx_without_its_scale_is_refused(run: Runner) -> None:
    (run.folder / "mlx").mkdir()
    (run.folder / "mlx" / "adapter_config.json").write_text('{"fine_tune_type": "lora"}')
    tensors = {"q.lora_a": np.zeros((4, 2), "f4"), "q.lora_b": np.zeros((2, 4), "f4")}
    (run.folder / "mlx" / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    for command in ("inspect mlx", "mix mlx:0.5 -o o.safetensors"):
        run.refused(4, *command.split(), says="does not say its scale")
