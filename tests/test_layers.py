"""Imports go one way, and heavy packages stay where they belong."""

import ast
from pathlib import Path

import pytest

import loramerge

ROOT = Path(loramerge.__file__).parent
# each may import what stands after it; names on one line are siblings and may not import each other
FLOORS = (
    ("__main__",),
    ("cli",),
    ("tiny",),
    ("api",),
    ("recipe",),
    ("verbs",),
    ("steps",),
    ("train", "library"),
    ("stream",),
    ("algebra",),
    ("adapter", "checkpoint"),
    ("dialects",),
    ("families",),
    ("files",),
    ("parameters",),
    ("errors", "events"),
)
FLOOR = {name: index for index, names in enumerate(FLOORS) for name in names}
ONLY_IN = {
    "click": {"cli"},
    "rich": {"cli"},
    "pydantic": {"recipe"},
    "diffusers": {"train", "tiny"},
    "transformers": {"train", "tiny"},
    "accelerate": {"train"},
}
NEVER_AT_MODULE_LEVEL = {"torch", "diffusers", "transformers", "safetensors", "ruamel"}
AT_MODULE_LEVEL = {"train": {"torch"}, "tiny": {"torch"}}  # whoever imports train wants it


def _imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree)
    if top_level_only:
        nodes = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def _floor_of(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def _broken(path, floor):
    found = []
    for name in _imports(path):
        if not name.startswith("loramerge."):
            continue
        target = name.split(".")[1]
        if target in FLOOR and target != floor and FLOOR[target] <= FLOOR[floor]:
            found.append(name)
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path):
    # a program stands above all, wherever it lies
    floor = "__main__" if path.name == "__main__.py" else _floor_of(path)
    assert _broken(path, floor) == []


def test_nothing_imports_a_program():
    for path in FILES:
        assert not [name for name in _imports(path) if name.endswith("__main__")], path


def test_an_upward_import_would_be_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from loramerge.verbs.mix import mix\n", "utf-8")
    assert _broken(wrong, "algebra") == ["loramerge.verbs.mix"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_packages_stay_where_they_belong(path):
    floor = _floor_of(path)
    for name in _imports(path):
        package = name.split(".")[0]
        assert floor in ONLY_IN.get(package, {floor}), f"{name} does not belong in {floor}"
    for name in _imports(path, top_level_only=True):
        never = NEVER_AT_MODULE_LEVEL - AT_MODULE_LEVEL.get(floor, set())
        assert name.split(".")[0] not in never, f"{name} at module level"


def test_nothing_imports_train_at_module_level():
    """It brings torch, which only training, and nothing else, may cost."""
    for path in FILES:
        if _floor_of(path) not in ("train", "tiny"):
            assert not [n for n in _imports(path, top_level_only=True) if "loramerge.train" in n]
