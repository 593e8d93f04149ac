"""Reports replace older reports and nothing else; devices and pipes are written to as they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from loramerge.errors import OutputExists
from loramerge.files.reports import check_apart, check_json, write_report

posix = pytest.mark.skipif(os.name != "posix", reason="no such files here")


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"[1]"):
        (tmp_path / "x.json").write_bytes(content)
        check_json(tmp_path / "x.json", "--json-file")
        write_report(tmp_path / "x.json", b"{}\n")
        assert (tmp_path / "x.json").read_bytes() == b"{}\n"


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "config.json", "model_index.json", "m.safetensors.index.json",
     "tokenizer.json", "recipe.state.json", "recipe.lock.json", "registry.json"],
)  # fmt: skip
def test_the_json_of_models_and_recipes_is_no_report(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(OutputExists, match="not a report in JSON"):
        check_json(tmp_path / name, "--json-file")


def test_other_files_and_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "diary").write_bytes(b"dear diary")
    for place in (tmp_path / "diary", tmp_path):
        with pytest.raises(OutputExists):
            check_json(place, "--json-file")


def test_only_the_start_of_a_huge_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)  # takes no room; reading it would take a terabyte of memory
    check_json(tmp_path / "huge.json", "--json-file")


@posix
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    for place in (Path("/dev/null"), tmp_path / "null"):
        check_json(place, "--json-file")
        write_report(place, b"{}")
        assert place.is_char_device()
    assert (tmp_path / "null").is_symlink()


@posix
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_report(tmp_path / "pipe", b"{}" * 100_000)
    reader.join()
    assert read == [b"{}" * 100_000] and (tmp_path / "pipe").is_fifo()


def test_files_of_the_same_command_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    same = tmp_path / "folder" / ".." / "x"
    with pytest.raises(OutputExists, match="same command"):
        check_apart(tmp_path / "x", "--json-file", [tmp_path / "y", same])
    check_apart(tmp_path / "x", "--json-file", [tmp_path / "y"])
    check_apart(os.devnull, "--json-file", [os.devnull])
