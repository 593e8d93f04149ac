"""The page in a real browser: the story of a newcomer, all views, keyboard, phone, markup in names.

Chromium is taken from the path, or from $LORAMERGE_CHROMIUM; without one these tests skip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")

from loramerge.cli.main import main
from tests.builders.chromium import CONTRASTS, IN_CHROMIUM, launched
from tests.page.browser import opened, served
from tests.page.front import texts

pytestmark = IN_CHROMIUM
VIEWS = {
    "library": "Library", "mix": "Mix", "resize": "Resize", "bake": "Bake", "merge": "Merge",
    "convert": "Convert", "extract": "Extract", "train": "Train", "inspect": "Inspect", "diff": "Diff",
    "compare": "Compare", "recipes": "Recipes", "jobs": "Jobs", "do/heal": "Heal", "do/verify": "Verify",
}  # fmt: skip
DRAWS = find_spec("torch") is not None and find_spec("diffusers") is not None
MARKUP = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
PLANTED = "#frame script, #toasts img, #view img:not(.wipe-left, .wipe-right)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(folder, tmp_path_factory.mktemp("page-home")) as found:
        yield found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.skipif(not DRAWS, reason="torch and diffusers draw the preview")
def test_a_newcomer_mixes_the_shipped_adapters_in_three_clicks(
    browser, address, folder, monkeypatch
):
    """One click for the two, one on a slider, one to save; the file is the command line's."""
    with opened(browser, address) as tab:
        view = tab.view
        view.get_by_role("link", name="Mix zuzu and polka").click()
        before = tab.drawn()
        assert before["adapters"] == ["zuzu", "polka"]
        assert "32 × 32 pixels, enlarged" in view.locator(".preview-said").inner_text()
        first = view.locator(".wipe-right").get_attribute("src")
        slider = view.get_by_role("slider", name="Weight of zuzu", exact=True)
        box = slider.bounding_box()
        view.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        after = tab.drawn()
        assert before["adapters"] != after["adapters"]
        assert view.locator(".wipe-right").get_attribute("src") != first
        view.locator(".plan[data-state=shown]").wait_for()
        command = view.locator(".texts .code").inner_text()
        view.get_by_role("button", name="Save the mix").click()
        view.locator(".action .job[data-state=done]").wait_for()
        saved = view.locator(".action .outputs .path").get_attribute("title")
        assert (tab.said, tab.elsewhere) == ([], [])
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        words = command.split()
        assert words[:2] == ["loramerge", "mix"] and after["adapters"] == words[2:4]
        assert main([*words[1:], "-o", "by-hand.safetensors", "-q"]) == 0
        assert digest(Path(saved)) == digest(Path("by-hand.safetensors"))


@pytest.mark.skipif(not DRAWS, reason="torch and diffusers draw the preview")
def test_a_drag_asks_for_one_picture_at_a_time_and_ends_with_the_newest(browser, address):
    with opened(browser, address, "mix?add=zuzu&add=polka") as tab:
        tab.drawn()
        flying, most, count = 0, 0, 0

        def begun(request):
            nonlocal flying, most, count
            if "/api/live" in request.url and '"preview"' in (request.post_data or ""):
                flying, count = flying + 1, count + 1
                most = max(most, flying)

        def ended(request):
            nonlocal flying
            if "/api/live" in request.url and '"preview"' in (request.post_data or ""):
                flying -= 1

        tab.view.on("request", begun)
        tab.view.on("requestfinished", ended)
        box = tab.view.get_by_role("slider", name="Weight of polka", exact=True).bounding_box()
        y = box["y"] + box["height"] / 2
        tab.view.mouse.move(box["x"] + box["width"] * 0.4, y)
        tab.view.mouse.down()
        tab.view.mouse.move(box["x"] + box["width"] * 0.9, y, steps=30)
        tab.view.mouse.up()
        weight = tab.view.get_by_role("spinbutton", name="Weight of polka, as a number")
        assert tab.drawn()["adapters"] == ["zuzu", f"polka:{weight.input_value()}"]
        assert most == 1 and 1 <= count < 30 and tab.said == []


def test_every_view_has_a_title_and_names_for_its_controls(browser, address):
    with opened(browser, address) as tab:
        for route, title in VIEWS.items():
            tab.go(route)
            assert tab.view.locator("h1").inner_text() == title
            assert tab.view.title() == f"{title} · loramerge"
            assert tab.view.locator(".side [aria-current=page]").inner_text() == title
            assert tab.view.evaluate(NAMELESS) == [], route
        assert (tab.said, tab.elsewhere) == ([], [])


# controls that a screen reader has no name for
NAMELESS = """() => [...document.querySelectorAll(
    'button, a[href], input, select, textarea, [role=slider]')]
  .filter((n) => n.checkVisibility())
  .filter((n) => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length))
  .map((n) => n.outerHTML.slice(0, 120))"""


def test_views_are_legible_in_light_and_dark_and_fit_a_phone(browser, address):
    with opened(browser, address, size=(360, 740), reduced_motion="reduce") as tab:
        for route in VIEWS:
            tab.go(route)
            assert tab.is_wide <= 0, route
            assert tab.view.locator(".foot").is_visible()
            for scheme in ("light", "dark"):
                tab.view.emulate_media(color_scheme=scheme)
                assert tab.view.evaluate(CONTRASTS) >= 4.5, (route, scheme)


def test_all_modules_are_read_by_the_browser(browser, address):
    with opened(browser, address) as tab:
        for name in texts():
            if name.endswith(".js"):
                assert tab.view.evaluate("(name) => import(`/static/${name}`).then(() => 1)", name)
        assert tab.said == []


def test_the_page_can_be_used_by_keyboard(browser, address):
    with opened(browser, address, "mix?add=zuzu&add=polka") as tab:
        keys, view = tab.view.keyboard, tab.view
        focus = lambda what: view.evaluate(f"document.activeElement.{what}")  # noqa: E731
        order = lambda: view.locator(".stack-name").all_inner_texts()  # noqa: E731
        view.locator(".stack-item").nth(1).wait_for()
        keys.press("Tab")
        assert focus("className") == "skip"
        keys.press("Enter")
        assert focus("id") == "main"
        view.get_by_role("button", name="Move polka, 2 of 2").focus()
        keys.press("ArrowUp")
        assert order() == ["polka", "zuzu"]
        assert focus("ariaLabel") == "Move polka, 1 of 2"
        keys.press("ArrowDown")
        assert order() == ["zuzu", "polka"]
        keys.press("?")
        assert view.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
        keys.press("Escape")
        assert view.get_by_role("dialog").count() == 0
        keys.press("/")
        assert focus("type") == "search"
        keys.press("Escape")
        keys.press("g")
        keys.press("j")
        view.locator('.view-root[data-view="jobs"]').wait_for()
        assert tab.said == []


def test_a_reload_loses_nothing(browser, address):
    with opened(browser, address, "mix?add=zuzu&add=polka") as tab:
        weight = tab.view.get_by_role("spinbutton", name="Weight of zuzu, as a number")
        weight.fill("0.37")
        tab.view.get_by_label("Save as").fill("kept.safetensors")
        tab.view.get_by_role("combobox", name="Method").select_option("slerp")
        tab.view.reload()
        assert weight.input_value() == "0.37"
        assert tab.view.get_by_label("Save as").input_value() == "kept.safetensors"
        assert tab.view.get_by_role("combobox", name="Method").input_value() == "slerp"
        tab.view.get_by_role("button", name="Dark colours").click()
        tab.view.reload()
        assert tab.view.locator("html").get_attribute("data-theme") == "dark"


def test_the_handle_on_the_curve_chooses_the_rank(browser, address):
    with opened(browser, address, "resize?file=zuzu") as tab:
        handle = tab.view.get_by_role("slider", name="Smaller to larger")
        handle.press("End")
        code = tab.view.locator(".texts .code")
        code.get_by_text("loramerge resize zuzu --rank 7", exact=True).wait_for()
        handle.press("Home")
        code.get_by_text("loramerge resize zuzu --rank 1", exact=True).wait_for()
        assert "rank 1, " in tab.view.locator(".handle-said").inner_text()
        tab.view.get_by_role("radio", name="Best rank in each module").click()
        code.get_by_text("--max-size").wait_for()
        tab.view.get_by_text("Modules that lose most").click()
        assert tab.view.get_by_role("row").count() > 5
        assert (tab.said, tab.elsewhere) == ([], [])


def test_a_verb_that_writes_runs_only_when_it_is_told(browser, address):
    """`meta` gives a report, and changes the file."""
    with opened(browser, address, "do/meta?file=zuzu") as tab:
        asked: list[str] = []
        tab.view.on("request", lambda request: asked.append(request.url))
        tab.view.get_by_label("Set", exact=True).fill("a=b")
        tab.view.locator(".texts .code").get_by_text("a=b").wait_for()
        tab.view.wait_for_timeout(600)
        assert any("/api/action" in url for url in asked)
        assert not any("/api/live" in url or "/api/jobs" in url for url in asked)


def test_a_running_training_is_shown_after_a_reload(browser, address):
    running = {
        "id": "1", "title": "train a", "verb": "train", "values": {}, "command": "", "state": "running",
        "created": 1, "started": 1, "ended": None, "events": [], "error": None, "outputs": [],
        "progress": {"task": "train", "done": 3, "total": 4, "unit": "steps", "said": ""},
    }  # fmt: skip
    losses = {"steps": 3, "losses": [[1, 1.5], [2, 1], [3, 0.5]], "validation": [], "samples": None}
    answers = {"/api/jobs": [running], "/api/jobs/1/training": {**losses, "findings": []}}
    with opened(browser, address, "train", answers=answers) as tab:
        tab.view.locator(".watching .chart").wait_for()
        assert (
            tab.view.get_by_role("progressbar", name="train a").get_attribute("aria-valuenow")
            == "75"
        )
        assert tab.view.get_by_role("button", name="Stop and keep").is_visible()
        assert tab.view.locator(".indicator").inner_text() == "1 job · 75 %"


def test_what_ends_before_the_stream_is_there_is_not_shown_as_running(browser, address):
    job = {"id": "1", "title": "bake q", "verb": "bake", "values": {}, "created": 1, "started": 1,
           "command": "", "events": [], "outputs": []}  # fmt: skip
    states = iter(["running"])
    answers = {"/api/jobs": lambda request: [job | {"state": next(states, "done"), "ended": 2}]}
    with opened(browser, address, "jobs", answers=answers) as tab:
        tab.view.locator(".job[data-state=done]").wait_for()


def test_an_example_is_a_recipe_that_is_not_saved_yet(browser, address):
    with opened(browser, address, "recipes") as tab:
        view = tab.view
        view.get_by_role("combobox", name="Recipes that come along").select_option("block-weights")
        area = view.get_by_role("textbox", name="Text of the recipe")
        assert "version: 1" in area.input_value()
        assert view.get_by_text("not saved yet").is_visible()
        area.fill("version: 1\nsteps: {a: {mixx: {}}}")
        view.get_by_text("did you mean mix?").wait_for()
        assert view.get_by_text("This recipe has no steps").count() == 0
        assert (tab.said, tab.elsewhere) == ([], [])


def test_an_adapter_that_is_named_in_the_address_gets_the_weights_of_its_family(browser, address):
    found = {"total": 1, "cards": [card(7, reference="own", family="sd15")], "families": []}
    with opened(browser, address, "mix?add=own", answers={"/api/library": found}) as tab:
        tab.view.get_by_role("button", name="Finer weights of own").click()
        tab.view.get_by_text("Per block", exact=True).wait_for()
        if DRAWS:
            tab.view.get_by_text("tiny cannot draw own, which is for sd15").wait_for()


def test_two_models_are_averaged_at_first(browser, address):
    with opened(browser, address, "merge") as tab:
        for name in ("tiny", "tiny-outlined"):
            tab.view.get_by_role("button", name="Add a model").click()
            dialog = tab.view.get_by_role("dialog")
            dialog.get_by_role("button", name=f"{name} comes with loramerge").click()
        tab.view.get_by_text("loramerge merge tiny:0.5 tiny-outlined:0.5").wait_for()
        run = tab.view.get_by_role("button", name="Merge", exact=True)
        weight = tab.view.get_by_role("spinbutton", name="Weight of tiny, as a number")
        weight.fill("0.75")  # the plan is an error, which one click mends
        tab.view.locator(".plan").get_by_text("must sum to 1; found 1.25").wait_for()
        assert run.is_disabled()
        assert tab.view.get_by_role("button", name="Save as recipe").is_disabled()
        tab.view.get_by_role("button", name="Scale to sum 1").click()
        code = tab.view.locator(".texts .code")
        code.get_by_text("loramerge merge tiny:0.6 tiny-outlined:0.4", exact=True).wait_for()
        tab.view.locator(".plan[data-state=shown] .meter").first.wait_for()
        assert run.is_enabled()
        tab.view.get_by_label("Data type").fill("junk")
        code.get_by_text("—", exact=True).wait_for()  # and not the command of before
        assert run.is_disabled()
        tab.view.get_by_label("Data type").fill("float8_e4m3")
        tab.view.locator(".plan").get_by_text("Error", exact=True).wait_for()
        run.click()
        tab.view.locator(".action .job").get_by_text("of the change kept after rounding").wait_for()


def test_finer_weights_are_of_the_components_that_an_adapter_has(browser, address):
    whole = {"family": "sd15", "components": ["unet", "te"]}
    for own, offered in (({**whole, "components": ["unet"]}, False), (whole, True)):
        found = {"total": 1, "cards": [card(7, reference="own", **own)], "families": []}
        with opened(browser, address, "mix?add=own", answers={"/api/library": found}) as tab:
            tab.view.get_by_role("button", name="Finer weights of own").click()
            tab.view.get_by_text("Per block", exact=True).wait_for()
            assert tab.view.get_by_text("Per component", exact=True).count() == offered
            tab.view.get_by_role("radio", name="Curve").click()
            assert tab.view.get_by_text("Text encoder", exact=True).count() == offered


def links(tab: Any) -> list[str]:
    """Wait for a job of the panel to be done; return the links of what it wrote."""
    tab.view.locator(".action .job[data-state=done]").wait_for()
    found: list[str] = tab.view.locator(".action .outputs a").all_inner_texts()
    return found


def test_a_name_gets_its_ending_and_what_exists_is_replaced(browser, address, folder):
    with opened(browser, address, "mix?add=zuzu&add=polka") as tab:
        view, name = tab.view, tab.view.get_by_label("Save as")
        save = view.get_by_role("button", name="Save the mix")
        code = view.locator(".texts .code")
        name.fill("style v1.5")
        code.get_by_text("-o 'style v1.5.safetensors'").wait_for()
        save.click()
        assert links(tab) == ["Inspect", "Add to mix", "Resize", "Bake"]
        assert (folder / "style v1.5.safetensors").is_file()
        name.fill("a.gguf")  # known, and wrong here
        code.get_by_text("-o a.gguf").wait_for()
        save.click()
        view.get_by_text("Type another name.").wait_for()
        assert view.locator(".job button").all_inner_texts() == [""]  # takes it off the list
        name.fill("")
        code.get_by_text("loramerge mix zuzu polka", exact=True).wait_for()
        assert name.get_attribute("placeholder") == "zuzu+polka.safetensors"
        (folder / "zuzu+polka.safetensors").write_bytes(b"meanwhile")
        save.click()
        view.get_by_text("Replace it, or type another name.").wait_for()
        assert view.get_by_role("button", name="Run again").count() == 0
        assert "force" not in view.locator(".action .job").inner_text()
        view.get_by_role("button", name="Replace it").click()
        assert links(tab) == ["Inspect", "Add to mix", "Resize", "Bake"]


def test_the_name_is_shown_before_and_what_it_replaces(browser, address, folder):
    (folder / "zuzu@0.5.safetensors").write_bytes(b"first")
    with opened(browser, address, "mix?add=zuzu") as tab:
        view, save = tab.view, tab.view.get_by_role("button", name="Save the mix")
        weight = view.get_by_role("spinbutton", name="Weight of zuzu, as a number")

        def weigh(number: str) -> None:
            weight.fill(number)
            weight.press("Enter")
            view.locator(f".action input[placeholder='zuzu@{number}.safetensors']").wait_for()

        weigh("0.5")
        box = view.get_by_label("Replace the file that is there: zuzu@0.5.safetensors")
        box.wait_for()
        assert save.is_disabled()
        box.check()
        view.get_by_role("tab", name="YAML").click()
        view.locator(".texts .code").get_by_text("save: zuzu@0.5.safetensors").wait_for()
        weigh("0.4")  # nothing is there
        view.locator(".replace").wait_for(state="hidden")
        weigh("0.5")  # it was agreed to before, and is asked for once more
        box.wait_for()
        assert not box.is_checked() and save.is_disabled()
        box.check()
        save.click()
        view.locator(".action .job[data-state=done]").wait_for()
        view.locator(".replace:not([hidden])").wait_for()  # the new one
        assert (folder / "zuzu@0.5.safetensors").stat().st_size > 1000
        view.get_by_role("button", name="Save as recipe").click()
        view.get_by_role("dialog").wait_for()  # no name has to be typed first


def test_bake_says_what_it_needs_and_its_result_leads_on(browser, address):
    with opened(browser, address, "bake") as tab:
        tab.view.get_by_text("Needed: a base and an adapter.").wait_for()
        tab.view.get_by_label("Base").first.fill("tiny")
        tab.view.get_by_text("Needed: an adapter.").wait_for()
        assert tab.view.locator(".note.bad").count() == 0
        tab.go("bake?file=zuzu")
        tab.view.locator(".texts .code").get_by_text("--base tiny").wait_for()
        tab.view.locator(".plan").get_by_text("Worst module: unet.").wait_for()
        tab.view.get_by_role("button", name="Bake", exact=True).click()
        assert links(tab) == ["Inspect", "Verify", "Preview"]
        tab.view.get_by_role("link", name="Verify").last.click()
        report = tab.view.frame_locator(".report-frame")
        report.get_by_text("It holds what it should.").wait_for()
        assert (tab.said, tab.elsewhere) == ([], [])


def test_the_tray_has_the_newest_and_says_how_many_more(browser, address):
    asked: list[str] = []

    def page(request):
        asked.append(request.url)
        return {"total": 10, "cards": [card(n) for n in range(6)], "families": []}

    with opened(browser, address, "mix", answers={"/api/library": page}) as tab:
        tab.view.get_by_role("button", name="4 more…").click()
        tab.view.get_by_role("dialog", name="Choose an adapter").wait_for()
        assert parse_qs(urlsplit(asked[0]).query)["sort"] == ["newest"]


def test_a_library_without_copies_says_so(browser, address):
    nothing = {"/api/library": {"total": 0, "cards": [], "families": []}}
    with opened(browser, address, answers=nothing) as tab:
        tab.view.get_by_label("Only duplicates").check()
        tab.view.get_by_text("No two adapters here are copies").wait_for()


def card(number: int, **more: Any) -> dict[str, Any]:
    """An adapter of a library, as the server tells of it."""
    name = f"adapter {number:04d}"
    return {
        "id": f"c{number}", "name": name, "path": f"/loras/{name}.safetensors", "reference": name,
        "family": "sd15", "kinds": ["lora"], "ranks": {"8": 10}, "rank": "8", "size": 1_000_000 + number,
        "trigger_words": [], "tags": [], "own_tags": [], "rating": None, "note": None, "problems": [],
        "picture": False,
    } | more  # fmt: skip


def test_names_with_markup_stay_text(browser, address):
    answers = {
        "/api/library": {
            "total": 1,
            "cards": [
                card(
                    1, name=MARKUP, path=MARKUP, reference=MARKUP, family=MARKUP, tags=[MARKUP],
                    trigger_words=[MARKUP], problems=[{"severity": "error", "text": MARKUP}],
                )
            ],
            "families": [{"name": MARKUP, "count": 1}],
        },
        "/api/library/c1": {"title": MARKUP, "description": MARKUP, "base": {"a": MARKUP}},
        "/api/jobs": [
            {
                "id": "1", "title": MARKUP, "verb": MARKUP, "values": None, "command": MARKUP,
                "state": "failed", "created": 1, "started": 1, "ended": 2, "outputs": [MARKUP],
                "events": [{"kind": "note", "text": MARKUP}], "error": {"text": MARKUP, "hint": MARKUP},
            }
        ],
    }  # fmt: skip
    with opened(browser, address, answers=answers) as tab:
        tab.view.get_by_role("button", name="Details of").click()
        tab.view.get_by_role("dialog").wait_for()
        tab.view.keyboard.press("Escape")
        for route in ("mix", f"mix?add={MARKUP}", "jobs"):
            tab.go(route)
            tab.view.wait_for_timeout(200)
            assert tab.view.locator(PLANTED).count() == 0
            assert MARKUP in tab.view.locator("#view").inner_text() or route == "mix"
        assert tab.view.title() == "Jobs · loramerge"
        assert [text for text in tab.said if "status of 400" not in text] == []


def test_of_5000_cards_only_those_in_sight_exist(browser, address):
    def page(request):
        query = parse_qs(urlsplit(request.url).query)
        first, limit = (int(query[name][0]) for name in ("offset", "limit"))
        cards = [card(number) for number in range(first, min(first + limit, 5000))]
        return {"total": 5000, "cards": cards, "families": []}

    with opened(browser, address, answers={"/api/library": page}) as tab:
        tab.view.locator(".card").first.wait_for()
        assert tab.view.get_by_role("status").get_by_text("5,000 adapters").count() == 1
        for share in (0.25, 0.5, 1):
            tab.view.evaluate(
                "(s) => scrollTo(0, s * document.documentElement.scrollHeight)", share
            )
            tab.view.wait_for_timeout(250)
            assert 4 <= tab.view.locator(".card").count() <= 60
        last = tab.view.locator(".card").last
        assert last.get_attribute("aria-posinset") == "5000"
        assert "adapter 4999" in last.inner_text() and tab.said == []
