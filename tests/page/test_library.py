"""The library as cards: what is known of files, found, sorted, kept in order, and safe to show."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramerge.adapter.save import save
from loramerge.errors import LoramergeError, NotFound, UsageError
from loramerge.library import lookup
from loramerge.library.entries import entries, entry
from loramerge.library.index import Index, Own, open_index
from loramerge.library.listings import Listings
from loramerge.library.lookup import find
from loramerge.library.overview import Glance, index_state, overview
from loramerge.library.paths import walk
from loramerge.library.registry import changed_registry, load_registry
from loramerge.library.scanning import scan
from loramerge.page import cards as cards_module
from loramerge.page import shelf as shelf_module
from loramerge.page import thumbnails
from loramerge.page.cards import cards
from loramerge.page.places import Places
from loramerge.page.shelf import Query, Shelf, number_of
from loramerge.page.thumbnails import thumbnail
from tests.algebra.test_ingredients import generated
from tests.builders.pictures import Image
from tests.page.serving import Served, eventually, served

SHAPES = {"unet.a": (12, 10), "unet.b": (8, 14)}


def write(path: Path, seed: int = 1, rank: int = 2, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(generated(seed, rank, SHAPES), path, force=True, metadata=metadata)
    return path


def scanned(*folders: Path) -> None:
    with open_index() as index:
        scan(index, list(folders), threads=1)


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the index's files as they are, however fresh."""
    monkeypatch.setattr("loramerge.library.overview._SETTLED", 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of files of every sort, indexed, which is the current folder."""
    place = tmp_path / "here"
    for n in (1, 2, 10):
        write(place / "sub" / f"style{n}.safetensors", n, n, ss_output_name=f"a style {n}")
    broken = place / "broken.safetensors"
    broken.write_bytes(b"x" * 100)
    about = {"model": {"name": "Fancy"}, "trainedWords": ["zebra"], "baseModel": "SD 1.5"}
    (place / "sub" / "style2.civitai.info").write_text(json.dumps(about))
    (place / "sub" / "style1.json").write_text("{")
    write(place / "gone.safetensors", 77)
    scanned(place)
    (place / "gone.safetensors").unlink()
    scanned(place)
    settle(monkeypatch)
    return place


def names(shelf: Shelf, **query: Any) -> list[str]:
    return [Path(one.path).stem for one in shelf.find(Query(**query)).all]


# ---- the index at a glance


def of_entry(index: Index, content: int) -> dict[str, Any]:
    """The row of a card, from all that the index knows."""
    one = entry(index, content)
    assert one is not None
    beside = [text for p in one.places for text in p.sidecars.get("problems", ())]
    ranks = [int(rank) for rank in one.facts.get("ranks", ())]
    return {
        "path": str(one.path),
        "name": one.name,
        "what": one.facts.get("what"),
        "family": one.facts.get("family"),
        "kinds": tuple(one.facts.get("kinds", ())),
        "rank": max(ranks, default=0),
        "size": one.facts.get("size", 0),
        "rating": one.own.rating or 0,
        "problems": len(one.facts.get("problems", ())) + len(beside),
        "missing": one.missing,
        "places": len(one.places),
    }


def agrees_with_entries(glances: Callable[[Index], list[Glance]]) -> None:
    """Law: a glance says of a content what its entry says."""
    with open_index(create=False) as index:
        found = {one.content: one for one in glances(index)}
        numbers = [row[0] for row in index.rows("SELECT id FROM contents")]
        assert {number for number in found if number is not None} == set(numbers)
        for number in numbers:
            wanted = of_entry(index, number)
            assert {name: getattr(found[number], name) for name in wanted} == wanted


def enrich(folder: Path) -> None:
    """Rate one, lay a copy of one elsewhere, and damage the facts of one."""
    write(folder / "a-copy" / "style1.safetensors", 1, 1, ss_output_name="a style 1")
    scanned(folder)
    with open_index(create=False) as index, index.writing():
        facts = index.facts(1)
        assert facts is not None
        index.put_own(facts["identity"], Own(("mine",), "a note", 4))
        index.rows('UPDATE contents SET facts = \'{"ranks": {"no"\' WHERE id = 2')


def test_a_glance_says_what_the_entry_says(folder: Path) -> None:
    enrich(folder)
    agrees_with_entries(overview)


def none_missing(index: Index) -> list[Glance]:
    return [replace(one, missing=False) for one in overview(index)]


def with_rank_1_more(index: Index) -> list[Glance]:
    return [replace(one, rank=one.rank + 1 if one.rank else 0) for one in overview(index)]


def of_one_place(index: Index) -> list[Glance]:
    return [replace(one, places=1) for one in overview(index)]


def without_rating(index: Index) -> list[Glance]:
    return [replace(one, rating=0) for one in overview(index)]


def without_sidecars(index: Index) -> list[Glance]:
    return [replace(one, problems=0) for one in overview(index)]


def whole_paths(index: Index) -> list[Glance]:
    return [replace(one, name=one.path) for one in overview(index)]


@pytest.mark.parametrize(
    "wrong",
    [none_missing, with_rank_1_more, of_one_place, without_rating, without_sidecars, whole_paths],
)
def test_wrong_glances_are_noticed(folder: Path, wrong: Callable[[Index], list[Glance]]) -> None:
    enrich(folder)
    with pytest.raises(AssertionError):
        agrees_with_entries(wrong)


# ---- the shelf


def test_it_sorts_filters_and_searches(folder: Path) -> None:
    shelf = Shelf(Places(folder))
    everything = ["broken", "polka", "style1", "style2", "style10", "zuzu"]
    assert names(shelf) == everything  # as a person counts, and what is gone is left out
    assert names(shelf, descending=True) == everything[::-1]
    assert names(shelf, sort="rank")[:2] == ["style10", "style2"]
    assert names(shelf, sort="rank", descending=False)[-1] == "style10"
    assert set(names(shelf, sort="problems")[:2]) == {"broken", "style1"}
    assert names(shelf, sort="size", words="style")[0] == "style10"
    assert names(shelf, words="zebra") == ["style2"]
    assert names(shelf, words="zeb fan") == ["style2"]
    assert names(shelf, words="zuzu") == ["zuzu"]
    assert names(shelf, words="-!-") == names(shelf, words="nowhere") == []
    assert names(shelf, kind="lora") == ["style1", "style2", "style10"]
    assert names(shelf, family="no such family") == []
    assert shelf.find(Query()).kinds["lora"] == 3
    with pytest.raises(UsageError, match="cannot sort"):
        shelf.find(Query(sort="colour"))
    with pytest.raises(NotFound):
        shelf.get("12345")


def test_what_another_process_writes_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is not read again would show the rating of before; one read always would be slow."""
    read: list[int] = []
    real = shelf_module.overview
    monkeypatch.setattr(shelf_module, "overview", lambda index: (read.append(1), real(index))[1])
    shelf = Shelf(Places(folder))
    assert names(shelf, sort="rating")[0] != "style10"
    for _ in range(3):
        names(shelf)
    assert len(read) <= 2  # the first reader may have written back what lay in the journal
    before = len(read)
    number = next(n for n in (one.content for one in shelf.find(Query(words="style10")).all) if n)
    with open_index(create=False) as index, index.writing():
        facts = index.facts(number)
        assert facts is not None
        index.put_own(facts["identity"], Own(rating=5))
    assert names(shelf, sort="rating")[0] == "style10"
    assert len(read) > before


def test_a_change_within_a_moment_is_not_missed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that have just changed may change again within the grain of their times."""
    monkeypatch.setattr("loramerge.library.overview._SETTLED", 10**18)
    assert index_state() != index_state()
    monkeypatch.setattr("loramerge.library.overview._SETTLED", 0)
    assert index_state() == index_state()


def test_a_page_of_cards_reads_only_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        write(folder / "many" / f"m{n}.safetensors", 100 + n)
    scanned(folder)
    shelf, places = Shelf(Places(folder)), Places(folder)
    read: list[int] = []
    real = cards_module.entry
    monkeypatch.setattr(cards_module, "entry", lambda index, n: (read.append(n), real(index, n))[1])
    found = shelf.find(Query(words="m")).all
    assert len(found) > 30
    shown = cards(found[:5], shelf, places)
    assert len(read) == len(shown) == 5
    assert [one["name"] for one in shown] == [one.name for one in found[:5]]


def test_a_newcomer_sees_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "here" / "mine.safetensors")
    write(tmp_path / "library" / "deep" / "theirs.safetensors", 2)
    write(tmp_path / "outside" / "secret.safetensors", 3)
    write(tmp_path / "here" / "mine-run" / "cache" / "latents-1.safetensors")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "outside")
    with changed_registry() as registry:
        registry.add_folder(tmp_path / "library")
    places = Places(tmp_path / "here")
    shelf = Shelf(places)
    found = shelf.find(Query()).all
    assert [one.name for one in found] == [
        "deep/theirs.safetensors",
        "mine.safetensors",
        "polka",
        "zuzu",
    ]
    shown = cards(found, shelf, places)
    assert [one["reference"] for one in shown][1:] == ["mine.safetensors", "polka", "zuzu"]
    assert not any(one["indexed"] for one in shown)
    assert shelf.undescribed(found) == list(found)
    shelf.learn(
        found[1], {"what": "adapter", "family": "sd15", "kinds": {"lora": 2}, "ranks": {"2": 2}}
    )
    again = shelf.find(Query(family="sd15")).all
    assert [one.name for one in again] == ["mine.safetensors"]
    assert cards(again, shelf, places)[0]["rank"] == "2"
    shelf.learn(found[0], {"what": "unknown"})
    assert "theirs" not in names(shelf) and names(shelf, kind="unknown") == ["theirs"]


def test_new_files_are_found_without_a_walk_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(Places(tmp_path))
    shelf.find(Query())
    assert not shelf.look_again()
    write(tmp_path / "new.safetensors")
    shelf.look_soon()
    assert shelf.look_again() and "new" in names(shelf)
    monkeypatch.setattr(shelf_module, "_FOLDERS", 2)
    write(tmp_path / "b" / "c" / "far.safetensors")
    shelf.look_soon()
    shelf.look_again()
    assert "far" not in names(shelf)  # folders without end are not walked through


def test_the_first_look_finds_what_there_is_also_after_a_job(tmp_path: Path) -> None:
    shelf = Shelf(Places(tmp_path))
    shelf.look_soon()  # something was written before anyone saw the library
    assert {one.name for one in shelf.find(Query()).all} >= {"polka", "zuzu"}


def test_a_walk_ends_after_so_many_folders(tmp_path: Path) -> None:
    for n in range(5):
        write(tmp_path / f"f{n}" / "x.safetensors")
    found = [name for name, _ in walk(str(tmp_path), "adapters", folders_at_most=3)]
    assert found == ["f0/x.safetensors", "f1/x.safetensors"]
    assert len(list(walk(str(tmp_path), "adapters"))) == 5


# ---- names that live processes look up


def test_listings_are_kept_and_never_hide_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "old.safetensors")
    with changed_registry() as registry:
        registry.add_folder(tmp_path)
    registry = load_registry()
    walked: list[int] = []
    real = lookup.walk
    monkeypatch.setattr(lookup, "walk", lambda *a, **k: (walked.append(1), real(*a, **k))[1])
    kept = Listings(1000.0)
    for _ in range(3):
        assert find("old", "adapters", registry, names=kept) == tmp_path / "old.safetensors"
        find("zuzu", "adapters", registry, names=kept)
    assert len(walked) == 1
    write(tmp_path / "new.safetensors")
    assert find("new", "adapters", registry, names=kept).name == "new.safetensors"
    (tmp_path / "sub").mkdir()
    (tmp_path / "old.safetensors").rename(tmp_path / "sub" / "old.safetensors")
    assert find("old", "adapters", registry, names=kept).parent.name == "sub"
    with pytest.raises(NotFound):
        find("nothing", "adapters", registry, names=kept)


# ---- pictures


def png(width: int, height: int) -> bytes:
    """A picture of zeros that says it is so large, and is a few bytes long."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_picture_is_made_anew_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "style.png"
    Image.new("RGB", (900, 600), (200, 10, 10)).save(path, pnginfo=None)
    data, kind = thumbnail(path)
    with Image.open(io.BytesIO(data)) as found:
        assert found.size == (320, 213) and kind == f"image/{str(found.format).lower()}"
        red, green, _ = found.convert("RGB").getpixel((100, 100))
        assert red > 150 > green
    made: list[int] = []
    monkeypatch.setattr(thumbnails, "_scaled", lambda *given: made.append(1))
    assert thumbnail(path) == (data, kind) and not made
    monkeypatch.undo()
    Image.new("RGB", (100, 100), (0, 0, 250)).save(path)
    os.utime(path, ns=(1, 1))
    assert thumbnail(path)[0] != data


def test_thumbnails_take_a_bounded_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, size in enumerate((50, 60, 70)):
        (tmp_path / f"{n}.webp").write_bytes(b"x" * size)
        os.utime(tmp_path / f"{n}.webp", ns=(n, n))
    monkeypatch.setattr(thumbnails, "_KEPT", 140)
    thumbnails._tidy(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.webp", "2.webp"]


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html><script>alert(1)</script></html>",
        b"GIF89a" + bytes(40),
        b"",
        png(60_000, 60_000),
        png(10_000, 9_000),
        png(7_000, 7_000),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
    ids=["svg", "html", "gif", "empty", "bomb", "large", "many pixels", "cut"],
)
def test_nothing_but_small_pictures_is_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "style.png"
    path.write_bytes(content)
    with pytest.raises(LoramergeError) as error:
        thumbnail(path)
    assert "picture" in error.value.problem


# ---- over HTTP


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Served]:
    Image.new("RGB", (640, 640), (1, 200, 1)).save(folder / "sub" / "style10.png")
    (tmp_path / "private.png").write_bytes((folder / "sub" / "style10.png").read_bytes())
    (folder / "sub" / "style1.png").symlink_to(tmp_path / "private.png")
    scanned(folder)
    with served(folder, store=tmp_path / "jobs") as found:
        yield found


def card(page: Served, words: str) -> dict[str, Any]:
    (found,) = page.get(f"/api/library?words={words}").body["cards"]
    assert isinstance(found, dict)
    return found


def test_cards_pictures_and_own_words(page: Served, folder: Path, tmp_path: Path) -> None:
    found = page.get("/api/library?limit=2&offset=2&sort=name").body
    assert found["total"] == 6 and found["indexed"]
    assert [one["name"] for one in found["cards"]] == [
        "sub/style1.safetensors",
        "sub/style2.safetensors",
    ]
    assert found["cards"][0]["problems"][0]["severity"] == "warning"  # its sidecar is cut
    assert page.get("/api/library?limit=x").status == 400
    # pictures
    one = card(page, "style10")
    shown = page.get(f"/picture/library/{one['id']}")
    assert shown.status == 200 and shown.headers["content-type"] in thumbnails.KINDS.values()
    assert shown.headers["x-content-type-options"] == "nosniff" and one["picture"]
    assert (
        page.get(f"/picture/library/{card(page, 'sub/style1.safetensors')['id']}").status == 400
    )  # a link out
    assert page.get(f"/picture/library/{card(page, 'zebra')['id']}").status == 404
    # one's own words, as the command line sees them
    kept = page.post(
        f"/api/library/{one['id']}", {"tags": ["red", " Red ", ""], "rating": 4, "note": " x "}
    )
    assert kept.body["own"] == {"tags": ["red"], "note": "x", "rating": 4}
    kept = page.post(f"/api/library/{one['id']}", {"rating": 0})
    assert kept.body["own"] == {"tags": ["red"], "note": "x", "rating": None}
    with open_index(create=False) as index:
        (known,) = entries(index, [int(one["id"])])
        assert known.own == Own(("red",), "x", None)
    assert card(page, "red")["id"] == one["id"]
    for wrong in ({"rating": 6}, {"rating": True}, {"tags": "red"}, {"note": 3}, {"family": "x"}):
        assert page.post(f"/api/library/{one['id']}", wrong).status == 400, wrong
    # folders
    assert page.post("/api/library/add", {"folder": str(tmp_path)}).status == 400
    assert page.post("/api/library/add", {}).status == 400
    assert page.post("/api/library/add", {"folder": "sub"}).body["added"]
    assert [one.path for one in load_registry().folders] == [str((folder / "sub").resolve())]
    assert page.post("/api/library/scan", {"folders": [str(tmp_path)]}).status == 400


def test_a_file_beside_the_index_is_described_scanned_and_compared(
    page: Served, folder: Path
) -> None:
    write(folder / "loud.safetensors", 5, 3)
    save(0.5 * generated(5, 3, SHAPES), folder / "quiet.safetensors")
    page.app.state.page.shelf.look_soon()
    page.get("/api/library")

    def described() -> Any:
        found = page.get("/api/library?words=loud").body["cards"]
        return found and found[0]["what"] and found[0]

    one = eventually(described)
    assert one["rank"] == "3" and not one["indexed"]
    kept = page.post(f"/api/library/{one['id']}", {"note": "mine"}).body
    assert kept["indexed"] and kept["note"] == "mine" and kept["file"]["sha256"]
    number = page.post("/api/library/scan", {}).body["id"]
    assert page.until(number)["state"] == "done"
    assert card(page, "quiet")["indexed"]
    found = page.get("/api/library?duplicates=1").body
    assert {Path(one["path"]).stem for one in found["cards"]} == {"loud", "quiet"}
    assert {one["group"] for one in found["cards"]} == {0}
    assert number_of(page.app.state.page.shelf.get(kept["id"])) == kept["id"]
