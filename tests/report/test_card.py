"""Model cards: the fields are those that are known, whatever texts hold, and nothing is made up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import loramerge as lm
from loramerge.report.card import LICENSES, CardContent, card_text, escaped
from tests.builders.world import rewrite

SAID = {
    "modelspec.title": "Zuzu <the> cat | #1",
    "modelspec.description": "First *line*.\n---\n[link](javascript:alert(1))",
    "modelspec.license": "CreativeML Open RAIL-M",
    "modelspec.trigger_phrase": "zuzu, red `cat`",
    "modelspec.tags": "animal, cat: small",
    "ss_sd_model_name": "v2-1.safetensors", "ss_steps": "100",
}  # fmt: skip


def parts_of(path):
    """The header of a card as data, and what follows it."""
    _, front, rest = Path(path).read_text("utf-8").split("---\n", 2)
    return YAML(typ="safe").load(front), rest


@pytest.fixture
def known(run):
    """An adapter whose header says much."""
    rewrite(run.folder / "a.safetensors", run.folder / "zuzu.safetensors",
            lambda arrays, metadata: metadata.update(SAID))  # fmt: skip
    return run


def test_what_the_header_says_is_in_the_card(known):
    shown = known.ok("card", "zuzu")
    assert "README.md" in shown.out and "base_model; give --base-model" in shown.err
    front, body = parts_of("README.md")
    assert front["license"] == "creativeml-openrail-m" and "license_name" not in front
    assert (
        front["instance_prompt"] == "zuzu, red `cat`" and front["pipeline_tag"] == "text-to-image"
    )
    assert {"lora", "animal", "cat: small"} <= set(front["tags"])
    assert "base_model" not in front and "widget" not in front
    assert "# Zuzu &lt;the&gt; cat \\| \\#1\n" in body and "`` red `cat` ``" in body
    assert "First \\*line\\*." in body and "\n\\---\n" in body and "](javascript" not in body
    assert "| steps | 100 |" in body and "## Recipe" not in body


def test_nothing_is_made_up_about_a_file_that_says_nothing(run):
    run.ok("meta", "a", "--strip")
    found = run.ok("card", "a", "-o", "A.md", "--json").json
    front, body = parts_of("A.md")
    assert set(front) <= {"library_name", "pipeline_tag", "tags"}
    assert {"base_model", "license", "instance_prompt"} <= set(found["missing"])
    assert "## Training" not in body and "Trigger" not in body and str(run.folder) not in body
    sha = run.ok("inspect", "a", "--hash", "--json").json[0]["hashes"]["sha256"]
    assert sha in body


def test_the_recipe_is_that_of_the_header_and_can_be_run(run):
    run.ok("mix", "a:0.7", "b:0.3", "-o", "mixed.safetensors")
    run.ok("card", "mixed")
    _, body = parts_of("README.md")
    recipe = json.loads(re.search(r"```json\n(.*?)\n```", body, re.DOTALL)[1])
    header = run.ok("meta", "mixed", "--json").json["metadata"]["loramerge.recipe"]
    assert recipe == json.loads(header)
    command = re.search(r"`(loramerge run [^`]+)`", body)[1]
    assert "same file" in run.ok(*command.split()[1:]).out


def test_given_values_win_and_pictures_are_linked(known):
    Path("zuzu.preview.png").write_bytes(b"\x89PNG\r\n")
    Path("pictures").mkdir()
    Path("pictures/a b.png").write_bytes(b"\x89PNG\r\n")
    known.ok("card", "zuzu")
    front, body = parts_of("README.md")
    assert front["widget"] == [{"text": "-", "output": {"url": "zuzu.preview.png"}}]
    assert "](zuzu.preview.png)" in body
    known.ok("card", "zuzu", "--force", "--picture", "pictures/a b.png", "--license", "My <own> v1",
             "--base-model", "owner/name")  # fmt: skip
    front, body = parts_of("README.md")
    assert front["widget"][0]["output"]["url"] == "pictures/a b.png"
    assert "](pictures/a%20b.png)" in body
    assert (front["license"], front["license_name"]) == ("other", "my-own-v1")
    assert (front["base_model"], front["base_model_relation"]) == ("owner/name", "adapter")
    assert 'from_pretrained("owner/name")' in body or "diffusers" not in body


def test_what_other_programs_keep_beside_a_file_is_in_the_card(run):
    run.ok("meta", "b", "--strip")
    told = {
        "model": {"name": "Zuzu *x*", "tags": ["animal"], "description": "<p>A <b>cat</b>.</p>"},
        "trainedWords": ["zuzu"], "baseModel": "SD 2.1", "notes": "private",
    }  # fmt: skip
    Path("b.civitai.info").write_text(json.dumps(told), "utf-8")
    run.ok("card", "b")
    front, body = parts_of("README.md")
    assert front["instance_prompt"] == "zuzu" and "animal" in front["tags"]
    assert "base_model" not in front  # a site's word for a family is no name of a model on a hub
    assert "# Zuzu \\*x\\*\n" in body and "A cat." in body and "| made for | SD 2.1 |" in body
    assert "private" not in body
    rewrite(run.folder / "a.safetensors", run.folder / "b.safetensors",
            lambda arrays, metadata: metadata.update(SAID))  # fmt: skip
    run.ok("card", "b", "--force")
    front, body = parts_of("README.md")
    assert (
        front["instance_prompt"] == SAID["modelspec.trigger_phrase"]
        and "# Zuzu &lt;the&gt;" in body
    )


def test_what_is_refused(known):
    known.ok("card", "zuzu")
    known.refused(3, "card", "zuzu", says="exists")
    known.refused(3, "card", "zuzu", "--force", "--picture", "none.png", says="no such picture")
    Path("sub").mkdir()
    Path("far.png").write_bytes(b"")
    known.refused(2, "card", "zuzu", "-o", "sub/C.md", "--picture", "far.png", says="or below")
    known.refused(4, "card", "base.safetensors", "-o", "B.md", says="checkpoint")


def test_the_same_file_gives_the_same_card(known):
    known.ok("card", "zuzu", "-o", "1.md")
    known.ok("card", "zuzu", "-o", "2.md")
    assert Path("1.md").read_bytes() == Path("2.md").read_bytes()


def test_a_peft_folder_names_its_base_and_gets_its_card(run):
    run.ok("mix", "a", "--to", "peft", "-o", "p")
    config = next(Path("p").rglob("adapter_config.json"))
    content = json.loads(config.read_text())
    for name, expected in (("owner/base-1.5", "owner/base-1.5"), ("/home/me/model", None)):
        config.write_text(json.dumps(content | {"base_model_name_or_path": name}))
        run.ok("card", "p", "--force")
        front, _ = parts_of("p/README.md")
        assert front.get("base_model") == expected
    assert len(list(Path("p").glob("README.md"))) == 1


def test_from_python(known):
    found = lm.card("zuzu.safetensors", license="mit")
    assert found.output.endswith("README.md") and parts_of("README.md")[0]["license"] == "mit"
    with pytest.raises(lm.LoramergeError, match="exists"):
        lm.card("zuzu.safetensors")
    with pytest.raises(lm.UsageError, match="path or a name"):
        lm.card(lm.load("zuzu.safetensors"))  # type: ignore[arg-type]
    assert "README.md" in repr(lm.card("zuzu.safetensors", force=True))


def test_it_is_a_step(run):
    Path("r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\nsteps:\n"
        "  half: {mix: {adapters: ['a:0.5']}, save: half.safetensors}\n"
        "  told: {card: {file: half, base_model: owner/name}, save: CARD.md}\n"
    )
    assert run.ok("plan", "r.yaml", "--json").json["tasks"]["told"]["verb"] == "card"
    run.ok("run", "r.yaml")
    front, body = parts_of("CARD.md")
    assert front["base_model"] == "owner/name" and "# half" in body
    text = Path("r.yaml").read_text()
    Path("x.yaml").write_text(text.replace("CARD.md", "CARD.txt"))
    run.refused(6, "run", "x.yaml", says="Markdown")
    text = text.replace(", save: half.safetensors", "").replace("CARD.md", "OTHER.md")
    Path("y.yaml").write_text(text)
    run.refused(2, "run", "y.yaml", says="in memory")


TEXTS = (
    "plain", "---", "yes", "1.5", "a: b", "# x", "'\"", "[a]", "{b}", "null", "é 猫", "a\nb: c", "-",
    "!tag", "&x", "*y", "%z", "@a", "`b`", "\x1b[2J", "a #b", "a:", "~", "0x1F", "2020-01-01",
    "a\n---\nb",
)  # fmt: skip


def test_headers_are_yaml_whatever_the_texts():
    widget = [{"text": text, "url": text} for text in TEXTS]
    for text in TEXTS:
        header = {"base_model": text, "tags": list(TEXTS), "widget": widget}
        lines = card_text(CardContent(title="t", file="f", header=header)).splitlines()
        assert lines[0] == "---" and lines.count("---") == 2
        front = YAML(typ="safe").load("\n".join(lines[1 : lines.index("---", 1)]))
        clean = [one.replace("\x1b", " ") for one in TEXTS]
        assert front["tags"] == [one["output"]["url"] for one in front["widget"]] == clean
        assert front["base_model"] == text.replace("\x1b", " ")


@pytest.mark.parametrize("text", ["<script>x</script>", "[a](b)", "![a](b)", "a|b", "*b*", "`c`", "# h",
                                  "1. x", "- x", "&lt;", "a\n\n# b"])  # fmt: skip
def test_texts_stay_texts(text):
    shown = escaped(text)
    assert "\n" not in shown and not re.search(r"<|(?<!\\)[\[\]`*|]|^#|^- |^\d+\. ", shown)
    assert "&lt;" not in text or "&amp;lt;" in shown


def test_fences_are_longer_than_what_they_hold():
    text = card_text(
        CardContent(title="t", file="f", header={}, recipe={"a": "````\n# x"}, words=["``a`"])
    )
    assert "\n`````json\n" in text and "```` ``a` ````"[1:-1] in text.replace("````` ", "```` ")


def test_the_identifiers_of_licenses_are_apart():
    letters = {re.sub(r"[^a-z0-9+.]", "", one) for one in LICENSES}
    assert len(letters) == len(LICENSES) and "fair-noncommercial-research-license" in LICENSES


def test_files_that_come_with_the_program_get_their_card_here(run):
    found = run.ok("card", "zuzu", "--json")
    assert found.json["outputs"] == ["README.md"] and Path("README.md").is_file()
    shutil.rmtree("p", ignore_errors=True)
