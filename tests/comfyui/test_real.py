"""The nodes in ComfyUI itself, on a narrow Stable Diffusion and the CPU.

    LORAMERGE_COMFYUI=~/ComfyUI python -m pytest -n 0 -m slow tests/comfyui

starts the checkout without its server. Packages that it imports and that are not installed are left
empty; the nodes need none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.cli.main import main
from loramerge.comfyui.install import install
from loramerge.comfyui.known import known_nodes
from loramerge.comfyui.words import definitions, menu
from loramerge.families import FAMILIES
from tests.builders.bases import read_safetensors
from tests.comfyui import narrow
from tests.comfyui.examples import EXAMPLES, Box, as_prompt

pytestmark = [pytest.mark.slow, pytest.mark.peers]
pytest.importorskip("torch")
CHECKOUT = os.environ.get("LORAMERGE_COMFYUI", "")
ENCODER = "cond_stage_model."
# at its end ComfyUI's loader says so of every file without one
NO_VAE = "WARNING: No VAE weights detected, VAE not initalized."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, with the nodes installed."""
    if not CHECKOUT:
        pytest.skip("LORAMERGE_COMFYUI names no checkout")
    found = tmp_path_factory.mktemp("comfyui")
    for folder in ("checkpoints", "loras", "diffusion_models"):
        (found / "models" / folder).mkdir(parents=True)
    for folder in ("output", "input", "temp", "custom_nodes"):
        (found / folder).mkdir()
    for name in ("nodes.py", "folder_paths.py"):  # what `install` looks for
        (found / name).write_bytes((Path(CHECKOUT) / name).read_bytes())
    install(found)
    models = found / "models"
    with FAMILIES.adding(narrow.family_of(narrow.WORDS_IN_COMFYUI)):
        for name, dtype, seed in (
            ("sd15", "F16", 0),
            ("sd15-tuned", "F16", 1),
            ("whole", "F32", 0),
        ):
            narrow.write_checkpoint(
                models / "checkpoints" / f"{name}.safetensors",
                dtype,
                seed,
                words=narrow.WORDS_IN_COMFYUI,
            )
        narrow.write_adapter(models / "loras" / "character.safetensors", 4, 1)
        narrow.write_adapter(models / "loras" / "style.safetensors", 6, 2)
    return found


def _run(base: Path, *workflows: Any) -> Any:
    """Run workflows in ComfyUI; return its report."""
    job = base / "job.json"
    job.write_text(
        json.dumps({"base": str(base), "report": str(base / "report.json"), "workflows": workflows})
    )
    script = Path(narrow.__file__).with_name("driver.py")
    done = subprocess.run(
        [sys.executable, str(script), CHECKOUT, str(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((base / "report.json").read_text("utf-8"))


def _without_vae(graph: dict[str, Box]) -> dict[str, Box]:
    """Return the example with the latent saved, as the narrow checkpoint has no VAE."""
    return {name: box for name, box in graph.items() if box.kind not in ("VAEDecode", "SaveImage")}


def test_the_examples_run_without_warnings(base: Path) -> None:
    prompts = []
    for graph in EXAMPLES.values():
        prompt = as_prompt(_without_vae(dict(graph)))
        if "sample" in prompt:
            prompt["sample"]["inputs"]["steps"] = 2
            prompt["latent"]["inputs"] |= {"width": 64, "height": 64}
            prompt["end"] = {
                "class_type": "SaveLatent",
                "inputs": {"samples": ["sample", 0], "filename_prefix": "latent"},
            }
        prompts.append(prompt)
    report = _run(base, *prompts)
    assert report["loading"] == []
    assert report["nodes"].keys() == {node.name for node in known_nodes()}
    for language in ("en", "ja"):
        own = report["translations"][language]
        assert own["nodeDefs"] == definitions(language)
        assert own["nodeCategories"] == menu(language)["nodeCategories"]
    for name, run in zip(EXAMPLES, report["runs"], strict=True):
        assert run["errors"] == [], name
        assert [text for text in run["log"] if text != NO_VAE] == [], name
    assert list((base / "output").glob("latent*.latent"))
    _check_recipes(base)


def _check_recipes(base: Path) -> None:
    """The command line repeats the files of the examples to the byte."""
    recipes = sorted((base / "output").rglob("*.yaml"), key=lambda path: path.stem)
    assert [path.stem for path in recipes] == ["baked", "extracted", "merged", "mix"]
    with FAMILIES.adding(narrow.family_of(narrow.WORDS_IN_COMFYUI)):
        for recipe in recipes:
            path = recipe.with_suffix(".safetensors")
            written = path.read_bytes()
            path.unlink()
            assert main(["run", str(recipe), "-q"]) == 0
            assert path.read_bytes() == written, recipe.stem


def _apply(base: Path, checkpoint: str, stack: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow that writes the weights of a model with a stack applied."""
    return {
        **stack,
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "apply": {
            "class_type": "LoramergeApply",
            "inputs": {
                "stack": ["stack", 0], "model": ["base", 0], "clip": ["base", 1], "missing": "refuse"
            },
        },
        "dump": {
            "class_type": "TestDump",
            "inputs": {
                "model": ["apply", 0], "clip": ["apply", 1], "path": str(base / f"{checkpoint}.npz")
            },
        },
    }  # fmt: skip


def _weighted_stack() -> dict[str, Any]:
    """Two adapters, one of them with weights for components and modules."""
    return {
        "style": {"class_type": "LoramergeLoad", "inputs": {"adapter": "style.safetensors"}},
        "blocks": {
            "class_type": "LoramergeBlockWeights",
            "inputs": {
                "adapter": ["style", 0], "preset": "none",
                "weights": "{unet: 0.5, text_encoder: -1, match: {'*attn2*': 1.5}}",
            },
        },
        "stack": {
            "class_type": "LoramergeLoadStack",
            "inputs": {
                f"{word}_{n}": value
                for n in range(1, 5)
                for word, value in (
                    ("adapter", "character.safetensors" if n == 1 else "none"),
                    ("weight", 0.7),
                )
            }
            | {"stack": ["blocks", 0]},
        },
    }  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [("sd15", "F16"), ("whole", "F32")])
def test_apply_gives_the_weights_of_a_bake(name: str, dtype: str, base: Path) -> None:
    report = _run(base, _apply(base, f"{name}.safetensors", _weighted_stack()))
    assert report["runs"][0]["errors"] == []
    loras = base / "models" / "loras"
    weights = base / "weights.yaml"
    weights.write_text("{unet: 0.5, text_encoder: -1, match: {'*attn2*': 1.5}}\n")
    path = base / "models" / "checkpoints" / f"{name}.safetensors"
    baked = base / f"{name}-baked.safetensors"
    words = [f"{loras / 'style.safetensors'}", f"{loras / 'character.safetensors'}:0.7"]
    more = [
        "--weights",
        f"{loras / 'style.safetensors'}={weights}",
        "-o",
        str(baked),
        "-q",
        "--force",
    ]
    with FAMILIES.adding(narrow.family_of(narrow.WORDS_IN_COMFYUI)):
        assert main(["bake", "-b", str(path), *words, *more]) == 0
    before, after = read_safetensors(path)[0], read_safetensors(baked)[0]
    with np.load(base / f"{name}.safetensors.npz") as found:
        applied = {key: found[key].astype(np.float64) for key in found.files}
    changed = 0
    for key, value in after.items():
        own, kept = applied[_in_comfyui(key)], value.astype(np.float64)
        start = before[key].astype(np.float64)
        change = kept - start
        changed += bool(change.any())
        if dtype == "F32" and not key.startswith(ENCODER):
            error = np.linalg.norm(own - kept)
            assert error <= 1e-6 * np.linalg.norm(change), (key, error)
        else:  # ComfyUI holds text encoders in float16, so both round to such numbers
            largest = np.abs(kept) if dtype == "F16" else np.maximum(np.abs(kept), np.abs(start))
            units = np.spacing(largest.astype(np.float16)).astype(np.float64)
            assert np.max(np.abs(own - kept) / units) <= 1.0, key
    assert changed == len({key.partition(".")[0] for key in narrow.adapter_tensors(1, 0)})


def _in_comfyui(key: str) -> str:
    if key.startswith(ENCODER):
        return f"clip.clip_l.{key.removeprefix(ENCODER)}"
    return f"unet.diffusion_model.{key.removeprefix('model.diffusion_model.')}"


def test_an_unchanged_workflow_is_not_run_again(base: Path) -> None:
    """ComfyUI keeps the outputs of a node whose files are the same, and drops them if not."""
    stack = _weighted_stack()
    stack["report"] = {"class_type": "LoramergeMix", "inputs": _mix() | {"stack": ["stack", 0]}}
    stack["end"] = {"class_type": "PreviewAny", "inputs": {"source": ["report", 1]}}
    report = _run(base, stack, stack)
    first, second = report["runs"]
    assert first["errors"] == second["errors"] == [] and first["cached"] == []
    assert {"style", "stack", "report"} <= set(second["cached"])


def _mix() -> dict[str, Any]:
    return {
        "method": "linear", "scale": "", "correction": "none", "rank": 0, "energy": 0.0,
        "max_size": "", "max_error": 0.0, "fair": False, "base": "none", "options": "",
    }  # fmt: skip


def test_an_error_reaches_the_user_in_one_piece(base: Path) -> None:
    stack = _weighted_stack()
    stack["mix"] = {
        "class_type": "LoramergeMix",
        "inputs": _mix() | {"stack": ["stack", 0], "options": "densty: 1"},
    }
    stack["end"] = {"class_type": "PreviewAny", "inputs": {"source": ["mix", 1]}}
    (run,) = _run(base, stack)["runs"]
    assert "'densty' is not a parameter here" in run["errors"][0]
    assert "did you mean 'density'?" in run["errors"][0]
