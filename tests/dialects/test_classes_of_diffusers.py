"""Adapters of the attention of every transformer of diffusers: their own family, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from loramerge.checkpoint import open_checkpoint
from loramerge.dialects.classify import classify
from loramerge.dialects.detect import detect
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES
from tests.builders.samples import sparse_safetensors
from tests.builders.transformer_classes import Shapes, of_classes, recorded, whole_classes

CLASSES = recorded()
# class → family whose attention has the same names and shapes, so that no adapter of it can tell
TWINS = {
    "AnyFlowFARTransformer3DModel": "wan",
    "AnyFlowTransformer3DModel": "wan",
    "BriaFiboTransformer2DModel": "flux1",
    "BriaTransformer2DModel": "flux1",
    "ChronoEditTransformer3DModel": "wan",
    "ConsisIDTransformer3DModel": "cogvideox",
    "DiTTransformer2DModel": "pixart",
    "HeliosTransformer3DModel": "wan",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan-video",
    "LongCatImageTransformer2DModel": "flux1",
    "MiniMaxMusic3Transformer1DModel": "hunyuan-video-15",
    "MotifVideoTransformer3DModel": "hunyuan-video",
    "NucleusMoEImageTransformer2DModel": "hunyuan-video-15",
    "SanaVideoTransformer3DModel": "sana",
    "SanaWMLTX2RefinerTransformer3DModel": "ltx-2",
}
# further classes whose modules a family has
BRANCHES = {"WanAnimateTransformer3DModel": "wan", "WanVACETransformer3DModel": "wan"}
# class → families whose whole network is nearly the same
ALIKE = {
    "BriaFiboTransformer2DModel": {"longcat-image"},
    "BriaTransformer2DModel": {"longcat-image"},
    "LongCatImageTransformer2DModel": {"longcat-image"},
}
_OWN = {
    family.classes["transformer"]
    for family in FAMILIES.values()
    if "transformer" in family.classes
}  # fmt: skip
# whose default configuration is of a size that no family is
_OTHER_SIZE = {
    "CogView4Transformer2DModel",
    "CosmosTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "SD3Transformer2DModel",
}


def told(shapes: Shapes, head: str = "transformer.", says: Mapping[str, str] = {}) -> Detection:
    """Return the detection of factors of all these layers."""
    keys = [f"{head}{path}.lora_{role}.weight" for path in shapes for role in "AB"]
    groups = classify(keys, {}).groups
    known = {(g.dialect, g.stem): shapes[g.stem.removeprefix(head)] for g in groups}
    return detect(groups, known, says)


@pytest.mark.parametrize("name", CLASSES)
def test_the_attention_of_a_class_is_of_its_family_or_of_none(name: str) -> None:
    found = told(CLASSES[name])
    if name in _OWN - _OTHER_SIZE - TWINS.keys():
        assert any(f.classes.get("transformer") == name for f in found.candidates), found.reason
    elif name in BRANCHES:
        assert found.name == BRANCHES[name]
    elif name in TWINS:
        assert found.name == TWINS[name]
        assert "has the same names and shapes" in found.reason
    else:
        assert found.candidates == (), found.reason


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_names_and_shapes_of_the_family_it_is_taken_for(name: str) -> None:
    of_family = {f"transformer.{path}": shape for path, shape in _attention(TWINS[name])}
    theirs = {f"transformer.{path}": shape for path, shape in CLASSES[name].items()}
    assert any(
        theirs.items()
        <= {path: tuple(size.get(n, n) for n in shape) for path, shape in of_family.items()}.items()
        for size in ({}, *FAMILIES[TWINS[name]].sizes)
    )


def _attention(family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    (component,) = (c for c in FAMILIES[family].components if c.name == "transformer")
    return ((module.path, module.shape) for module in component.modules)


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("EasyAnimateTransformer3DModel", "mochi"),
        ("BriaFibo2Transformer2DModel", "ideogram4"),
        ("SkyReelsV2Transformer3DModel", "wan"),
        ("Kandinsky6SRTransformer3DModel", "kandinsky5"),
    ],
)
def test_the_resembled_family_of_an_unknown_adapter_is_named(name: str, like: str) -> None:
    found = told(CLASSES[name])
    assert like in found.resembles
    assert f"resembles {like}" in found.reason


@pytest.mark.parametrize(
    ("width", "hidden", "family"), [(1536, 8960, "wan"), (3072, 14336, "wan"), (2048, 8192, None)]
)
def test_sizes_of_a_family_are_known(width: int, hidden: int, family: str | None) -> None:
    """Wan has networks of three widths, and its relatives others."""
    stems = {
        f"blocks.{i}.{leaf}": shape
        for i in range(30)
        for leaf, shape in {"attn1.to_q": (width, width), "ffn.net.0.proj": (hidden, width)}.items()
    }
    assert told(stems).name == family


def test_an_adapter_of_the_attention_of_chroma_may_also_be_one_of_flux() -> None:
    """Modules that both have belong to Flux.1, unless the header names Chroma."""
    shared = {
        path: shape
        for path, shape in CLASSES["ChromaTransformer2DModel"].items()
        if "guidance" not in path
    }
    found = told(shared)
    assert found.name == "flux1" and "Chroma" in found.twins
    assert told(shared, says={"modelspec.architecture": "chroma/lora"}).name == "chroma"
    modulated = shared | {"transformer_blocks.0.norm1.linear": (18432, 3072)}
    assert told(modulated).name == "flux1"


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_record_is_that_of_the_installed_diffusers() -> None:
    assert dict(of_classes()) == CLASSES


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_whole_network_of_a_class_is_a_base_of_its_family_or_of_none(tmp_path: Path) -> None:
    """A family whose names are but a part of the network's would leave the rest of an adapter out."""
    pytest.importorskip("diffusers")
    path = tmp_path / "base.safetensors"
    wrong = {}
    for name, shapes in whole_classes():
        sparse_safetensors(path, shapes)
        found = open_checkpoint(path).family_name
        own = {f.name for f in FAMILIES.values() if f.classes.get("transformer") == name}
        own |= {"unknown"} if not own or name in _OTHER_SIZE else set()
        if found not in own | ALIKE.get(name, set()) | {TWINS.get(name), BRANCHES.get(name)}:
            wrong[name] = found
    assert wrong == {}
