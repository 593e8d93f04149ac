"""Messages on the page name a parameter by the label that its form has."""

from __future__ import annotations

import re
from pathlib import Path

import loramerge.page
from loramerge.errors import Setting, UsageError, in_recipe
from loramerge.page.forms import form_of
from loramerge.page.labels import in_page, label
from loramerge.page.worker import error_json
from loramerge.verbs import known_verbs

WORDS = Path(loramerge.page.__file__).parent / "static" / "words.js"


def test_the_browser_has_the_same_labels():
    (table,) = re.findall(r"const NAMED = \{(.*?)\};", WORDS.read_text("utf-8"), re.S)
    named = dict(re.findall(r'(\w+): "([^"]*)"', table))
    assert len(named) > 10
    words = {
        one["word"]
        for verb in known_verbs().values()
        for one in form_of(verb)["parameters"]
        if one["word"] not in ("output", "force")  # not in the form, but at its end
    }
    assert named.keys() <= words
    for word in words:
        plain = word.replace("_", " ")
        assert label(word) == named.get(word, plain[0].upper() + plain[1:])


def test_a_hint_names_the_label_and_in_a_recipe_the_word():
    error = UsageError(
        "no", hint=(Setting("allow_again", True), " or ", Setting("dtype", "float16"))
    )
    assert error_json(error)["hint"] == "“Allow again” or “Data type”: float16"
    assert error_json(error)["text"] == "no"
    found = error_json(error, in_recipe)
    assert found["hint"] == "allow_again: true or dtype: float16"
    assert in_page(Setting("output")) == "“Save as”"
