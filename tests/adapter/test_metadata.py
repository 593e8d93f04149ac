"""The strings in the header: what stays true is kept, the rest is made anew or left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.adapter.metadata import (
    combined,
    tags,
    trained_on,
    training_metadata,
    trigger_words,
)
from loramerge.adapter.save import save
from tests.builders.samples import adaptable, factors_for, read_safetensors, spell, write

NAMES = [
    f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{leaf}" for leaf in ("to_q", "to_k")
]
STALE = {"sshs_model_hash": "1", "sshs_legacy_hash": "2", "modelspec.hash_sha256": "3"}
STRUCTURE = {"lora_adapter_metadata": "{}", "unet": "[]", "unet:3:rank": "4", "<s1>": "<embed>"}
KEPT = {"ss_learning_rate": "1e-4", "modelspec.title": "cat"}


def tagged(**folders: dict[str, int]) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(folders)}


def test_metadata_about_the_tensors_is_dropped() -> None:
    assert training_metadata(KEPT | STALE | STRUCTURE) == KEPT


def test_entries_that_all_inputs_share_are_kept_in_any_order() -> None:
    first = KEPT | STALE | {"ss_seed": "1"} | tagged(cat={"cat": 2, "sofa": 1})
    second = KEPT | {"ss_seed": "2", "ss_only": "here"} | tagged(cat={"cat": 3}, dog={"dog": 1})
    result = combined([first, second])
    assert result == combined([second, first])
    assert {k: result[k] for k in KEPT} == KEPT
    assert "ss_seed" not in result and not STALE.keys() & result.keys()
    assert result["ss_only"] == "here"
    united = json.loads(result["ss_tag_frequency"])
    assert united == {"cat": {"cat": 5, "sofa": 1}, "dog": {"dog": 1}}


def test_trigger_words_titles_and_tags_are_united() -> None:
    spec = {"modelspec.architecture": "stable-diffusion-v2/lora"}
    one = spec | {"modelspec.title": "cat", "modelspec.trigger_phrase": "zuzu, cat",
                  "modelspec.tags": "animal, cute"}  # fmt: skip
    two = (
        spec
        | {"modelspec.title": "flat", "modelspec.tags": "cute"}
        | tagged(**{"5_flat": {"x": 1}})
    )
    three = spec | {"modelspec.title": "ink", "modelspec.trigger_phrase": "ink style"}
    result = combined([one, two, three])
    assert result == combined([three, one, two])
    assert result["modelspec.trigger_phrase"] == "cat, flat, ink style, zuzu"
    assert trigger_words(result) == ["cat", "flat", "ink style", "zuzu"]
    assert result["modelspec.merged_from"] == "cat, flat, ink"
    assert result["modelspec.tags"] == "animal, cute" and "modelspec.title" not in result
    assert result["modelspec.architecture"] == "stable-diffusion-v2/lora"
    assert combined([one, one]) == one  # nothing contradicts


def test_tags_of_one_alone_stay_as_they_are() -> None:
    one = tagged(cat={"cat": 2})
    assert combined([one, {}])["ss_tag_frequency"] == one["ss_tag_frequency"]
    assert combined([]) == {}


@pytest.mark.parametrize("broken", ["{", "[]", "3", '{"a": 3}', '{"a": {"b": "c"}}'])
def test_broken_tags_are_no_error(broken: str) -> None:
    metadata = {"ss_tag_frequency": broken}
    assert tags(metadata) == []
    assert tags(combined([metadata, tagged(cat={"cat": 2})])) == [("cat", 2)]


def test_tags_come_most_frequent_first() -> None:
    metadata = tagged(a={"cat ": 2, "b": 2}, c={"cat": 1, "a": 2})
    assert tags(metadata) == [("cat", 3), ("a", 2), ("b", 2)]


def test_trigger_words_are_stated_or_guessed_from_folders() -> None:
    assert trigger_words({"modelspec.trigger_phrase": "zuzu, red hat ,"}) == ["zuzu", "red hat"]
    found = trigger_words(tagged(**{"10_zuzu cat": {}, "img": {}}) | {"<s1>": "<embed>"})
    assert found == ["zuzu cat", "<s1>"]
    assert trigger_words({}) == []


def test_the_base_of_the_training_is_read() -> None:
    assert (
        trained_on({"ss_sd_model_name": "x.safetensors", "ss_base_model_version": "sd_v1"})
        == "x.safetensors"
    )
    assert trained_on({"ss_base_model_version": "sd_v1"}) == "sd_v1"
    assert trained_on({}) is None


# --- on writing --------------------------------------------------------------------------------


def saved(
    tmp_path: Path, to: str, rank: int | list[int], alpha: object, **metadata: str
) -> dict[str, str]:
    modules = {name: adaptable("sd15")[name] for name in NAMES}
    sample = spell(factors_for(modules, rank=rank, alpha=alpha), "sd15", "kohya")  # type: ignore[arg-type]
    sample.metadata |= metadata
    path = tmp_path / to
    save(load(write(sample, tmp_path / "a.safetensors")), path, to=to)
    return read_safetensors(path)[1]


def test_kohya_states_ranks_and_alphas(tmp_path: Path) -> None:
    found = saved(tmp_path, "kohya", 4, 2.0, **STALE, **KEPT)
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2")
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_base_model_version"], found["ss_v2"]) == ("sd_v1", "False")
    assert KEPT.items() <= found.items()
    assert not STALE.items() & found.items()  # computed anew, or left out
    assert "modelspec.hash_sha256" not in found


def test_mixed_ranks_and_alphas_are_dynamic(tmp_path: Path) -> None:
    found = saved(tmp_path, "kohya", [2, 4], [1.0, 3.0])
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_mixed_ranks_at_one_alpha_are_half_dynamic(tmp_path: Path) -> None:
    found = saved(tmp_path, "kohya", [2, 4], 2.0)
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "2")


def test_the_trainers_entry_about_the_base_is_used(tmp_path: Path) -> None:
    found = saved(tmp_path, "kohya", 4, 2.0, ss_base_model_version="sd_v1_custom")
    assert found["ss_base_model_version"] == "sd_v1_custom"


def test_stale_hashes_leave_in_every_dialect(tmp_path: Path) -> None:
    for dialect in ("diffusers", "diffusers-legacy"):
        found = saved(tmp_path, dialect, 4, 2.0, **STALE, **KEPT)
        assert not STALE.keys() & found.keys()
        assert KEPT.items() <= found.items()


def test_given_metadata_is_added(tmp_path: Path) -> None:
    modules = {NAMES[0]: adaptable("sd15")[NAMES[0]]}
    path = write(spell(factors_for(modules), "sd15", "kohya"), tmp_path / "a.safetensors")
    save(load(path), path, force=True, metadata={"loramerge": "1"})
    assert read_safetensors(path)[1]["loramerge"] == "1"
