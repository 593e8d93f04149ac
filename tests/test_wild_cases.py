"""Inputs of public bug reports: what each generator writes comes out right, or is refused.

The generators lie beside the repository. The table names, for each, the test of its kind that runs
without them, and one of a sibling: a case of the same kind that no report has described.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Delta
from loramerge.adapter.load import load
from loramerge.adapter.opaque import flat_name
from loramerge.adapter.sites import for_dialect
from loramerge.dialects import DIALECTS
from tests.builders.bases import read_safetensors
from tests.builders.commands import Runner
from tests.builders.samples import Array, relative

TESTS = Path(__file__).parent
GENERATORS = TESTS.parents[1] / "shared" / "cases"
Check = Callable[[Runner], None]


def _applied(delta: Delta) -> Array:
    """ΔW · x of a vector x; all of ΔW for what has no factors, which is small here."""
    if delta.kind != "lora":
        return delta.dense()
    up, down = delta.factors("float64")
    return up @ (down @ np.random.default_rng(0).standard_normal(down.shape[1]))


def whole(name: str, family: str | None, modules: int, *more: str) -> Check:
    """All modules are read, halved and kept by resize. `more` are commands that are refused."""

    def check(run: Runner) -> None:
        path = f"case/{name}.safetensors"
        adapter = load(path).require_sound()
        assert adapter.info.detection.name == family, adapter.info.detection.reason
        assert len(adapter) == modules and not adapter.info.account.unknown
        run.ok("mix", f"{path}:0.5", "-o", "half.safetensors")
        half = load("half.safetensors")
        assert set(half) == set(adapter)
        for module, delta in adapter.items():
            assert relative(_applied(half[module]), 0.5 * _applied(delta)) < 4e-3
        run.ok("resize", path, "--rank", "1", "-o", "small.safetensors")
        assert set(load("small.safetensors")) == set(adapter)
        for words in more:
            run.refused(4, "convert", path, *words.split(), "-o", "no.safetensors")

    return check


def refused(code: int, path: str, says: str, *commands: str) -> Check:
    """Commands refuse, by the reason."""

    def check(run: Runner) -> None:
        for command in commands:
            run.refused(code, *command.format(f"case/{path}").split(), says=says)

    return check


def _inspected(run: Runner, path: str) -> dict[str, Any]:
    (found,) = run.ok("inspect", f"case/{path}", "--json").json
    assert isinstance(found, dict)
    return found


def _bare_checkpoint(run: Runner) -> None:
    found = _inspected(run, "wan_base.safetensors")
    assert (found["what"], found["family"], found["findings"]) == ("checkpoint", "wan", [])


def _respelled(name: str, family: str, modules: int, dialect: str) -> Check:
    """As `whole`; written in another dialect, it is of the same family and means the same."""

    def check(run: Runner) -> None:
        path = f"case/{name}.safetensors"
        whole(name, family, modules)(run)
        run.ok("convert", path, "--to", dialect, "-o", "respelled.safetensors")
        adapter, found = load(path), load("respelled.safetensors").require_sound()
        assert found.info.detection.name == family and found.info.dialects.keys() == {dialect}
        back = for_dialect(found, DIALECTS[adapter.info.dialect or ""])
        assert {m for site in back.deltas for m in site.modules} == {
            m for site in adapter.deltas for m in site.modules
        }

    return check


def _of_gguf(run: Runner) -> None:
    """Named, as a base without tensors and as an adapter."""
    refused(4, "model.gguf", "a GGUF file without tensors", _READS[0])(run)
    refused(4, "model.gguf", "this GGUF file holds no adapter", *_READS[1:])(run)


def _cut_vera(run: Runner) -> None:
    """A VeRA without most of its tensors: named as one, and refused."""
    (problem,) = _inspected(run, "")["findings"]
    assert "a PEFT adapter of type VERA" in problem["message"]
    refused(5, "", "a PEFT adapter of type VERA", *_READS[1:])(run)


def _claims(run: Runner) -> None:
    for path in sorted(Path("case").iterdir()):
        seen = set(_inspected(run, path.name)["loads_in"])
        assert seen and not {"ComfyUI", "A1111", "Forge"} & seen


def _underscored(run: Runner) -> None:
    """Written as the programs of the family have it."""
    path = "case/klein_mangled.safetensors"
    whole("klein_mangled", "flux2-klein-9b", 25)(run)
    run.ok("convert", path, "--for", "comfyui", "-o", "klein.safetensors")
    stems = {key.partition(".lora_")[0] for key in load("klein.safetensors").info.order}
    parts = ("img_attn.qkv", "img_attn.proj", "img_mlp.0")
    blocks = {f"diffusion_model.double_blocks.{i}.{part}" for i in range(8) for part in parts}
    assert stems == blocks | {"diffusion_model.single_blocks.0.linear1"}


def _named(run: Runner) -> None:
    whole("named", "flux1", 38)(run)
    assert _inspected(run, "named.safetensors")["loads_in"] == []


def _of_mlx(run: Runner) -> None:
    """Factors are transposed there, and a number in the configuration is their scale."""
    stored, _ = read_safetensors(Path("case/adapters.safetensors"))
    scale = json.loads(Path("case/adapter_config.json").read_text())["lora_parameters"]["scale"]
    adapter = load("case").require_sound()
    assert 2 * len(adapter) == len(stored)
    for module, delta in adapter.items():
        stem = next(k for k in stored if k.endswith("lora_a") and k.startswith(module))
        down, up = (stored[f"{stem[:-1]}{side}"].astype("f8") for side in "ab")
        assert relative(delta.dense(), scale * (down @ up).T) < 1e-5


def _extracted(run: Runner) -> None:
    whole("sdxl_extract", "sdxl", 6)(run)
    run.ok("convert", "case/sdxl_extract.safetensors", "--to", "kohya", "-o", "kohya.safetensors")
    assert set(load("kohya.safetensors")) == set(load("case/sdxl_extract.safetensors"))


def _two_dialects(run: Runner) -> None:
    names = [f"case/krea_{trainer}.safetensors" for trainer in ("aitoolkit", "musubi")]
    run.ok("mix", *(f"{name}:0.5" for name in names), "-o", "c.safetensors")
    adapters = [load(name) for name in ("c.safetensors", *names)]
    mixed, one, other = ({flat_name(m): _applied(d) for m, d in a.items()} for a in adapters)
    assert len(mixed) == 28 and mixed.keys() == one.keys() == other.keys()
    for module, found in mixed.items():
        assert relative(found, 0.5 * (one[module] + other[module])) < 4e-3


def _two_networks(run: Runner) -> None:
    for name, changed in (
        ("low_noise", {"transformer_2"}),
        ("both", {"transformer", "transformer_2"}),
    ):
        adapter = load(f"case/{name}.safetensors")
        run.ok("bake", "--base", "case/base", f"case/{name}.safetensors", "-o", name)
        for network in ("transformer", "transformer_2"):
            file = f"{network}/diffusion_pytorch_model.safetensors"
            before, after = (read_safetensors(Path(root) / file)[0] for root in ("case/base", name))
            own = [f"blocks.{i}.attn1.to_q" for i in (0, 39) if network in changed]
            said = network if name == "both" else "transformer"
            for module in own:
                change = after[f"{module}.weight"] - before[f"{module}.weight"]
                assert relative(change, adapter[f"{said}.{module}"].dense()) < 1e-4
            same = (key for key in before if key.removesuffix(".weight") not in own)
            assert all(np.array_equal(before[key], after[key]) for key in same)


def of_peft(*models: str, half: bool = False) -> Check:
    """A bake gives what PEFT's model says; a mix at half the weight loads there with nothing missing."""

    def check(run: Runner) -> None:
        peft = pytest.importorskip("peft")
        from tests.builders.language import logits, opened, quiet

        for model in models:
            base, adapter = Path("case", model, "base"), Path("case", model, "ad")
            run.ok("bake", "--base", base, "--lora", adapter, "-o", f"baked-{model}")
            with quiet():
                expected = peft.PeftModel.from_pretrained(opened(base), adapter)
                found = opened(Path(f"baked-{model}"))
            if not model:
                assert _near(logits(found), logits(expected))
                continue
            merged = expected.merge_and_unload().state_dict()
            assert all(_near(value, merged[key]) for key, value in found.state_dict().items())
        if half:
            run.ok("mix", "case/ad:0.5", "-o", "half")
            run.ok("bake", "--base", "case/base", "case/ad:0.5", "-o", "half-baked")
            with quiet():
                mixed = peft.PeftModel.from_pretrained(opened(Path("case/base")), "half")
            assert _near(logits(mixed), logits(opened(Path("half-baked"))))

    return check


def _near(found: Any, expected: Any) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())))


@dataclass(frozen=True)
class Case:
    """A generator's right result, the test of its kind, and that of a sibling (file::function[case])."""

    check: Check
    kind: str
    sibling: str


_LOST, _SPELLED = "adapter/test_no_module_is_lost.py::", "dialects/test_other_spellings.py::"
_EACH, _SPELLING = (
    f"{_LOST}test_all_modules_are_read_and_written_again",
    (f"{_SPELLED}test_another_spelling_is_the_same_module_and_is_written_back"),
)
_FOREIGN, _RECOGNISED = "cli/test_foreign_files.py::", "cli/test_checkpoints_are_recognised.py::"
_FIELD = "adapter/test_peft_fields.py::test_fields_that_change_the_meaning_are_refused_by_name"
_TYPE = "adapter/test_peft_fields.py::test_other_types_are_named"
_NAMED = "adapter/test_peft_fields.py::test_the_type_is_named_where_tensors_are_missing"
_MEANS = "peers/test_peft_language_models.py::test_a_field_means_what_peft_means"
_NAMES, _CLASSES = (
    "adapter/test_names_nothing_reads.py::",
    "dialects/test_classes_of_diffusers.py::",
)
_CLAIMS = "adapter/test_readers.py::test_untested_programs_get_no_claim"
_LEAVES = ("bake --base case/base --lora {} -o no", "mix {}:0.5 -o no")
_READS = ("inspect {}", "mix {}:0.5 -o no.safetensors", "convert {} --to kohya -o no.safetensors")
CASES: dict[str, Case] = {
    "adapter_name_in_keys": Case(
        _named,
        f"{_SPELLING}[the adapter's name]",
        "adapter/test_peft.py::test_infixes_of_live_models_are_read_and_kept",
    ),
    "comfy_sdxl_extract": Case(
        _extracted,
        f"{_SPELLING}[the original's UNet in ComfyUI]",
        f"{_SPELLING}[the original's UNet alone]",
    ),
    "drop_anima_te": Case(
        whole("anima_te", "anima", 168),
        f"{_EACH}[anima]",
        "dialects/test_names_of_programs.py::"
        "test_the_text_encoder_of_qwen_image_in_files_of_onetrainer",
    ),
    "drop_auraflow": Case(
        whole("auraflow", "auraflow", 144),
        f"{_EACH}[auraflow]",
        f"{_CLASSES}test_the_attention_of_a_class_is_of_its_family_or_of_none",
    ),
    "drop_chroma": Case(
        _respelled("chroma", "chroma", 124, "diffusers"),
        f"{_EACH}[chroma]",
        f"{_LOST}test_modules_that_the_family_lacks_are_not_written_in_another_dialect",
    ),
    "drop_ideogram4": Case(
        whole("ideogram4", "ideogram4", 170),
        f"{_EACH}[ideogram]",
        "adapter/test_problems.py::test_an_unknown_family_is_opaque_but_usable",
    ),
    "drop_wan_vace": Case(
        _respelled("wan_vace", "wan", 384, "diffusers"),
        f"{_EACH}[vace]",
        f"{_LOST}test_a_module_that_the_family_lacks_is_baked_by_its_name",
    ),
    "gguf_elsewhere": Case(
        _of_gguf,
        f"{_FOREIGN}test_each_command_names_it",
        f"{_FOREIGN}test_a_folder_of_gguf_files_is_told_from_one_without_weights",
    ),
    "inspect_bare_checkpoint": Case(
        _bare_checkpoint,
        f"{_RECOGNISED}test_a_transformer_alone_is_a_checkpoint",
        f"{_RECOGNISED}test_a_checkpoint_cut_short_is_no_adapter",
    ),
    "loads_in_claims": Case(
        _claims,
        f"{_CLAIMS}[z-image, split]",
        f"{_RECOGNISED}test_modules_of_no_family_get_no_claim_about_programs",
    ),
    "mangled_klein": Case(
        _underscored,
        f"{_NAMES}test_names_with_other_underscores_are_read_and_written_as_programs_do",
        f"{_NAMES}test_other_families_are_found_too",
    ),
    "misread_hv15": Case(
        _respelled("hv15", "hunyuan-video-15", 432, "comfyui"),
        f"{_CLASSES}test_the_resembled_family_of_an_unknown_adapter_is_named",
        f"{_RECOGNISED}test_a_network_of_names_of_a_family_and_other_widths_is_none_of_it",
    ),
    "mlx_adapter": Case(
        _of_mlx,
        "adapter/test_problems.py::test_an_adapter_of_mlx_is_named",
        f"{_FOREIGN}test_a_folder_of_mlx_without_its_scale_is_refused",
    ),
    "no_weight_suffix": Case(
        whole("mochi", "mochi", 48),
        f"{_SPELLING}[no last word]",
        f"{_RECOGNISED}test_the_ends_of_keys_alone_name_no_dialect",
    ),
    "peft_base_layer": Case(
        of_peft("", half=True),
        f"{_MEANS}[embedding and head]",
        f"{_MEANS}[larger vocabulary, adapted]",
    ),
    "peft_kasa": Case(
        refused(5, "ad", "KaSA", *_LEAVES), f"{_FIELD}[kasa]", f"{_FIELD}[replicated layers]"
    ),
    "peft_moe": Case(
        of_peft("", half=True),
        f"{_MEANS}[target_parameters]",
        f"{_MEANS}[target_parameters, stacked]",
    ),
    "peft_pissa": Case(
        refused(5, "ad", "pissa subtracts", *_LEAVES), f"{_FIELD}[pissa]", f"{_FIELD}[olora]"
    ),
    "peft_tied_embed": Case(
        of_peft("", half=True), f"{_MEANS}[tied embedding]", f"{_MEANS}[tied head]"
    ),
    "peft_tokens": Case(
        of_peft(""), f"{_MEANS}[trainable_token_indices]", f"{_MEANS}[tied tokens]"
    ),
    "peft_type_inspect": Case(
        _cut_vera,
        f"{_NAMED}[VERA]",
        f"{_TYPE}[PROMPT_TUNING]",
    ),
    "simpletuner_base_model": Case(
        whole("simpletuner", "flux1", 114),
        f"{_SPELLING}[the wrapper of PEFT]",
        "dialects/test_trainers.py::test_files_of_simpletuner",
    ),
    "transformers_bases": Case(
        of_peft("t5", "clip", "qwen25vl", "vlm"),
        f"{_RECOGNISED}test_models_of_transformers_are_taken_by_their_configuration",
        f"{_MEANS}[two encoders]",
    ),
    "two_dialects_unknown": Case(
        _two_dialects,
        f"{_LOST}test_one_module_of_no_family_in_two_dialects_is_one",
        f"{_LOST}test_a_dialect_that_lacks_a_module_of_no_family_is_refused",
    ),
    "wan22_folder": Case(
        _two_networks,
        "stream/test_seconds.py::test_an_adapter_of_both_goes_into_both_with_a_weight_for_each",
        "adapter/test_networks.py::test_a_half_is_written_with_plain_names_and_comes_back",
    ),
    "wan_diff_m": Case(
        whole("wan_diff_m", "wan", 10, "--to diffusers"),
        "families/test_modulation.py::test_modulation_is_mixed_and_written_back",
        "families/test_modulation.py::test_modulation_is_added_to_that_of_the_base",
    ),
}


@pytest.fixture
def generators() -> Path:
    """The folder of generators, or a skip where there is none."""
    if not GENERATORS.is_dir():
        pytest.skip("no generators: shared is absent beside the repository")
    return GENERATORS


def test_every_generator_has_a_test(generators: Path) -> None:
    assert {path.stem for path in generators.glob("*.py")} == CASES.keys()


def test_the_tests_of_kinds_and_siblings_exist() -> None:
    for name, case in CASES.items():
        assert case.kind != case.sibling, name
        for test in (case.kind, case.sibling):
            file, _, function = test.partition("::")
            function, _, parameter = function.rstrip("]").partition("[")
            text = (TESTS / file).read_text("utf-8")
            assert f"def {function}(" in text and f'"{parameter}"' in f'{text}""', test


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_generator_comes_out_right(name: str, generators: Path, run: Runner) -> None:
    command = [sys.executable, str(generators / f"{name}.py"), "case"]
    subprocess.run(command, cwd=run.folder, check=True, capture_output=True)
    CASES[name].check(run)
