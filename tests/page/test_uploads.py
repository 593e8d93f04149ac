"""Uploads to the page: names, contents, and what stops halfway."""

from __future__ import annotations

import json
import socket
import time

import numpy as np
import pytest

from tests.builders.samples import safetensors_bytes
from tests.page.serving import TOKEN, Served

pytest.importorskip("starlette")


from loramerge.errors import UsageError
from loramerge.page.routes.files import clean_name

pytestmark = pytest.mark.xdist_group("page")
_SMALL = safetensors_bytes({"a": np.zeros(2, "f4")})


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.safetensors", "a.safetensors"), ("../../a.safetensors", "a.safetensors"),
        ("C:\\Users\\x\\b.SAFETENSORS", "b.safetensors"), ("/etc/c.yaml", "c.yaml"),
        ("a\0\x1b\nb.yaml", "ab.yaml"), (".hidden.yaml", "hidden.yaml"), ("..yaml", None),
        ("<b>|x?.yml", "bx.yml"), ("a.pt", None), ("a.safetensors.exe", None), ("", None),
        (".safetensors", None), ("a", None), ("ü" * 200 + ".yaml", "ü" * 60 + ".yaml"),
        ("\ud800x.yaml", "x.yaml"), ("a/", None), ("page.html", None),
    ],
)  # fmt: skip
def test_an_upload_gets_a_plain_name(name: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(UsageError, match=r"only \.safetensors and \.yaml"):
            clean_name(name)
    else:
        assert clean_name(name) == kept


BAD_FILES = {
    "a pickle": b"\x80\x04\x95" + b"c" * 40,
    "a zip": b"PK\x03\x04" + bytes(60),
    "a web page": b"<!doctype html><script>alert(1)</script>",
    "nothing": b"",
    "a header that is too long": (1 << 60).to_bytes(8, "little") + b"{}",
    "too few bytes": _SMALL[:-3],
    "too many bytes": _SMALL + b"more",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_upload_that_is_not_what_its_name_says_leaves_nothing(name: str, page: Served) -> None:
    before = sorted(page.folder.iterdir())
    found = page.ask("POST", "/api/upload?name=up.safetensors", raw=BAD_FILES[name])
    assert found.status == 400
    assert ".partial" not in json.dumps(found.body)
    assert sorted(page.folder.iterdir()) == before


def test_an_upload_that_is_not_looked_at_is_kept(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above."""
    monkeypatch.setattr("loramerge.page.routes.files._check_content", lambda *_: None)
    name = "unchecked.safetensors"
    found = page.ask("POST", f"/api/upload?name={name}", raw=BAD_FILES["a pickle"])
    assert found.status == 200
    (page.folder / name).unlink()


def test_an_upload_is_written_whole_and_replaces_nothing(page: Served) -> None:
    data = _SMALL
    found = page.ask("POST", "/api/upload?name=../whole.safetensors", raw=data)
    assert found.body["reference"] == "whole.safetensors"
    assert (page.folder / "whole.safetensors").read_bytes() == data
    again = page.ask("POST", "/api/upload?name=whole.safetensors", raw=data)
    assert again.status == 400 and "exists" in again.error
    assert page.ask("POST", "/api/upload?name=r.yaml", raw=b"version: 1\n").status == 200
    assert page.ask("POST", "/api/upload?name=s.yaml", raw=b"a: [").status == 400
    assert page.ask("POST", "/api/upload?name=t.yaml", raw=b"a" * (1 << 21)).status == 400


def test_an_upload_that_stops_halfway_or_does_not_fit_leaves_nothing(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(page.folder.iterdir())
    host, port = page.address.split(":")
    head = f"POST /api/upload?name=half.safetensors HTTP/1.1\r\nHost: {page.address}\r\n"
    head += f"{TOKEN}: {page.token}\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection((host, int(port))) as found:
        found.sendall(head.encode() + b"x" * 1000)
        time.sleep(0.05)
    huge = page.raw(head.replace("100000", "9" * 18))
    assert huge == b"400"
    deadline = time.monotonic() + 20
    while sorted(page.folder.iterdir()) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(page.folder.iterdir()) == before
