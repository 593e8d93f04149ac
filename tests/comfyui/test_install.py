"""`comfyui install` writes its own folder and nothing else, and `uninstall` takes it away again."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from loramerge.cli.main import main
from loramerge.comfyui.install import install
from loramerge.comfyui.words import definitions
from tests.comfyui.examples import EXAMPLES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like ComfyUI."""
    found = tmp_path / "My ComfyUI"
    (found / "custom_nodes" / "another").mkdir(parents=True)
    (found / "custom_nodes" / "another" / "__init__.py").write_text("")
    (found / "folder_paths.py").write_text("")
    (found / "nodes.py").write_text("async def load(module): module.comfy_entrypoint()\n")
    return found


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_there_and_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(root)
    assert main(["comfyui", "install", str(root)]) == 0
    folder = root / "custom_nodes" / "loramerge"
    after = _files(root)
    new = after.keys() - before.keys()
    assert all(name.startswith("custom_nodes/loramerge/") for name in new)
    assert {name.rpartition("/")[2] for name in new} >= {
        "__init__.py",
        "pyproject.toml",
        "main.json",
    }
    for language in ("en", "ja"):
        path = folder / "locales" / language / "nodeDefs.json"
        assert json.loads(path.read_text("utf-8")) == definitions(language)
    for name in EXAMPLES:
        assert (folder / "example_workflows" / f"{name}.json").is_file()
        assert (folder / "example_workflows" / f"{name}.jpg").is_file()
    assert main(["comfyui", "install", str(root)]) == 0
    assert _files(root) == after, "a second time changes nothing"
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"")
    assert main(["comfyui", "uninstall", str(root)]) == 0
    assert _files(root) == before and not folder.exists()
    assert f"removed: {len(new)} files" in capsys.readouterr().out
    assert main(["comfyui", "uninstall", str(root)]) == 0
    assert f"not installed: {folder}" in capsys.readouterr().out


def test_the_folder_imports_the_nodes(root: Path) -> None:
    folder = install(root).folder
    found = runpy.run_path(str(folder / "__init__.py"))
    assert found["comfy_entrypoint"].__module__ == "loramerge.comfyui"


def test_without_the_package_the_folder_says_what_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(root).folder
    monkeypatch.setitem(sys.modules, "loramerge.comfyui", None)
    with pytest.raises(ImportError, match=r"-m pip install \."):
        runpy.run_path(str(folder / "__init__.py"))


def test_the_project_file_is_read_by_the_manager(root: Path) -> None:
    import tomllib

    project = tomllib.loads((install(root).folder / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["name"] == project["tool"]["comfy"]["DisplayName"] == "loramerge"
    assert project["project"]["dependencies"] == [f"loramerge>={project['project']['version']}"]


def test_files_of_others_stay(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = install(root).folder
    (folder / "notes.txt").write_text("mine")
    (folder / "pyproject.toml").write_text("changed")
    assert main(["comfyui", "install", str(root)]) == 3
    assert "this file was changed since it was installed" in capsys.readouterr().err
    assert main(["comfyui", "uninstall", str(root)]) == 0
    assert sorted(_files(folder)) == ["notes.txt", "pyproject.toml"]
    assert "kept, because this command did not write them: notes.txt, pyproject.toml" in (
        capsys.readouterr().out
    )


def test_a_renewal_removes_what_is_no_longer_there(root: Path) -> None:
    folder = install(root).folder
    listing = json.loads((folder / "installed.json").read_text())
    old = folder / "example_workflows" / "old.json"
    old.write_bytes(b"{}")
    listing["files"]["example_workflows/old.json"] = (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    (folder / "installed.json").write_text(json.dumps(listing))
    install(root)
    assert not old.exists()


def test_a_folder_of_this_name_that_is_not_ours(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "custom_nodes" / "loramerge").mkdir()
    (root / "custom_nodes" / "loramerge" / "__init__.py").write_text("theirs")
    assert main(["comfyui", "install", str(root)]) == 3
    assert "a folder of this name that this command did not write" in capsys.readouterr().err
    assert main(["comfyui", "uninstall", str(root)]) == 3
    assert "this command did not write this folder" in capsys.readouterr().err
    assert (root / "custom_nodes" / "loramerge" / "__init__.py").read_text() == "theirs"


@pytest.mark.parametrize(
    "listing", ["", "[]", '{"files": {"../../nodes.py": "x"}}', '{"files": {"/etc/x": "x"}}']
)
def test_a_list_that_cannot_be_trusted(root: Path, listing: str) -> None:
    folder = install(root).folder
    (folder / "installed.json").write_text(listing)
    before = _files(root)
    assert main(["comfyui", "uninstall", str(root)]) == 3
    assert _files(root) == before


def test_folders_that_are_no_comfyui(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for missing in ("nodes.py", "folder_paths.py"):
        content = (root / missing).read_text()
        (root / missing).unlink()
        assert main(["comfyui", "install", str(root)]) == 3
        error = capsys.readouterr().err
        assert "this folder is not a ComfyUI" in error and missing in error
        (root / missing).write_text(content)
    (root / "nodes.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    assert main(["comfyui", "install", str(root)]) == 3
    assert "older than the interface" in capsys.readouterr().err
    assert main(["comfyui", "install", str(tmp_path / "nowhere")]) == 3
    assert "there is no such folder" in capsys.readouterr().err
    assert sorted(path.name for path in (root / "custom_nodes").iterdir()) == ["another"]


def test_the_folder_above_is_a_common_mistake(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = root.rename(root.with_name("ComfyUI"))
    assert main(["comfyui", "install", str(inner.parent)]) == 3
    assert f"give the folder below it: {inner}" in capsys.readouterr().err
