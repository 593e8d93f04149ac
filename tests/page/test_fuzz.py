"""Requests made by chance: whatever they hold, the answer is JSON, and never a bug."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.page.serving import Served, served

pytest.importorskip("starlette")

from starlette.routing import Route

from loramerge.errors import UsageError
from loramerge.page.forms import forms
from loramerge.page.routes import routes

pytestmark = pytest.mark.xdist_group("page")
FORMS = forms()
NUMBERS = {"{id}": "0", "{number}": "0"}
PATHS = {
    method: sorted(
        one.path for one in routes() if isinstance(one, Route) and method in (one.methods or ())
    )
    for method in ("GET", "POST", "DELETE")
}
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["zuzu", "zuzu:0.5", "polka:OUTALL", "tiny", "..", "/", "a\0b", "~", "*", "hf:a/b", "x.yaml",
         "version: 1\nsteps: {}", "1,0,0", "nan", "${w}", "tags:\n- a", "zuzu:te=0:unet=1e400"]
    ),
)  # fmt: skip
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), texts,
        st.integers(-(10**60), 10**60),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@st.composite
def actions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a verb with values for some of its words."""
    verb = draw(st.sampled_from(sorted(FORMS)))
    words = [one["word"] for one in FORMS[verb]["parameters"]]
    found = draw(st.dictionaries(st.sampled_from(words), values, max_size=4))
    for one in FORMS[verb]["parameters"]:
        if one["required"] and draw(st.booleans()):
            found[one["word"]] = ["zuzu"] if one["many"] else "zuzu"
    return {"verb": verb, "values": found}


WORDS = ("verb", "values", "kind", "latest", "path", "text", "recipe", "set", "force", "folder",
         "tags", "note", "rating", "relations")  # fmt: skip
bodies = st.one_of(
    values, st.dictionaries(st.sampled_from(WORDS), values, max_size=5), actions(),
    actions().map(lambda one: {**one, "kind": "plan", "latest": "a"}),
)  # fmt: skip


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that starts no job and asks no worker."""
    place = tmp_path_factory.mktemp("idle")

    async def ask(request: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        if request["do"] in ("describe", "duplicates", "enter"):  # what the library asks for itself
            raise UsageError("nothing is computed here")
        return {"asked": sorted(request)}

    with served(place, store=place / "jobs") as found:
        shared = found.app.state.page
        shared.jobs.let_go()
        shared.live.ask = ask
        yield found


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS["POST"]), body=bodies)
def test_no_body_makes_a_bug(idle: Served, path: str, body: Any) -> None:
    for word, number in NUMBERS.items():
        path = path.replace(word, number)
    found = idle.post(path, body)
    assert found.status < 500, (path, body, found.body)
    assert found.headers["content-type"] == "application/json"
    if found.status != 200:
        assert "error" in found.body or found.body == {"replaced": True}


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from([*PATHS["GET"], *PATHS["DELETE"]]),
    part=st.text(max_size=8),
    query=st.dictionaries(
        st.sampled_from(["folder", "kind", "words", "sort", "offset", "limit", "family", "token"]),
        st.one_of(texts, st.integers().map(str)),
        max_size=3,
    ),
)
def test_no_address_makes_a_bug(idle: Served, path: str, part: str, query: dict[str, str]) -> None:
    if path == "/api/events":
        return
    number = quote(part.encode("utf-8", "replace"), safe="") or "0"
    for word in ("{id}", "{number}", "{path}", "{name}"):
        path = path.replace(word, number)
    asked = "&".join(f"{k}={quote(v.encode('utf-8', 'replace'))}" for k, v in query.items())
    for method in ("GET", "DELETE", "POST"):
        found = idle.ask(method, f"{path}?{asked}")
        assert found.status < 500, (method, path, asked, found.body)


def test_the_fuzz_reaches_actions_that_are_taken(idle: Served, tmp_path: Path) -> None:
    found = idle.post(
        "/api/live", {"kind": "plan", "verb": "mix", "values": {"adapters": ["zuzu"]}}
    )
    assert found.status == 200
