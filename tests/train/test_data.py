"""Folders of pictures: what is found, how it is read, which bucket, which order, which caption."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
np: Any = pytest.importorskip("numpy")

from loramerge.errors import FileError, FormatError, MissingFile, UsageError  # noqa: E402
from loramerge.events import Note  # noqa: E402
from loramerge.files.folders import dataset_files  # noqa: E402
from loramerge.train.dataset.buckets import Order, bucket_of, bucket_sizes  # noqa: E402
from loramerge.train.dataset.captions import Captioning  # noqa: E402
from loramerge.train.dataset.images import fitted, opened, pixels, size_of  # noqa: E402
from loramerge.train.dataset.scan import Picture, scan  # noqa: E402
from tests.builders.pictures import Image, folder_of, picture  # noqa: E402


def test_a_folder_as_users_have_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 2)
    (tmp_path / "a" / "000.caption").write_text("never read", "utf-8")
    ten = folder_of(tmp_path / "10_zuzu girl", 2, captions=False)
    (ten / "001.caption").write_text("a zuzu,\r\n smiling", "utf-8-sig")
    listed = folder_of(tmp_path / "b" / "c", 2, captions=False)
    lines = [{"file_name": f"00{n}.png", "text": f"line {n}"} for n in (0, 1)]
    (listed / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (tmp_path / ".hidden").mkdir()
    picture(1).save(tmp_path / ".hidden" / "x.png")
    picture(1).save(tmp_path / "none.webp")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    said: list[Any] = []
    found = scan(tmp_path, repeats=3, notify=said.append)
    by_name = {p.path.relative_to(tmp_path).as_posix(): p for p in found.pictures}
    assert list(by_name) == [
        "none.webp", "10_zuzu girl/000.png", "10_zuzu girl/001.png", "a/000.png", "a/001.png",
        "b/c/000.png", "b/c/001.png",
    ]  # fmt: skip
    assert {n: (p.caption, p.repeats) for n, p in by_name.items()} == {
        "none.webp": (None, 3),
        "10_zuzu girl/000.png": ("zuzu girl", 10),
        "10_zuzu girl/001.png": ("a zuzu, smiling", 10),
        "a/000.png": ("red, round, thing 0", 3),
        "a/001.png": ("red, round, thing 1", 3),
        "b/c/000.png": ("line 0", 3),
        "b/c/001.png": ("line 1", 3),
    }
    assert [path.name for path, _ in found.unreadable] == ["broken.png"]
    assert "1 image cannot be read and is left out: broken.png" in "".join(
        getattr(e, "text", "") for e in said
    )


@pytest.mark.parametrize("name", ["20230501_beach", "1001_x", "9" * 200 + "_x", "0_x"])
def test_a_number_that_cannot_be_repeats_is_a_name(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path / name, 1, captions=False)
    folder_of(tmp_path / "1000_y", 1, captions=False)
    said: list[Any] = []
    found = scan(tmp_path, repeats=3, notify=said.append)
    assert {p.path.parent.name: (p.caption, p.repeats) for p in found.pictures} == {
        name: (None, 3),
        "1000_y": ("y", 1000),
    }
    notes = [event.text for event in said if isinstance(event, Note)]
    assert [name in note for note in notes] == ([] if name == "0_x" else [True])


def test_regularisation_pictures_stand_apart(tmp_path: Path) -> None:
    folder, regular = folder_of(tmp_path / "5_a", 2), folder_of(tmp_path / "7_thing", 3)
    found = scan(folder, regularisation=regular)
    assert len(found.subject) == 2 and len(found.regular) == 3
    assert {p.repeats for p in found.subject} == {5} and {p.repeats for p in found.regular} == {1}


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such folder of images"):
        scan(tmp_path / "none")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(MissingFile, match="no images in this folder"):
        scan(tmp_path)
    folder = folder_of(tmp_path / "a", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png"}', "utf-8")
    with pytest.raises(FormatError, match="line 1 is not a valid entry"):
        scan(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "000.txt").write_bytes(b"\xff\xfe\xff")  # half a letter of UTF-16
    with pytest.raises(MissingFile, match="1 that cannot be read"):
        scan(folder)


def test_pictures_are_read_as_they_are_seen(tmp_path: Path) -> None:
    half = Image.new("RGB", (8, 4), (255, 0, 0))
    half.paste((0, 0, 255), (4, 0, 8, 4))
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    half.save(turned, exif=exif, quality=100, subsampling=0)
    assert size_of(turned) == (4, 8) == opened(turned).size
    top, bottom = (opened(turned).getpixel((2, y)) for y in (1, 6))
    assert top[0] > 200 and bottom[2] > 200
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("P", (4, 4), 0).save(tmp_path / "p.gif", transparency=0)
    assert opened(tmp_path / "p.gif").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "ink.tiff")
    assert opened(tmp_path / "ink.tiff").getpixel((0, 0)) == (255, 0, 0)
    deep = Image.fromarray(np.full((4, 4), 0x8000, dtype="uint16"))
    deep.save(tmp_path / "deep.png")
    assert opened(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    picture(3, (64, 64)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert size_of(tmp_path / "cut.png") == (64, 64)
    with pytest.raises(FileError, match="cannot be read"):
        opened(tmp_path / "cut.png")


def test_a_picture_covers_its_bucket() -> None:
    image, corner = fitted(picture(1, (100, 50)), (32, 32))
    assert image.size == (32, 32) and corner == (16, 0)
    values = pixels(image)
    assert values.shape == (3, 32, 32) and float(values.min()) >= -1 and float(values.max()) <= 1
    white = pixels(Image.new("RGB", (8, 8), (255, 255, 255)))
    assert torch.equal(white, torch.ones(3, 8, 8))


@pytest.mark.parametrize(("resolution", "unit"), [(512, 64), (1024, 64), (32, 8), (64, 16), (8, 8)])
def test_buckets(resolution: int, unit: int) -> None:
    sizes = bucket_sizes(resolution, unit)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % unit == height % unit == 0 and width * height <= resolution**2
        assert (height, width) in sizes and max(width, height) <= 2 * resolution
    assert bucket_of((resolution * 3, resolution * 3), sizes) == (resolution, resolution)
    wide = bucket_of((4000, 1000), sizes)
    assert wide[0] / wide[1] == max(w / h for w, h in sizes)
    assert bucket_sizes(resolution, unit, several=False) == [(resolution, resolution)]
    with pytest.raises(UsageError, match="below"):
        bucket_sizes(unit - 1, unit)


def order(**how: Any) -> Order:
    buckets = [(32, 32)] * 5 + [(48, 16)] * 3
    asked = {"buckets": buckets, "repeats": [1] * 8, "regular": [False] * 8, "size": 2, "seed": 0}
    return Order(**(asked | how))


def test_an_epoch_shows_every_picture_as_often_as_it_should() -> None:
    found = order(repeats=[1, 2, 1, 1, 1, 3, 1, 1])
    batches = []
    while found.epoch_of(len(batches)) == 0:
        batches.append(found.batch(len(batches)))
    assert Counter(p for b in batches for p in b) == {
        0: 1,
        1: 2,
        2: 1,
        3: 1,
        4: 1,
        5: 3,
        6: 1,
        7: 1,
    }
    assert found.shown == 11
    for batch in batches:
        assert len({found.buckets[place] for place in batch}) == 1 and len(batch) <= 2


def test_the_order_is_a_function_of_the_number() -> None:
    numbers = [17, 3, 0, 40, 3]
    assert [order().batch(n) for n in numbers] == [order().batch(n) for n in numbers]
    whole = order()
    ahead = [whole.batch(n) for n in range(50)]
    assert [order().batch(n) for n in range(49, -1, -1)] == ahead[::-1]
    assert ahead[:5] != ahead[5:10] and ahead != [order(seed=1).batch(n) for n in range(50)]


def test_regularisation_takes_half_and_takes_turns() -> None:
    few = order(regular=[False] * 5 + [True] * 3)
    epoch = [p for n in range(len(few.batches(0))) for p in few.batch(n)]
    assert sum(p >= 5 for p in epoch) == 5 == sum(p < 5 for p in epoch)
    many = order(repeats=[1] * 8, regular=[False] + [True] * 7)
    seen = [p for epoch in range(7) for b in many.batches(epoch) for p in b if p]
    assert sorted(seen) == list(range(1, 8)) and many.shown == 2


A = Picture(Path("a.png"), (8, 8), "red, round, soft, small")


def test_captions_follow_from_seed_and_number() -> None:
    how = Captioning("zuzu", shuffle_tags=True, tag_dropout=0.3, caption_dropout=0.2, seed=4)
    drawn = [how.drawn(A, n) for n in range(200)]
    assert drawn == [how.drawn(A, n) for n in range(200)]
    assert how.varies and not Captioning("zuzu", caption_dropout=0.5).varies
    empty = drawn.count("")
    assert 20 <= empty <= 60
    full = [text for text in drawn if text]
    assert all(text.split(", ")[0] == "zuzu" for text in full)
    tags = Counter(tag for text in full for tag in text.split(", "))
    assert all(0.6 < tags[tag] / len(full) < 0.8 for tag in ("red", "round", "soft", "small"))
    assert len({tuple(text.split(", ")[1:]) for text in full}) > 20
    assert drawn != [Captioning("zuzu", shuffle_tags=True, seed=5).drawn(A, n) for n in range(200)]


def test_the_trigger_has_its_place() -> None:
    how = Captioning("zuzu")
    cases = {"a [trigger] in rain": "a zuzu in rain", "Zuzu smiles": "Zuzu smiles",
             "red": "zuzu, red", None: "zuzu", "": "zuzu"}  # fmt: skip
    for caption, expected in cases.items():
        assert how.whole(Picture(Path("a"), (8, 8), caption)) == expected
        regular = Picture(Path("a"), (8, 8), caption, regular=True)
        assert "zuzu" not in how.whole(regular)
    assert Captioning().whole(A) == A.caption
    kept = Captioning("zuzu", shuffle_tags=True, keep_tokens=3)
    assert all(kept.drawn(A, n).startswith("zuzu, red, round, ") for n in range(20))
    with pytest.raises(UsageError, match="dropout is not a probability"):
        Captioning(caption_dropout=1.5)


def test_a_trigger_is_a_whole_word() -> None:
    how = Captioning("sam")
    cases = {"the same dog": "sam, the same dog", "Sam's dog": "Sam's dog", "a SAM, red": "a SAM, red",
             "sample": "sam, sample", "(sam:1.2)": "(sam:1.2)"}  # fmt: skip
    for caption, expected in cases.items():
        assert how.whole(Picture(Path("a"), (8, 8), caption)) == expected
    assert Captioning("零").whole(Picture(Path("a"), (8, 8), "ある零です")) == "ある零です"
    assert Captioning("ohwx, a man").whole(Picture(Path("a"), (8, 8), "red, ohwx,  a man")) == (
        "red, ohwx,  a man"
    )


def test_a_trigger_is_never_dropped_wherever_it_stands() -> None:
    for trigger, caption in (("sam", "red, a sam, small"), ("sam, cat", "red, sam, cat, small")):
        for shuffle in (False, True):
            how = Captioning(trigger, shuffle_tags=shuffle, tag_dropout=1.0, keep_tokens=0)
            drawn = {how.drawn(Picture(Path("a"), (8, 8), caption), n) for n in range(9)}
            assert drawn == {"a sam" if trigger == "sam" else "sam, cat"}
    order = Captioning("sam", tag_dropout=0.5).drawn(Picture(Path("a"), (8, 8), "red, sam"), 3)
    assert order in ("red, sam", "sam")


def test_files_that_a_run_writes_are_not_data(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    run, cache, earlier = (tmp_path / name for name in ("run", "cache", "earlier-run"))
    for folder in (run / "samples", cache / "regularisation", earlier / "samples"):
        folder.mkdir(parents=True)
        picture(1).save(folder / "0.png")
    (cache / "latents-0.safetensors").write_bytes(b"")
    (earlier / "state.pt").write_bytes(b"")
    assert len(scan(tmp_path, without=(run,)).pictures) == 2
    assert len(dataset_files(tmp_path, (run,))) == 4
    assert len(scan(earlier / "samples").pictures) == 1  # asked for by name


@pytest.mark.parametrize("ending", [".jpe", ".jfif", ".avif", ".jp2"])
def test_further_endings_are_read(ending: str, tmp_path: Path) -> None:
    kind = {".avif": "AVIF", ".jp2": "JPEG2000"}.get(ending, "JPEG")
    picture(1, (16, 8)).save(tmp_path / f"a{ending}", kind)
    assert [one.size for one in scan(tmp_path).pictures] == [(16, 8)]


def test_what_pillow_lacks_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    for name in ("a.jxl", "b.heic"):
        (tmp_path / name).write_bytes(b"x" * 99)
    said: list[Any] = []
    assert len(scan(tmp_path, notify=said.append).unreadable) == 2
    text = "".join(getattr(event, "text", "") for event in said)
    assert "a.jxl" in text and "pip install pillow-jxl-plugin" in text and "pillow-heif" in text


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg", "late.png"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_orientation_counts_once(turn: int, ending: str, tmp_path: Path) -> None:
    half = Image.new("RGB", (16, 8), (255, 0, 0))
    half.paste((0, 0, 255), (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{ending}"
    half.save(path, exif=exif)
    if ending == "late.png":
        path.write_bytes(_exif_last(path.read_bytes()))
    expected = (8, 16) if turn in (6, 8) else (16, 8)
    seen = opened(path)
    assert size_of(path) == expected == seen.size
    first = {1: (2, 4), 3: (13, 4), 6: (4, 2), 8: (4, 13)}[turn]  # where red is then
    assert seen.getpixel(first)[0] > 200 > seen.getpixel(first)[2]


def _exif_last(data: bytes) -> bytes:
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


def test_profiles_floats_and_utf16(tmp_path: Path) -> None:
    from PIL import ImageCms

    grey = Image.new("L", (4, 4), 128)
    wide = Image.new("RGB", (4, 4), (0, 0, 255))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    wide.save(tmp_path / "odd.png", icc_profile=lab)  # of another kind: taken as sRGB
    assert opened(tmp_path / "odd.png").getpixel((0, 0)) == (0, 0, 255)
    wide.save(tmp_path / "xyz.png", icc_profile=_exchanged())
    assert opened(tmp_path / "xyz.png").getpixel((0, 0)) != (0, 0, 255)
    Image.fromarray(np.full((4, 4), 0.5, dtype="float32")).save(tmp_path / "float.tiff")
    assert opened(tmp_path / "float.tiff").getpixel((0, 0)) == (128, 128, 128)
    grey.save(tmp_path / "a.png")
    for encoding in ("utf-16-le", "utf-16-be"):
        mark = b"\xff\xfe" if encoding == "utf-16-le" else b"\xfe\xff"
        (tmp_path / "a.txt").write_bytes(mark + "größe, 零".encode(encoding))
        assert scan(tmp_path).pictures[0].caption == "größe, 零"


def _exchanged() -> bytes:
    """Return an sRGB profile whose red and blue primaries are exchanged."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for n in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * n
        places[bytes(data[entry : entry + 4])] = int.from_bytes(data[entry + 4 : entry + 8], "big")
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red : red + 20], data[blue : blue + 20] = data[blue : blue + 20], data[red : red + 20]
    return bytes(data)
