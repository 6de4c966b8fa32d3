"""The page as people see it, in a Chromium that is installed already: desk, phone, dark mode;
nothing leaves the machine."""

import re
from urllib.parse import urlparse

import numpy as np
import pytest

from tests.tools.browser import (
    ARGUMENTS,
    CHROMIUM,
    button,
    choose_example,
    needs_chromium,
    open_page,
)
from tests.tools.space import tiny_space
from textir.images.picture import Picture, write_picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def desk(browser):
    return open_page(browser, 1280, 900)


@pytest.fixture(scope="module")
def phone(browser):
    return open_page(browser, 390, 844)


def restore_rain(page) -> None:
    choose_example(page, "Rain")
    button(page, "Restore").click()
    page.locator("#summary", has_text="440 x 300").wait_for()


def test_a_visitor_sees_a_real_result_and_an_example_of_each_kind_on_arrival(desk):
    images = desk.locator("#result img")
    playwright.expect(images).to_have_count(2)
    for image in (*images.all(), *desk.locator("#examples img").all()):
        image.scroll_into_view_if_needed()
        desk.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
        assert image.get_attribute("alt")
    names = [image.get_attribute("alt") for image in desk.locator("#examples img").all()]
    assert {"Rain", "Haze", "Noise", "Dark", "Scratches", "Gray", "Small"} <= set(names)
    assert button(desk, "Restore").is_visible()


@pytest.mark.parametrize(
    "name, mode, word",
    [
        ("Haze", "Restore", "haze"),
        ("Scratches", "Erase and fill", "filled"),
        ("Gray", "Colour", "coloured"),
        ("Small", "Enlarge", "enlarged"),
    ],
)
def test_an_example_brings_its_mode_and_its_result_at_once(desk, name, mode, word):
    choose_example(desk, name)
    playwright.expect(desk.get_by_label(mode, exact=True)).to_be_checked()
    playwright.expect(desk.locator("#summary")).to_contain_text(word)
    playwright.expect(desk.locator("#result img")).to_have_count(2)


def test_an_example_is_restored_and_explained(desk):
    restore_rain(desk)
    assert desk.get_by_text("rain-restored").first.is_visible()
    assert not desk.locator("img[alt='Restored']").is_visible()  # closed at first
    desk.get_by_role("button", name="Details").click()
    desk.locator("img[alt='Restored']").wait_for()
    titles = desk.eval_on_selector_all(
        ".strip figure img", "images => images.map(i => i.naturalWidth > 0 && i.alt)"
    )
    assert len(titles) == 6 and all(title and len(title) > 4 for title in titles)
    assert desk.locator(".words tr").count() == 1 + 4
    playwright.expect(desk.locator("#history img")).to_have_count(1)


def test_keys_move_the_slider(desk):
    handle = desk.locator("#result [data-testid=slider]")
    playwright.expect(handle).to_have_attribute("role", "slider")
    before = int(handle.get_attribute("aria-valuenow"))
    handle.focus()
    desk.keyboard.press("ArrowRight")
    playwright.expect(handle).to_have_attribute("aria-valuenow", str(before + 5))
    inset = r"i => parseFloat(/([\d.]+)%\)/.exec(i.style.clipPath)[1])"
    assert abs(desk.eval_on_selector("#result img[alt=After]", inset) - before - 5) < 2


def test_find_out_takes_turns_with_the_other_buttons(desk):
    find_out, rain = desk.get_by_label("Find out yourself"), desk.get_by_label("Rain", exact=True)
    if not find_out.is_checked():
        find_out.click(force=True)
    playwright.expect(rain).not_to_be_checked()
    rain.click(force=True)
    playwright.expect(rain).to_be_checked()
    playwright.expect(find_out).not_to_be_checked()
    noise = desk.get_by_label("Noise", exact=True)
    noise.click(force=True)  # several go together
    for pressed in (rain, noise):
        playwright.expect(pressed).to_be_checked()
    rain.click(force=True)
    noise.click(force=True)
    playwright.expect(find_out).to_be_checked()


def test_a_link_opens_the_settings(browser):
    page = open_page(browser, 1024, 800, "?mode=Restore&words=take%20out%20the%20noise")
    field = page.get_by_label("What should happen?")
    playwright.expect(field).to_have_value("take out the noise")
    page.close()
    page = open_page(browser, 1024, 800, "?mode=Restore&task=denoise+derain")
    for name in ("Noise", "Rain"):
        playwright.expect(page.get_by_label(name, exact=True)).to_be_checked()
    page.close()


def grave(page) -> dict:
    """What axe-core finds that is serious, by its rule."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return {
        one["id"]: [node["html"][:200] for node in one["nodes"]]
        for one in found
        if one["impact"] in ("serious", "critical")
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1024, 390])
def test_axe_finds_nothing_serious(browser, width, theme):
    page = open_page(browser, width, 844, f"?__theme={theme}")
    page.wait_for_timeout(1000)
    assert not grave(page)
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_after_a_result_and_in_other_tabs(browser, theme):
    page = open_page(browser, 1280, 900, f"?__theme={theme}")
    restore_rain(page)
    for name in ("Advanced", "Details", "The same elsewhere"):
        page.get_by_role("button", name=name).click()
    page.locator("img[alt='Restored']").wait_for()
    found = {"a result": grave(page)}
    for mode in ("Erase and fill", "Enlarge", "Colour"):
        page.get_by_label(mode, exact=True).click(force=True)
        page.wait_for_timeout(500)
        found[mode] = grave(page)
    page.get_by_role("tab", name="Lab", exact=True).click()
    for tab in ("Compare", "Degrade", "Batch", "Use it elsewhere"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(500)
        found[tab] = grave(page)
    assert not {place: rules for place, rules in found.items() if rules}
    page.close()


def test_the_slider_moves_between_before_and_after(desk):
    if not desk.locator(".slider-wrap").count():
        restore_rain(desk)
    after, handle = desk.locator(".slider-wrap img").nth(1), desk.get_by_test_id("slider")
    handle.scroll_into_view_if_needed()

    def hidden() -> float:
        return float(re.search(r"([\d.]+)%\)", after.get_attribute("style"))[1])

    before, box = hidden(), handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    desk.mouse.move(x, y)
    desk.mouse.down()
    desk.mouse.move(x - 120, y, steps=4)
    desk.mouse.up()
    assert hidden() < before - 10


def test_the_other_tabs_open(desk):
    desk.get_by_role("tab", name="Lab", exact=True).click()
    for tab, name in (
        ("Compare", "Compare"),
        ("Degrade", "Degrade and restore"),
        ("Batch", "Restore all"),
    ):
        desk.get_by_role("tab", name=tab, exact=True).click()
        playwright.expect(button(desk, name)).to_be_visible()
    desk.get_by_role("tab", name="Use it elsewhere").click()
    playwright.expect(desk.get_by_text("Fine-tune and publish")).to_be_visible()
    desk.get_by_role("tab", name="Photo", exact=True).click()
    playwright.expect(button(desk, "Restore")).to_be_visible()


def test_an_uploaded_photo_is_restored_as_one_file_of_its_name(desk, tmp_path):
    pixels = np.random.default_rng(0).random((48, 80, 3), dtype=np.float32)
    desk.get_by_label("Remove Image").or_(desk.get_by_label("Clear")).first.click()
    desk.locator("input[type=file]").first.set_input_files(
        write_picture(tmp_path / "mine.png", Picture(pixels))
    )
    desk.wait_for_selector("img[src$='/mine.png']")
    button(desk, "Restore").click()
    desk.locator("#summary", has_text="80 x 48").wait_for()
    playwright.expect(desk.get_by_text("mine-restored").first).to_be_visible()


def test_stop_ends_a_run(browser):
    desk = open_page(browser, 1280, 900)  # where the details are closed
    desk.get_by_role("button", name="Advanced").click()
    choose_example(desk, "Noise")
    steps = desk.get_by_label("number input for Steps")
    steps.fill("50")
    steps.press("Tab")
    button(desk, "Restore").click()
    desk.get_by_role("button", name="Details").click()
    desk.get_by_alt_text("Guidance, forming").wait_for(state="attached")
    button(desk, "Stop").click()
    desk.wait_for_function("!document.querySelector('.progress-text, .generating, .eta-bar')")
    desk.wait_for_timeout(500)
    assert desk.get_by_alt_text("Guidance, forming").count() == 1
    assert desk.locator("#summary", has_text="400 x 300").count() == 0
    steps.fill("0")
    steps.press("Tab")
    button(desk, "Restore").click()
    desk.locator("#summary", has_text="400 x 300").wait_for()
    desk.close()


def test_a_phone_needs_no_horizontal_scrolling(phone, tmp_path):
    restore_rain(phone)
    phone.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Restore", "Stop"):
        button(phone, name).scroll_into_view_if_needed()
        box = button(phone, name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
    for tab in ("Lab", "Compare", "Degrade", "Batch", "Use it elsewhere"):
        phone.get_by_role("tablist").get_by_role("tab", name=tab, exact=True).click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390, tab


def test_dark_mode_renders_dark(browser, tmp_path):
    page = open_page(browser, 900, 700, "?__theme=dark")
    page.screenshot(path=tmp_path / "dark.png", full_page=True)
    style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    shades = [page.eval_on_selector("gradio-app", style)[0], page.eval_on_selector("h1", style)[1]]
    background, text = (sum(map(float, re.findall(r"[\d.]+", shade)[:3])) for shade in shades)
    assert background < 150 and text > 500, shades
    assert not page.errors
    page.close()


def test_nothing_leaves_the_machine_and_the_console_is_quiet(desk, phone):
    own = urlparse(tiny_space()[0]).netloc
    for page in (desk, phone):
        assert {urlparse(url).netloc for url in page.asked if url.startswith(("http", "ws"))} == {
            own
        }
        assert not page.errors


def test_a_sentence_and_the_buttons_take_turns(browser):
    page = open_page(browser, 1280, 900)
    choose_example(page, "Rain")
    pressed = page.get_by_label("Rain", exact=True)
    sentence = page.get_by_label("What should happen?")
    playwright.expect(pressed).to_be_checked()
    sentence.fill("take out the noise")
    playwright.expect(pressed).not_to_be_checked()
    button(page, "Restore").click()
    page.get_by_text("removing noise").first.wait_for()
    page.get_by_label("Haze", exact=True).check(force=True)
    playwright.expect(sentence).to_have_value("")
    page.close()
