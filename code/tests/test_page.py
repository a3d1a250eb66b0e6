"""The demo's page in a real browser: Debian's chromium, driven by Playwright, without a network."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from serving import serving_here

from distilbert_kit.paths import CODE
from distilbert_kit.serve import app
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.study.figures import STUDENT, TEACHER

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: the page is untested"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: the page is untested (apt-get install chromium)"
)
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
SHOTS = os.environ.get("SCREENSHOTS")  # a folder for pictures to look at


@pytest.fixture(scope="module")
def address(exported, tmp_path_factory):
    """A teacher and a student for each task, each folder with weights and graphs."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("squad", "news"):
        shutil.copytree(exported / f"{kind}-int8", folder / kind)
        shutil.copy(exported / kind / "model.safetensors", folder / kind)
    names = [(name, kind) for name in ("Teacher", "Student") for kind in ("squad", "news")]
    models = {f"{name}, {kind}": folder / kind for name, kind in names}
    compared = Comparison(models, Path())
    with serving_here(compared) as port:
        compared.load()
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page as asked; whatever it logs as an error or sends elsewhere fails the test."""
    contexts, wrong = [], []

    def open_it(**arguments):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | arguments)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: r.url.startswith(address) or wrong.append(r.url))
        page.goto(address)
        page.get_by_text("Ready:").wait_for()
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not wrong


def look(page, name):
    """Neither barrier nor sideways scrolling; with SCREENSHOTS a picture."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)
    found = axe.Axe().run(page).response["violations"]
    bad = [
        (v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert not bad, bad
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def ask(page, **fields):
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#answers:not([aria-busy]) article").nth(1).wait_for()


def test_a_question_is_answered_with_its_span_marked(open_page):
    page = open_page()
    context = "Ann 😀 says it is in <b>Paris</b>, or é in Rome."
    with page.expect_response("**/answer") as answered:
        ask(page, question="Where?", context=context)
    rows = answered.value.json()
    articles = page.locator("article")
    assert articles.locator("h3").all_inner_texts() == ["Teacher, squad", "Student, squad"]
    for number, row in enumerate(rows):
        article, best = articles.nth(number), row["answers"][0]
        assert article.locator("mark").text_content() == best["text"]
        assert article.locator(".context").text_content() == context
        before = article.locator(".context").evaluate("p => p.firstChild.textContent")
        assert before == context[: best["start"]]
        figures = article.locator(".figures").inner_text()
        assert f"{100 * best['probability']:.1f} %" in figures
        # A browser writes 39.0 as 39.
        assert f"{row['milliseconds']:g} ms" in figures and f"{row['megabytes']:g} MB" in figures
    assert page.evaluate("document.activeElement.id") == "answers-title"
    look(page, "desktop")


def test_what_is_written_before_the_server_first_answers_stays(browser, address):
    page = browser.new_page()
    page.add_init_script(
        "addEventListener('DOMContentLoaded', () => { "
        "document.getElementById('question').value = 'Who?' })"
    )
    page.goto(address)
    page.get_by_text("Ready:").wait_for()
    assert page.locator("#question").input_value() == "Who?"
    assert page.locator("#text").input_value()  # an example, where nothing was
    page.close()


def test_task_precision_examples_and_history(open_page):
    page = open_page()
    page.get_by_label("Sentiment and other labels").check()
    with page.expect_request("**/classify") as sent:
        page.get_by_role("button", name="Not a single joke in it is funny.").click()
    assert json.loads(sent.value.post_data)["precision"] == "fp32"
    page.locator("article").nth(1).wait_for()
    sizes = page.locator("[data-figure=size]").all_inner_texts()
    with page.expect_request("**/classify") as sent:
        page.get_by_label("int8").check()
    assert json.loads(sent.value.post_data)["precision"] == "int8"
    page.locator("#asked", has_text="(int8)").wait_for()
    assert page.locator("[data-figure=size]").all_inner_texts() != sizes
    assert set(page.locator("article .answer").all_inner_texts()) <= {"bad", "good", "so-so"}
    page.reload()
    past = page.locator("#history button")
    past.nth(1).wait_for()
    assert past.all_inner_texts() == [
        "Not a single joke in it is funny.\nint8",
        "Not a single joke in it is funny.\nfp32",
    ]
    past.nth(0).click()
    page.locator("#asked", has_text="(int8)").wait_for()
    look(page, "labels")
    page.get_by_role("button", name="Forget them").click()
    assert page.locator("#past").is_hidden() and page.evaluate("sessionStorage.length") == 0


def test_the_keyboard_alone_is_enough(open_page):
    page = open_page()

    def tab_to(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(outline) != "none"
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("input[name=task]")
    page.keyboard.press("ArrowRight")
    tab_to("#text")
    page.keyboard.press("Control+A")
    page.keyboard.type("a fine film")
    tab_to("input[name=precision]")
    page.keyboard.press("ArrowRight")
    tab_to("#ask")
    page.keyboard.press("Enter")
    page.locator("#asked", has_text="a fine film (int8)").wait_for()
    assert page.locator("article").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_and_a_dark_screen(open_page, scheme):
    page = open_page(viewport={"width": 375, "height": 800}, color_scheme=scheme)
    ask(page, question="W" * 60, context="unbroken" * 60)
    look(page, f"phone-{scheme}")
    lights = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", lights)[:3])) < 150) == (scheme == "dark")
    page.set_viewport_size({"width": 1280, "height": 900})
    look(page, f"desktop-{scheme}")


def test_bad_input_and_a_lost_server_are_told(open_page):
    page = open_page()
    button = page.get_by_role("button", name="Ask", exact=True)
    page.locator("#question").fill("  ")
    button.click()
    alert = page.get_by_role("alert")
    assert alert.inner_text() == "Question: this is empty; write something."
    assert page.evaluate("document.activeElement.id") == "question"
    for name, value in (("invalid", "true"), ("describedby", "problem")):
        assert page.locator("#question").get_attribute(f"aria-{name}") == value
        assert page.locator("#context").get_attribute(f"aria-{name}") is None
    look(page, "problem")
    page.locator("#question").fill("who\u200b")
    page.locator("#context").fill("a" * (app.LONGEST + 1))
    button.click()
    assert f"{app.LONGEST + 1:,} characters" in alert.inner_text()
    page.locator("#context").fill("\u200b")
    button.click()
    page.get_by_text("empty context").wait_for()
    page.route("**/answer", lambda route: route.abort())
    page.locator("#context").fill("Bob")
    button.click()
    page.get_by_text("does not answer").wait_for()


def test_loading_is_shown_until_the_models_are_there(open_page):
    page = open_page()
    ready = page.evaluate("fetch('/state').then((response) => response.json())")
    loading = ready | {"doing": "loading Teacher", "ready": {"text-classification": []}}
    page.route("**/state", lambda route: route.fulfill(json=loading))
    page.reload()
    page.get_by_text("Loading Teacher …").wait_for()
    assert page.locator("#form").is_hidden()
    loading["ready"] = {"text-classification": ["fp32"]}
    page.get_by_text("(being made)").wait_for()
    assert page.get_by_label("int8").is_disabled()
    # A status that is written again would be said again.
    page.evaluate(
        "window.changes = 0; new MutationObserver(() => changes++).observe("
        "document.getElementById('state'), { childList: true, characterData: true, subtree: true })"
    )
    for _ in range(3):  # the third comes after the second was shown
        with page.expect_response("**/state"):
            pass
    assert page.evaluate("changes") == 0


def test_a_broken_model_hides_its_task_alone(open_page):
    page = open_page()
    ready = page.evaluate("fetch('/state').then((response) => response.json())")
    ready |= {
        "error": "Teacher: no weights",
        "ready": {"question-answering": [], "text-classification": ["fp32"]},
    }
    page.route("**/state", lambda route: route.fulfill(json=ready))
    page.reload()
    page.get_by_text("Teacher: no weights").wait_for()
    assert page.get_by_label("Question answering").is_disabled()
    assert page.get_by_label("Sentiment and other labels").is_checked()
    ask(page, text="a fine film")


def test_another_precision_is_asked_when_the_first_is_done_and_keeps_the_focus(open_page):
    page, held = open_page(), []
    page.route("**/answer", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("button", name="Ask", exact=True).click()
    while not held:
        page.wait_for_timeout(50)
    page.get_by_label("fp32").focus()
    page.keyboard.press("ArrowRight")
    assert "(int8)" not in page.locator("#asked").inner_text()
    held[0].continue_()
    page.locator("#asked", has_text="(int8)").wait_for()
    assert page.evaluate("document.activeElement.value") == "int8"
    page.keyboard.press("ArrowLeft")
    page.locator("#asked", has_text="(fp32)").wait_for()
    assert page.evaluate("document.activeElement.value") == "fp32"
    # What is said is this line alone, not all of the answers.
    assert page.locator("#asked").get_attribute("role") == "status"
    assert page.locator("#answers").get_attribute("aria-live") is None


def test_a_text_that_was_cut_and_labels_that_do_not_hold_are_told(open_page):
    page = open_page()
    page.get_by_label("Sentiment and other labels").check()
    ask(page, text="fine " * 600)
    assert page.locator("article .cut").first.inner_text().startswith("The text was cut")
    row = {"model": "M", "parameters": 1, "megabytes": 1.0, "milliseconds": 1.0}
    row |= {"label": "toxic", "labels": [], "probability": 0.4, "probabilities": {"toxic": 0.4}}
    row |= {"truncated": False}
    page.route("**/classify", lambda route: route.fulfill(json=[row, row]))
    ask(page, text="fine")
    page.get_by_text("none of the labels").first.wait_for()
    assert page.locator("[data-figure=confidence]").first.inner_text() == "–"
    assert page.locator("article .cut").first.is_hidden()


def test_the_page_has_the_colours_of_the_figures():
    style = (CODE / "distilbert_kit" / "serve" / "static" / "page.css").read_text()
    assert f"--first: {TEACHER.lower()};" in style and f"--second: {STUDENT.lower()};" in style
