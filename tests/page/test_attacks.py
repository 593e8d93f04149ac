"""Attacks on the page: who may ask, and which files it touches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.samples import safetensors_bytes
from tests.builders.world import rewrite
from tests.page.serving import TOKEN, Answer, Served

pytest.importorskip("starlette")


from loramerge.errors import UsageError
from loramerge.library.shipped import shipped
from loramerge.page.guard import Guard
from loramerge.page.places import Places
from loramerge.page.serve import serve

pytestmark = pytest.mark.xdist_group("page")
_SMALL = safetensors_bytes({"a": np.zeros(2, "f4")})
ALWAYS = ("content-security-policy", "referrer-policy", "x-content-type-options", "cache-control")


# --- who may ask ---------------------------------------------------------------------------------

# headers beside a request that would be answered → status, and the check that refuses it
INTRUDERS: dict[str, tuple[dict[str, str | None], int, str]] = {
    "another page": ({"origin": "http://evil.example"}, 403, "_origin"),
    "a file": ({"origin": "null"}, 403, "_origin"),
    "the same host under another scheme": ({"origin": "https://HOST"}, 403, "_origin"),
    "a page of another port": ({"origin": "http://127.0.0.1:1"}, 403, "_origin"),
    "another name of this computer": ({"host": "evil.example:80"}, 421, "_host"),
    "no port": ({"host": "127.0.0.1"}, 421, "_host"),
    "an empty host": ({"host": ""}, 421, "_host"),
    "a request of another site": ({"sec-fetch-site": "cross-site"}, 403, "_site"),
    "a request of a sister site": ({"sec-fetch-site": "same-site"}, 403, "_site"),
    "no token": ({TOKEN: None}, 401, "_secret"),
    "an empty token": ({TOKEN: ""}, 401, "_secret"),
    "a wrong token": ({TOKEN: "secreT"}, 401, "_secret"),
    "part of the token": ({TOKEN: "secre"}, 401, "_secret"),
    "a cookie": ({TOKEN: None, "cookie": "token=secret"}, 401, "_secret"),
    "another header": ({TOKEN: None, "authorization": "Bearer secret"}, 401, "_secret"),
}


def _intrude(page: Served, name: str) -> Answer:
    headers = {n: v and v.replace("HOST", page.address) for n, v in INTRUDERS[name][0].items()}
    return page.get("/api/about", headers=headers)


@pytest.mark.parametrize("name", INTRUDERS)
def test_a_request_from_elsewhere_is_refused(name: str, page: Served) -> None:
    found = _intrude(page, name)
    assert found.status == INTRUDERS[name][1]
    assert set(found.body) == {"error"}  # and says nothing else
    assert "secret" not in json.dumps(found.body)


@pytest.mark.parametrize("check", ["_origin", "_host", "_site", "_secret"])
def test_a_guard_without_one_of_its_checks_lets_these_requests_in(
    check: str, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = tuple(one for one in Guard.checks if one.__name__ != check)
    monkeypatch.setattr(Guard, "checks", rest)
    for name, (_, _, by) in INTRUDERS.items():
        assert (_intrude(page, name).status == 200) == (by == check), name


def test_the_page_itself_may_ask(page: Served) -> None:
    own = {"origin": f"http://{page.address}", "sec-fetch-site": "same-origin"}
    assert page.get("/api/about", headers=own).status == 200
    assert page.get(f"/?token={page.token}", headers={TOKEN: None}).status == 200
    assert page.get("/", headers={TOKEN: None}).status == 401
    link = {TOKEN: None, "sec-fetch-site": "cross-site"}  # from a terminal in a browser
    assert page.get(f"/?token={page.token}", headers=link).status == 200
    assert page.get("/", headers=link).status == 401
    assert page.get(f"/picture/a.png?token={page.token}", headers=link).status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/about"),
        ("POST", "/api/jobs"),
        ("POST", "/api/upload"),
        ("DELETE", "/api/jobs/1"),
    ],
)
def test_a_token_in_the_address_is_taken_only_for_what_a_browser_fetches_itself(
    method: str, path: str, page: Served
) -> None:
    assert page.ask(method, f"{path}?token={page.token}", headers={TOKEN: None}).status == 401


def test_two_hosts_or_two_origins_are_refused(page: Served) -> None:
    for name in ("host", "origin"):
        head = [f"Host: {page.address}", f"{TOKEN}: {page.token}"]
        own = page.address if name == "host" else f"http://{page.address}"
        head += [f"{name}: {own}", f"{name}: http://evil.example"]
        assert page.raw("GET /api/about HTTP/1.1\r\n" + "\r\n".join(head) + "\r\n\r\n") in (
            b"400",
            b"403",
            b"421",
        )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/about", 200), ("GET", "/api/nothing", 404), ("PUT", "/api/about", 405),
        ("POST", "/api/action", 400), ("GET", "/static/nothing.js", 404), ("GET", "/nothing", 404),
        ("PATCH", "/api/jobs", 405), ("BREW", "/api/jobs", 405), ("GET", "/picture/none.png", 404),
        ("GET", "/static/../server.py", 404), ("GET", "/static/%2e%2e/server.py", 404),
        ("GET", "/static//etc/passwd", 404), ("GET", "/static/..%5cserver.py", 404),
    ],
)  # fmt: skip
def test_every_answer_has_the_headers_that_protect_the_page(
    method: str, path: str, status: int, page: Served
) -> None:
    found = page.ask(method, path)
    assert found.status == status
    wanted = ALWAYS[:3] if path.startswith("/static/") else ALWAYS
    assert found.headers.keys() >= set(wanted)
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    if status >= 400 and not path.startswith("/static"):
        assert found.headers["content-type"] == "application/json"


def test_a_guard_that_adds_no_headers_leaves_the_page_open(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above."""
    monkeypatch.setattr("loramerge.page.guard._ALWAYS", {})
    assert "content-security-policy" not in page.get("/api/about").headers


def test_a_bug_is_told_without_a_traceback_and_with_all_headers(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("at /home/someone/secret.py")

    monkeypatch.setattr("loramerge.page.routes.front._facts", fail)
    found = page.get("/api/about")
    assert found.status == 500
    assert found.headers.keys() >= set(ALWAYS)
    assert found.body["error"]["exit_code"] == 70
    assert "secret.py" not in json.dumps(found.body)
    assert "Traceback" not in json.dumps(found.body)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_the_page_has_one_name(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every address"):
        serve(tmp_path, [], host, 0, lambda address: None)


# --- which files it touches ------------------------------------------------------------------------


@pytest.fixture
def outside(page: Served) -> Path:
    """A file beside the current folder, and links to it and its folder."""
    secret = page.folder.parent / "elsewhere" / "secret.safetensors"
    for name, target in (("link.safetensors", secret), ("linked", secret.parent)):
        place = page.folder / name
        if not place.is_symlink():
            place.symlink_to(target)
    return secret


def _spellings(outside: Path) -> list[str]:
    return [
        "../elsewhere/secret.safetensors",
        "../elsewhere/secret",
        "./x/../../elsewhere/secret.safetensors",
        str(outside),
        str(outside.with_suffix("")),
        "link.safetensors",
        "link",
        "link.safetensors#first",
        "linked/secret.safetensors",
        "linked/secret",
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "~root/x.safetensors",
    ]


_NOTHING = ("", "link", "link.safetensors#first")  # the last two are names of adapters only

# verb → word, values beside it
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "inspect": ("files", {}),
    "resize": ("adapter", {"rank": 2}),
    "mix": ("adapters", {}),
    "diff": ("a", {"b": "zuzu"}),
    "bake": ("base", {"adapters": "zuzu"}),
    "card": ("picture", {"file": "zuzu"}),
    "train": ("images", {"base": "tiny"}),
}


@pytest.mark.parametrize("verb", READERS)
def test_no_action_reads_outside_of_the_places(verb: str, page: Served, outside: Path) -> None:
    word, values = READERS[verb]
    for text in _spellings(outside):
        found = page.post("/api/action", {"verb": verb, "values": {word: text, **values}})
        if found.status == 200:  # there is nothing of this name, which the verb says
            assert text in _NOTHING[: 1 if verb in ("mix", "resize", "inspect", "diff") else 3]
        else:
            assert "may not use" in found.error or found.error.startswith("no base"), (text, found)


def test_a_pattern_and_a_folder_read_nothing_outside_either(page: Served, outside: Path) -> None:
    for text in ("linked", "*/secret.safetensors", "lin*", "../elsewhere/*", "*.safetensors"):
        found = page.post("/api/action", {"verb": "inspect", "values": {"files": [text]}})
        assert "may not use" in found.error, text


def test_a_check_that_follows_no_links_reads_outside(
    page: Served, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the tests above must find it."""

    def lies_in(_: Places, path: Path, roots: list[str]) -> bool:
        return os.path.normpath(path).startswith(tuple(roots))

    asked = {"verb": "diff", "values": {"a": "link", "b": "zuzu"}}
    assert page.post("/api/action", asked).status == 400
    monkeypatch.setattr(Places, "_lies_in", lies_in)
    assert page.post("/api/action", asked).status == 200


@pytest.fixture
def linking(page: Served, outside: Path) -> None:
    """Folders in which something is a link that leads out."""
    for name, linked in (("pictures/a.txt", outside), ("model/unet", outside.parent)):
        place = page.folder / "tied" / name
        if not place.is_symlink():
            place.parent.mkdir(parents=True)
            place.symlink_to(linked)
    over = page.folder / "tied" / "over"  # leads to the first by a link that is in order
    if not over.is_dir():
        over.mkdir()
        (over / "one").symlink_to(page.folder / "tied" / "pictures")
    (page.folder / "tied" / "model" / "model_index.json").write_text("{}")


LINKING: list[tuple[str, dict[str, Any]]] = [
    ("train", {"base": "tiny", "images": "tied/pictures"}),
    ("train", {"base": "tiny", "images": "tied/over"}),
    ("train", {"base": "tied/model", "images": "plain"}),
    ("bake", {"base": "tied/model", "adapters": "zuzu"}),
]


@pytest.mark.parametrize(("verb", "values"), LINKING)
def test_no_link_in_a_folder_leads_outside(
    verb: str, values: dict[str, Any], page: Served, linking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (page.folder / "plain").mkdir(exist_ok=True)
    found = page.post("/api/action", {"verb": verb, "values": values})
    assert "may not use" in found.error and "tied" in found.error
    monkeypatch.setattr(Places, "check_contents", lambda *_: None)  # the planted fault
    assert page.post("/api/action", {"verb": verb, "values": values}).status == 200


def test_a_registered_base_may_hold_links(
    page: Served, linking: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramerge.library.registry import changed_registry

    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path))
    with changed_registry() as registry:
        registry.add_base("linked-base", page.folder / "tied" / "model")
    asked = {"verb": "bake", "values": {"base": "linked-base", "adapters": "zuzu"}}
    assert page.post("/api/action", asked).status == 200


def test_a_link_that_is_made_while_a_job_waits_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramerge.library.shipped import shipped
    from loramerge.page.doing import run

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "secret.safetensors").write_bytes(shipped("zuzu").read_bytes())
    Path("late.safetensors").symlink_to(tmp_path / "secret.safetensors")
    values = {"adapter": "late.safetensors", "rank": 1, "output": "small.safetensors"}
    asked = {"verb": "resize", "values": values, "opened": []}
    with pytest.raises(UsageError, match="may not use"):
        run.do(asked, lambda event: None)
    assert not Path("small.safetensors").exists()
    monkeypatch.setattr(run, "check_paths", lambda *_: None)  # the planted fault
    run.do(asked, lambda event: None)
    assert Path("small.safetensors").exists()


@pytest.mark.parametrize(
    "output",
    [
        "../out.safetensors", "/tmp/out.safetensors", "linked/out.safetensors", "link.safetensors",
        "~/out.safetensors", "x/../../out.safetensors", "a\0b.safetensors", "a\nb.safetensors",
        "a\x1bb.safetensors", "\ud800.safetensors",
    ],
)  # fmt: skip
def test_no_action_writes_outside_of_the_places(output: str, page: Served, outside: Path) -> None:
    before = outside.read_bytes()
    values = {"adapters": ["zuzu"], "output": output, "force": True}
    for path in ("/api/action", "/api/jobs"):
        assert page.post(path, {"verb": "mix", "values": values}).status == 400
    assert outside.read_bytes() == before
    assert page.get("/api/jobs").body == []


def test_what_comes_with_loramerge_can_be_read_but_not_written(page: Served) -> None:
    place = shipped("zuzu")
    values = {"adapters": [str(place)], "output": str(place), "force": True}
    found = page.post("/api/action", {"verb": "mix", "values": values})
    assert "may not use" in found.error
    values["output"] = "copy.safetensors"
    assert page.post("/api/action", {"verb": "mix", "values": values}).status == 200


@pytest.mark.parametrize("word", ["folder", "cache"])
def test_folders_of_a_run_lie_in_the_places(word: str, page: Served, outside: Path) -> None:
    (page.folder / "pictures").mkdir(exist_ok=True)
    values = {"base": "tiny", "images": "pictures", word: "../elsewhere"}
    found = page.post("/api/action", {"verb": "train", "values": values})
    assert "may not use" in found.error


def test_a_base_on_the_hub_is_not_downloaded(page: Served, no_hub: None) -> None:
    found = page.post("/api/action", {"verb": "resize", "values": {"adapter": "hf:a/b", "rank": 2}})
    assert found.status == 404


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if the hub is asked."""

    def refuse() -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("loramerge.library.hub.connect", refuse)


@pytest.mark.parametrize("folder", ["..", "../elsewhere", "linked", "/", "~", "a\0b", "/proc/self"])
def test_no_folder_outside_of_the_places_is_listed(
    folder: str, page: Served, outside: Path
) -> None:
    from urllib.parse import quote

    found = page.get(f"/api/files?folder={quote(folder)}")
    assert found.status == 400
    assert "secret" not in json.dumps(found.body)


def test_links_that_lead_out_and_hidden_files_are_not_listed(page: Served, outside: Path) -> None:
    (page.folder / ".hidden.safetensors").write_bytes(b"")
    found = page.get("/api/files").body
    assert "link" not in json.dumps([found["files"], found["folders"]])
    assert "hidden" not in json.dumps(found["files"])


def test_links_that_lead_out_are_no_cards(page: Served, outside: Path) -> None:
    found = page.get("/api/library?limit=500").body
    assert found["cards"] and "secret" not in json.dumps(found)
    assert "link" not in json.dumps(found)


def test_what_is_only_looked_at_writes_nothing(page: Served) -> None:
    data = (page.folder / "changed.safetensors").write_bytes(_SMALL)
    values = {"file": "changed.safetensors", "set": ["a=b"]}
    found = page.post("/api/live", {"kind": "report", "verb": "meta", "values": values})
    assert "writes files" in found.error
    assert data == (page.folder / "changed.safetensors").stat().st_size
    assert (page.folder / "changed.safetensors").read_bytes() == _SMALL


def test_a_name_with_markup_is_text_in_json(page: Served) -> None:
    name = "<img src=x onerror=alert(1)>'\".safetensors"
    (page.folder / name).write_bytes(b"")
    found = page.get("/api/files")
    assert name in [one["name"] for one in found.body["files"]]
    assert found.headers["content-type"] == "application/json"
    answer = page.post("/api/action", {"verb": "resize", "values": {"adapter": name, "rank": 1}})
    assert answer.headers["content-type"] == "application/json"


def test_a_report_of_a_file_with_markup_runs_nothing(page: Served) -> None:
    name = "<script>alert(1)</script>.safetensors".replace("/", "\u2215")
    place = page.folder / name
    said = {"title": "<script>alert(2)</script>"}
    rewrite(shipped("zuzu"), place, lambda _, metadata: metadata.update(said))
    found = page.post(
        "/api/live", {"kind": "report", "verb": "inspect", "values": {"files": [name]}}
    )
    made = page.get(f"/report/{found.body['report']}?token={page.token}", headers={TOKEN: None})
    policy = made.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert made.headers["x-content-type-options"] == "nosniff"
    assert b"<script" not in made.body and b"&lt;script&gt;alert(1)" in made.body
    assert page.get(f"/report/{found.body['report']}", headers={TOKEN: None}).status == 401
    place.unlink()
