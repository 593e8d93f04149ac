"""Several files describe the package, and they agree."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import loramerge

ROOT = Path(__file__).parents[1]


def test_version_and_licence_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(loramerge.__file__)
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    said = dict(re.findall(r"^(version|license): (\S+)$", citation, re.MULTILINE))
    assert said == {"version": loramerge.__version__, "license": project["project"]["license"]}
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_everything_that_is_named_goes_into_the_source_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name).exists() for name in names)


def test_the_files_of_the_page_go_into_both_packages() -> None:
    """hatch packs what lies in the package, unless `.gitignore` or the project leaves it out."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    assert build.keys() == {"targets"}
    assert build["targets"]["wheel"].keys() == {"packages", "force-include"}
    assert build["targets"]["sdist"].keys() == {"include"}
    ignored = [one.strip("/") for one in (ROOT / ".gitignore").read_text("utf-8").split()]
    static = ROOT / "loramerge" / "page" / "static"
    parts = {part for path in static.rglob("*") for part in path.relative_to(ROOT).parts}
    assert [one for one in ignored for part in parts if fnmatch(part, one)] == []
    assert (static / "index.html").is_file()
