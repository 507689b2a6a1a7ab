"""The page in headless Chromium: light and dark, wide and narrow, with and without JavaScript."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anytune.report import build
from tests.report.stores import delta, demo_manifests, write_store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    return build(write_store(folder / "anytune-demo", demo_manifests()), folder / "page.html").as_uri()


def opened(chromium: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """A page and the list that its console messages, errors and requests to a network go to."""
    noise: list[str] = []
    page = chromium.new_context(**options).new_page()
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda request: noise.append(request.url) if request.url.startswith("http") else None)
    page.goto(url)
    return page, noise


def luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour[colour.index("(") + 1 :].rstrip(")").split(",")[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1400, 1600])
def test_it_fits_the_screen_without_a_word_on_the_console(chromium: Any, url: str, theme: str, width: int) -> None:
    page, noise = opened(chromium, url, viewport={"width": width, "height": 800}, color_scheme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert noise == []
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_have_enough_contrast(chromium: Any, url: str, theme: str) -> None:
    page, _ = opened(chromium, url, color_scheme=theme)
    style = "(s, p) => getComputedStyle(document.querySelector(s))[p]"

    def colour(selector: str, name: str) -> str:
        return page.evaluate(f"([s, p]) => ({style})(s, p)", [selector, name])

    backgrounds = [colour("body", "backgroundColor"), colour(".card", "backgroundColor")]
    assert (luminance(backgrounds[0]) > 0.5) == (theme == "light")
    for background in backgrounds:
        for selector in ("body", ".about", ".fold > summary, .recipe summary", ".lower .change", ".higher .change"):
            assert contrast(colour(selector, "color"), background) >= 4.5, selector
        for slot in range(4):
            assert contrast(colour(f".curves .mark.arm-{slot}", "fill"), background) >= 3, slot
    page.context.close()


def test_the_theme_button_switches_and_the_choice_is_kept(chromium: Any, url: str) -> None:
    page, noise = opened(chromium, url, color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click(".theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(dark) < 0.1 < luminance(light)
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert noise == []
    page.context.close()


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(chromium: Any, url: str) -> None:
    page, _ = opened(chromium, url)
    read = "Array.from(document.querySelectorAll('tr.row')).map(row => row.cells[3].dataset.value)"
    heading = page.get_by_role("button", name="Test", exact=True)
    heading.click()
    falling = [float(value) for value in page.evaluate(read)]
    assert falling == sorted(falling, reverse=True)
    assert page.get_attribute("thead th:nth-child(4)", "aria-sort") == "descending"
    heading.click()
    assert [float(value) for value in page.evaluate(read)] == sorted(falling)
    page.get_by_role("button", name="To target").click()
    values = page.evaluate("Array.from(document.querySelectorAll('tr.row')).map(row => row.cells[7].dataset.value)")
    assert values[0] == "inf"
    page.context.close()


def test_the_filters_leave_the_rows_that_match(chromium: Any, url: str) -> None:
    page, _ = opened(chromium, url)
    shown = "Array.from(document.querySelectorAll('tbody.group')).filter(group => !group.hidden).length"
    page.fill(".filters input", "HPO v1")
    assert page.evaluate(shown) == 4
    page.select_option('.filters select[data-key="arm"]', "direct")
    assert page.evaluate(shown) == 1
    assert page.inner_text(".filters output") == "1 of 27 rows"
    page.context.close()


def test_a_row_opens_by_keyboard_to_its_seeds_and_copies_a_recipe(chromium: Any, url: str) -> None:
    page, _ = opened(chromium, url)
    assert not page.is_visible("#seeds-0")
    page.focus("tbody.group button.open")
    page.keyboard.press("Enter")
    assert page.is_visible("#seeds-0")
    assert page.locator("#seeds-0 .seed").count() == 3
    page.locator("#seeds-0 .recipe summary").first.click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#seeds-0 .copy").first.click()
    page.wait_for_function("document.querySelector('#seeds-0 .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()").startswith("job: tune\nbase: v0\nseed: 0\n")
    page.context.close()


def test_steps_turn_to_seconds_and_the_read_out_follows_pointer_and_arrow_keys(chromium: Any, url: str) -> None:
    page, noise = opened(chromium, url, viewport={"width": 1400, "height": 900})
    chart = page.locator("figure.chart").first
    assert chart.locator(".by-steps").is_visible()
    resting = chart.locator(".legend").inner_text()
    chart.locator(".by-steps").scroll_into_view_if_needed()
    box = chart.locator(".by-steps").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
    assert chart.locator(".at").inner_text().startswith("at step ")
    assert chart.locator(".legend").inner_text() != resting
    page.mouse.move(2, 2)
    assert chart.locator(".legend").inner_text() == resting
    chart.locator(".by-steps").focus()
    page.keyboard.press("Home")
    assert chart.locator(".at").inner_text() == "at step 0"
    page.keyboard.press("ArrowRight")
    assert chart.locator(".at").inner_text() == "at step 25"
    page.get_by_role("button", name="seconds", exact=True).click()
    assert chart.locator(".by-seconds").is_visible()
    assert not chart.locator(".by-steps").is_visible()
    assert noise == []
    page.context.close()


def test_without_javascript_everything_can_be_read_and_no_dead_button_shows(chromium: Any, url: str) -> None:
    page, _ = opened(chromium, url, java_script_enabled=False)
    assert page.is_visible("#seeds-0")
    assert page.locator(".by-steps").first.is_visible()
    assert page.locator(".needs-js >> visible=true").count() == 0
    page.context.close()


def test_names_with_markup_run_no_script(chromium: Any, tmp_path: Path) -> None:
    evil = "</title></script><img src=x onerror=console.log('ran')><script>console.log('ran')</script>"
    runs = [delta(evil, evil, arm, 0, outdated="x" if arm != "fresh" else None) for arm in ("fresh", evil)]
    page, noise = opened(chromium, build(write_store(tmp_path / "store", runs), tmp_path / "page.html").as_uri())
    assert noise == []
    assert page.locator("img").count() == 0
    page.context.close()


def test_three_hundred_deltas_still_fit_a_narrow_screen(chromium: Any, tmp_path: Path) -> None:
    runs = [delta(f"a-rather-long-task-name-{n:03d}", f"v{n % 6}", "fresh", 0, steps=50) for n in range(300)]
    url = build(write_store(tmp_path / "store", runs), tmp_path / "page.html").as_uri()
    page, noise = opened(chromium, url, viewport={"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert noise == []
    page.context.close()
