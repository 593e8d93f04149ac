"""Imports go one way, and heavy packages stay where they belong."""

import ast
from functools import cache
from pathlib import Path

import pytest

import loramerge

pytestmark = pytest.mark.xdist_group("imports of all files")  # which are read once
ROOT = Path(loramerge.__file__).parent
# each may import what stands after it; names on one line are siblings and may not import each other
FLOORS = (
    ("__main__",),
    ("cli",),
    ("tiny", "comfyui", "page"),
    ("recipe",),
    ("api",),
    ("verbs", "signatures"),
    ("steps",),
    ("train",),
    ("report", "library"),
    ("stream",),
    ("algebra",),
    ("adapter", "checkpoint"),
    ("dialects",),
    ("families",),
    ("files",),
    ("parameters",),
    ("habits", "events"),
    ("errors", "discovery", "interruption"),
    ("records",),
)
# the rooms inside train/, read alike
ROOMS = (
    ("__init__", "session", "dry_run"),
    ("prepare",),
    ("preamble",),
    ("drawing",),
    ("run",),
    ("memory",),
    ("models",),
    ("lora", "dataset", "device"),
    ("spec",),
)


def _numbered(floors):
    return {name: index for index, names in enumerate(floors) for name in names}


FLOOR, ROOM = _numbered(FLOORS), _numbered(ROOMS)
ONLY_IN = {
    "click": {"cli"},
    "rich": {"cli"},
    "pydantic": {"recipe"},
    "diffusers": {"train", "tiny"},
    "transformers": {"train", "tiny"},
    "accelerate": {"train"},
    "starlette": {"page"},
    "uvicorn": {"page"},
}
NEVER_AT_MODULE_LEVEL = {"torch", "diffusers", "transformers", "safetensors", "ruamel"}
AT_MODULE_LEVEL = {"train": {"torch"}, "tiny": {"torch"}}  # whoever imports train wants it


@cache
def _import_nodes(path):
    """Return the imports of a file, and those of them that stand at its top level."""
    tree = ast.parse(path.read_text("utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    top = {id(node) for node in tree.body}
    return found, [node for node in found if id(node) in top]


def _imports(path, *, top_level_only=False):
    for node in _import_nodes(path)[top_level_only]:
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


def test_imports_go_one_way():
    # a program stands above all, wherever it lies
    floors = {path: "__main__" if path.stem == "__main__" else _floor_of(path) for path in FILES}
    broken = {str(path): _broken(path, floor) for path, floor in floors.items()}
    assert {path: names for path, names in broken.items() if names} == {}


def test_rooms_of_train_import_one_way():
    found = []
    for path in sorted((ROOT / "train").rglob("*.py")):
        room = path.relative_to(ROOT / "train").parts[0].removesuffix(".py")
        for name in _imports(path):
            if not name.startswith("loramerge.train."):
                continue
            target = name.split(".")[2]
            if target != room and ROOM[target] <= ROOM[room]:
                found.append(f"{path}: {room} imports {name}")
    assert found == []


def test_every_room_has_its_place():
    """A new folder must be put on a floor, or nothing holds it to one."""
    for folder, known in ((ROOT, FLOOR), (ROOT / "train", ROOM)):
        there = {p.name.removesuffix(".py") for p in folder.iterdir() if _is_module(p)}
        assert there - {"__init__"} <= set(known), folder


def _is_module(path):
    return path.suffix == ".py" or (path / "__init__.py").exists()


# ---- no two files import each other, be it over others, or for types alone --------------------


def _module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _graph(paths):
    """Return module → modules of the same package that it imports, at any depth."""
    modules = {_module_of(path): path for path in paths}
    graph = {}
    for module, path in modules.items():
        found = set()
        for node in _import_nodes(path)[0]:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                # of a package's own names its __init__ is what is imported
                found |= {name if name in modules else node.module for name in whole}
        graph[module] = (found & set(modules)) - {module}
    return graph


def _cycles(graph):
    """Return the groups of modules that reach each other (Tarjan)."""
    order, low, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in graph[module]:
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_no_import_cycles():
    """`import loramerge` itself is lazy, and whoever needs its version may ask it."""
    graph = _graph([ROOT / "__init__.py", *FILES])
    graph["loramerge"] = set()
    assert _cycles(graph) == []


def test_a_cycle_would_be_found():
    assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert _cycles({"a": {"b"}, "b": set()}) == []


def test_nothing_imports_a_program():
    for path in FILES:
        assert not [name for name in _imports(path) if name.endswith("__main__")], path


def test_an_upward_import_would_be_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from loramerge.verbs.mix import mix\n", "utf-8")
    assert _broken(wrong, "algebra") == ["loramerge.verbs.mix"]


def test_packages_stay_where_they_belong():
    found = []
    for path in FILES:
        floor = _floor_of(path)
        never = NEVER_AT_MODULE_LEVEL - AT_MODULE_LEVEL.get(floor, set())
        found += [
            f"{path}: {name} does not belong in {floor}"
            for name in _imports(path)
            if floor not in ONLY_IN.get(name.split(".")[0], {floor})
        ]
        found += [
            f"{path}: {name} at module level"
            for name in _imports(path, top_level_only=True)
            if name.split(".")[0] in never
        ]
    assert found == []


def test_nothing_imports_train_at_module_level():
    """It brings torch, which only training, and nothing else, may cost."""
    for path in FILES:
        if _floor_of(path) not in ("train", "tiny"):
            assert not [n for n in _imports(path, top_level_only=True) if "loramerge.train" in n]
