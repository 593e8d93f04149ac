"""Words are found as people type them, whatever they type."""

from __future__ import annotations

import sqlite3

import pytest

from loramerge.library.searching import query_of, searchable

TEXTS = ["catGirl_v12-final", "red-hair, Ünïcode", "可爱的猫猫 style", 'quoted "name" OR NOT *']


def found(*words: str) -> list[int]:
    database = sqlite3.connect(":memory:")
    database.execute(
        'CREATE VIRTUAL TABLE words USING fts5(name, tokenize = "unicode61 remove_diacritics 2")'
    )
    database.executemany("INSERT INTO words VALUES (?)", [(searchable([text]),) for text in TEXTS])
    query = query_of(words)
    if not query:
        return []
    rows = database.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY 1", (query,))
    return [row[0] - 1 for row in rows]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["cat"], [0]), (["girl"], [0]), (["catgirl"], [0]), (["girl", "fin"], [0]), (["v12"], [0]),
        (["irl"], []), (["girl", "hair"], []), (["red-hair"], [1]), (["hair-red"], []),
        (["unicode"], [1]), (["ÜNI"], [1]), (["猫"], [2]), (["爱的猫"], [2]), (["猫爱"], []),
        (["name"], [3]), (["or"], [3]), (['"'], []), (["*"], []), (["NOT"], [3]), (["(", "near("], []),
        (["a" * 5000], []), (["'; DROP TABLE words"], []), (["\ud800"], []), (["\0"], []),
    ],
)  # fmt: skip
def test_words(words: list[str], numbers: list[int]) -> None:
    assert found(*words) == numbers


def test_plain_texts_are_kept_as_they_are() -> None:
    assert searchable(["plain text", "two"]) == "plain text\ntwo"
    assert searchable(["a\ud800\0b"]) == "a? b"
