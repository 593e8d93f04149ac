"""One server for the tests of a module: what they ask is independent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.serving import Served, served


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose current folder is empty, beside a folder that it may not read."""
    place = tmp_path_factory.mktemp("page")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "secret.safetensors").write_bytes(b"secret")
    (place / "here").mkdir()
    with served(place / "here", store=place / "jobs") as found:
        yield found
