"""The nodes compute what the command line does, and their recipes repeat it to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loramerge.algebra.operators import OPERATORS
from loramerge.cli.main import main
from loramerge.errors import LoramergeError, UsageError
from loramerge.recipe import made as recipe_made
from tests.comfyui import narrow
from tests.comfyui.conftest import Runner
from tests.comfyui.stub import Interrupted, World

PAIR = {
    "adapter_1": "character.safetensors", "weight_1": 0.7,
    "adapter_2": "style.safetensors", "weight_2": -0.3,
}  # fmt: skip


def _stack(runner: Runner) -> Any:
    (stack,) = runner.run("LoramergeLoadStack", **PAIR)
    return stack


def _on_command_line(world: World, *words: str) -> bytes:
    """Run a command on the same files, and return what it writes."""
    path = world.root / "by-command.safetensors"
    assert main([*words, "-o", str(path), "--force", "-q"]) == 0
    return path.read_bytes()


def _pair(world: World) -> tuple[str, str]:
    return (
        f"{world.loras / 'character.safetensors'}:0.7",
        f"{world.loras / 'style.safetensors'}:-0.3",
    )


def _repeated(recipe: Path, output: Path) -> bytes:
    """Run a recipe on the command line, and return what it writes to a path."""
    output.unlink(missing_ok=True)
    assert main(["run", str(recipe), "-q"]) == 0
    return output.read_bytes()


def _saved(runner: Runner, adapter: Any, **form: str) -> tuple[bytes, bytes]:
    """Return the bytes of the node that saves, and those that its recipe gives."""
    named = {"adapter": adapter, "name": "t/mix", "if_exists": "replace", **form}
    (path,) = runner.run("LoramergeSave", **named)
    written = Path(path).read_bytes()
    _, recipe = runner.run("LoramergeSaveRecipe", **named)
    assert Path(recipe) == Path(path).with_suffix(".yaml")
    return written, _repeated(Path(recipe), Path(path))


@pytest.mark.parametrize("method", sorted(OPERATORS))
def test_every_operator_gives_the_bytes_of_the_command(
    method: str, world: World, runner: Runner
) -> None:
    operator = OPERATORS[method]
    least, most = operator.inputs
    if least > 2 or (most is not None and most < 2):
        pytest.skip("it takes another number of adapters")
    try:
        adapter, report = runner.run("LoramergeMix", stack=_stack(runner), method=method)
    except LoramergeError as error:
        code = main(
            ["mix", *_pair(world), "--method", method, "-o", str(world.root / "x.safetensors")]
        )
        assert code == error.exit_code
        return
    written, repeated = _saved(runner, adapter)
    assert written == repeated == _on_command_line(world, "mix", *_pair(world), "--method", method)
    assert "modules: " in report and f"method: {method}" in report


def test_options_are_those_of_recipes(world: World, runner: Runner) -> None:
    adapter, _ = runner.run(
        "LoramergeMix",
        stack=_stack(runner),
        method="ties",
        rank=2,
        scale="literal",
        options="density: {default: 0.5, match: {'*attn*': 0.9}}\nembeddings: first",
    )
    words = ("--method", "ties", "--rank", "2", "--scale", "literal")
    more = ("--density", "0.5:*attn*=0.9", "--embeddings", "first")
    written, repeated = _saved(runner, adapter)
    assert written == repeated == _on_command_line(world, "mix", *_pair(world), *words, *more)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("densty: 0.5", "did you mean 'density'"),
        ("rank: 4", "given twice"),
        ("density 0.5", "options cannot be read"),
        ("density: [", "options cannot be read"),
        ("to: peft", "'to' is not a parameter here"),
        ("output: x", "'output' is not a parameter here"),
        ("base: /somewhere/else.safetensors", "'base' is not a parameter here"),
        ("skip_unknown: true", "'skip_unknown' is not a parameter here"),
        ("density: 3", "density cannot be 3"),
    ],
)
def test_options_that_are_refused(options: str, problem: str, runner: Runner) -> None:
    with pytest.raises(UsageError, match=problem):
        runner.run("LoramergeMix", stack=_stack(runner), method="ties", rank=8, options=options)


def test_a_chain_of_nodes_is_a_recipe(world: World, runner: Runner) -> None:
    """Block weights, a mix of a mix, a resize, and another dialect and type."""
    (style,) = runner.run("LoramergeLoad", adapter="style.safetensors")
    (stack,) = runner.run("LoramergeBlockWeights", adapter=style, weights="unet=0.5:te=0")
    inner, _ = runner.run("LoramergeMix", stack=stack)
    small, report = runner.run("LoramergeResize", adapter=inner, rank=1)
    assert "ranks after: 1 (" in report
    pairs = runner.run("LoramergeBlockWeights", adapter=small, weights="0.25", stack=_stack(runner))
    outer, _ = runner.run("LoramergeMix", stack=pairs[0])
    for form in ({}, {"dialect": "diffusers", "dtype": "float16"}, {"dtype": "bfloat16"}):
        written, repeated = _saved(runner, outer, **form)
        assert written == repeated, form


def test_a_file_saved_as_it_was_read_is_a_conversion(world: World, runner: Runner) -> None:
    (style,) = runner.run("LoramergeLoad", adapter="style.safetensors")
    written, repeated = _saved(runner, style, dialect="diffusers")
    path = str(world.loras / "style.safetensors")
    assert written == repeated == _on_command_line(world, "convert", path, "--to", "diffusers")


def test_a_recipe_without_its_weights_would_be_found(
    world: World, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = runner.run("LoramergeMix", stack=_stack(runner))
    right = recipe_made.recipe_of_made

    def wrong(*given: Any) -> str:
        return right(*given).replace("weight: 0.7", "weight: 1.0")

    monkeypatch.setattr("loramerge.comfyui.running.recipe_of_made", wrong)
    written, repeated = _saved(runner, adapter)
    assert written != repeated


def test_extract(world: World, runner: Runner) -> None:
    for name, seed in (("tuned", 1), ("base", 0)):
        narrow.write_checkpoint(world.checkpoints / f"{name}.safetensors", seed=seed)
    chosen = {"tuned": "checkpoints/tuned.safetensors", "base": "checkpoints/base.safetensors"}
    adapter, _ = runner.run("LoramergeExtract", **chosen, rank=2)
    written, repeated = _saved(runner, adapter)
    paths = [str(world.root / "models" / chosen[name]) for name in ("tuned", "base")]
    words = ("extract", "-t", paths[0], "-b", paths[1], "--rank", "2")
    assert written == repeated == _on_command_line(world, *words)
    with pytest.raises(UsageError, match="extract needs to know what to keep"):
        runner.run("LoramergeExtract", **chosen)


def test_bake_writes_the_bytes_of_the_command_and_of_its_recipe(
    world: World, runner: Runner
) -> None:
    narrow.write_checkpoint(world.checkpoints / "narrow.safetensors")
    chosen = {"base": "checkpoints/narrow.safetensors", "stack": _stack(runner)}
    for more, words in (
        ({}, ()),
        ({"rounding": "stochastic", "seed": 3}, ("--rounding", "stochastic", "--seed", "3")),
        ({"allow_loss": True, "options": "keep_touched: float32"}, ("--keep-touched", "float32")),
    ):
        path, recipe, report = runner.run("LoramergeBake", **chosen, if_exists="replace", **more)
        beside = Path(path).with_suffix(".yaml")
        assert beside.read_text("utf-8") == recipe
        assert ("allow_loss: true" in recipe) == ("allow_loss" in more)
        written = Path(path).read_bytes()
        base = str(world.checkpoints / "narrow.safetensors")
        assert written == _on_command_line(world, "bake", "-b", base, *_pair(world), *words)
        assert written == _repeated(beside, Path(path))
        assert "kept" in report


def test_merge_writes_the_bytes_of_the_command_and_of_its_recipe(
    world: World, runner: Runner
) -> None:
    paths = {}
    for seed, name in enumerate("abc"):
        paths[name] = str(world.checkpoints / f"{name}.safetensors")
        narrow.write_checkpoint(Path(paths[name]), seed=seed)
    a, b, c = (f"checkpoints/{name}.safetensors" for name in "abc")
    two = {"model_a": a, "model_b": b, "weight_b": 0.25, "if_exists": "replace"}
    pair = _pair(world)
    for more, words in (
        (
            {"base": c, "method": "ties", "options": "density: 0.5"},
            (paths["a"], f"{paths['b']}:0.25", "-b", paths["c"], "--method", "ties", "--density", "0.5"),
        ),
        (
            {"model_c": c, "weight_c": 0.5, "stack": _stack(runner), "text_encoder": b},
            (paths["a"], f"{paths['b']}:0.25", f"{paths['c']}:0.5", *pair, "--text-encoder", paths["b"]),
        ),
    ):  # fmt: skip
        path, _, _ = runner.run("LoramergeMerge", **two, **more)
        written = Path(path).read_bytes()
        assert written == _on_command_line(world, "merge", *words), more
        assert written == _repeated(Path(path).with_suffix(".yaml"), Path(path)), more


def test_inspect_shows_text_and_blocks(runner: Runner) -> None:
    torch = pytest.importorskip("torch")
    (style,) = runner.run("LoramergeLoad", adapter="style.safetensors")
    text, picture = runner.run("LoramergeInspect", adapter=style)
    assert "family: narrow" in text and "ranks: 2 (" in text and "No problems found." in text
    assert picture.dtype == torch.float32 and picture.shape[0] == 1 and picture.shape[3] == 3
    assert 0.0 <= float(picture.min()) < 0.5 and float(picture.max()) == 1.0


def test_cancelling_ends_the_node_and_leaves_no_file(world: World, runner: Runner) -> None:
    narrow.write_checkpoint(world.checkpoints / "narrow.safetensors")
    stack = _stack(runner)
    world.cancelled = True
    with pytest.raises(Interrupted):
        runner.run("LoramergeBake", base="checkpoints/narrow.safetensors", stack=stack)
    assert not [path for path in world.output.rglob("*") if path.is_file()]


def test_an_empty_stack_is_refused(runner: Runner) -> None:
    (stack,) = runner.run("LoramergeLoadStack", adapter_1="style.safetensors", weight_1=0.0)
    assert stack == ()
    with pytest.raises(UsageError, match="the stack has no adapters"):
        runner.run("LoramergeMix", stack=stack)
