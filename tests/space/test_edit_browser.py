"""Filling, enlarging and colouring as people do it: a brush, a finger, chips, a way back."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.tools.browser import ARGUMENTS, CHROMIUM, WAIT, button, needs_chromium, open_page
from textir.images.picture import Picture, write_picture
from textir.space.edit_settings import in_gray

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium
PAUSE = 1000  # ms that the canvas takes to note a stroke


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=WAIT)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def desk(browser):
    return open_page(browser, 1280, 900)


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
    return Picture(levels.astype(np.float32) / 255)


def upload(page, file) -> None:
    """Put a photo in the place of the one that is there."""
    if page.get_by_label("Remove Image").count():
        page.get_by_label("Remove Image").first.click()
    page.locator("input[type=file]").first.set_input_files(file)
    page.wait_for_selector(f"img[src$='/{file.name}']")
    # The page forgets what was said of the photo before; whoever is faster loses what they say.
    page.wait_for_function("name => (window.textirPhoto || '').endsWith(name)", arg=file.name)
    page.wait_for_timeout(PAUSE)


def choose_mode(page, name: str) -> None:
    page.get_by_label(name, exact=True).check(force=True)


def canvas_of(page) -> dict:
    """Where the canvas with the photo lies."""
    page.locator("#canvas canvas").first.wait_for()
    # It shows the photo once there is a step that could be undone.
    page.wait_for_selector("#canvas button[aria-label='Undo']:not([disabled])")
    page.locator("#canvas canvas").first.scroll_into_view_if_needed()
    page.wait_for_timeout(PAUSE)
    return page.locator("#canvas canvas").first.bounding_box()


def file_of(page, end: str) -> np.ndarray:
    """The pixels of the file that is offered."""
    link = page.locator(f"a[download$='{end}']").last
    link.wait_for(state="attached")
    answer = page.request.get(link.get_attribute("href"))
    return np.asarray(Image.open(io.BytesIO(answer.body())))


def assert_only_a_part_is_new(before: np.ndarray, after: np.ndarray) -> None:
    """Nothing is new far from the middle, where the stroke was, and much of the middle is."""
    changed = (before != after).any(-1)
    assert 0.005 < changed.mean() < 0.4
    assert not changed[:20].any() and not changed[-20:].any()
    assert changed[70:80, 90:110].mean() > 0.5


def test_a_stroke_of_the_brush_is_filled_and_nothing_else(desk, picture, tmp_path):
    upload(desk, write_picture(tmp_path / "mine.png", picture))
    choose_mode(desk, "Erase and fill")
    box = canvas_of(desk)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    desk.mouse.move(x - 50, y)
    desk.mouse.down()
    desk.mouse.move(x + 50, y, steps=8)
    desk.mouse.up()
    desk.wait_for_timeout(PAUSE)
    button(desk, "Fill").click()
    desk.get_by_text("the rest unchanged to the bit").wait_for()
    assert_only_a_part_is_new(
        (picture.pixels * 255).round().astype(np.uint8), file_of(desk, "mine-filled.png")
    )
    choose_mode(desk, "Enlarge")
    desk.get_by_text("400 x 300 pixels").or_(desk.get_by_text("800 x 600 pixels")).wait_for()
    choose_mode(desk, "Erase and fill")
    canvas_of(desk)
    assert desk.get_by_text("the rest unchanged to the bit").count() == 1
    button(desk, "Use as input").click()  # while the canvas hides the photo
    button(desk, "Undo: the photo before").wait_for()
    playwright.expect(desk.get_by_text("the rest unchanged to the bit")).to_have_count(0)
    assert "mine-filled" in desk.locator("img[src*='mine-']").first.get_attribute("src")


def test_a_result_becomes_the_photo_and_the_photo_comes_back(desk, picture, tmp_path):
    choose_mode(desk, "Colour")
    upload(desk, write_picture(tmp_path / "old.png", in_gray(picture)))
    button(desk, "red").click()
    playwright.expect(desk.locator("#colour-words textarea")).to_have_value("a red ")
    desk.get_by_label("number input for Variants").locator("visible=true").fill("2")
    desk.get_by_label("number input for Variants").locator("visible=true").press("Tab")
    button(desk, "Colour").click()
    desk.get_by_text("2 variants").wait_for()
    desk.locator(".variants button", has=desk.locator("img")).nth(1).click()
    desk.locator("a[download$='old-coloured-2.png']").last.wait_for(state="attached")
    button(desk, "Use as input").click()
    desk.wait_for_selector("img[src$='/old-coloured-2.png']")
    desk.get_by_text("This photo has colours already").wait_for()
    playwright.expect(desk.get_by_text("2 variants")).to_have_count(0)
    playwright.expect(desk.locator("#colour-words textarea")).to_have_value("")
    button(desk, "Undo: the photo before").click()
    desk.wait_for_selector("img[src$='/old.png']")
    playwright.expect(button(desk, "Undo: the photo before")).to_have_count(0)


def test_the_size_to_come_stands_there_before_the_work(desk, picture, tmp_path):
    choose_mode(desk, "Enlarge")
    upload(desk, write_picture(tmp_path / "small.png", picture))
    desk.get_by_text("800 x 600 pixels").wait_for()
    desk.get_by_text("16 x", exact=True).click()
    desk.get_by_text("Too large.").wait_for()
    desk.get_by_text("2 x", exact=True).click()
    desk.get_by_text("400 x 300 pixels").wait_for()


def test_a_finger_paints_on_a_phone(browser, picture, tmp_path):
    page = open_page(browser, 390, 844, has_touch=True)
    upload(page, write_picture(tmp_path / "phone.png", picture))
    choose_mode(page, "Erase and fill")
    box = canvas_of(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)
    steps = [("touchStart", -30), *(("touchMove", n) for n in range(-25, 31, 5))]
    for kind, offset in steps:
        point = [{"x": x + offset, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": point})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(PAUSE)
    button(page, "Fill").click()
    page.get_by_text("the rest unchanged to the bit").wait_for()
    assert_only_a_part_is_new(
        (picture.pixels * 255).round().astype(np.uint8), file_of(page, "phone-filled.png")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = "document.getElementById('result').getBoundingClientRect()"
    # The page goes to the result.
    page.wait_for_function(f"{box}.top > -50 && {box}.bottom <= window.innerHeight")
    page.close()
