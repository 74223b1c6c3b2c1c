"""The page of a report in a real browser: a silent console, sorting, figures in both themes, a phone's width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.report.write import report
from tests.support.report_cases import (
    browser,
    browser_paths,
    contrast,
    luminance,
    make_comparison,
    make_run,
    pixels,
    relabelled,
    show,
)

pytestmark = pytest.mark.skipif(browser_paths() is None, reason="needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and of a comparison with names that try things."""
    folder = tmp_path_factory.mktemp("pages")
    names = ["one", "<script>document.title = 'broken'</script>", "x" * 80, "two words"]
    store = relabelled(make_comparison(folder), folder / "store", names)
    return {
        "run": report(make_run(folder), folder / "run.html"),
        "store": report(store, folder / "store.html"),
    }


@pytest.mark.parametrize("kind", ["run", "store"])
def test_the_console_is_silent_and_nothing_is_fetched(driver: Any, pages: dict[str, Path], kind: str) -> None:
    driver.get_log("performance")
    show(driver, pages[kind])
    driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true;")
    assert driver.get_log("browser") == []
    assert "broken" not in driver.title
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    # An own error is seen: the log is not silent by itself.
    driver.execute_script("setTimeout(() => { throw new Error('on purpose'); })")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert any("on purpose" in entry["message"] for entry in driver.get_log("browser"))


def cells(driver: Any, header: str) -> list[float]:
    """What the column of the policies' table is sorted by, from top to bottom; also the text as numbers would be."""
    found: list[float] = driver.execute_script(
        "const t = document.querySelector('#ranking-table table');"
        "const at = [...t.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith(arguments[0]));"
        "return [...t.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.sort))",
        header,
    )
    return found


def test_a_header_sorts_up_and_down_by_mouse_and_keyboard(driver: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By  # noqa: PLC0415
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    show(driver, pages["store"])
    header = driver.find_element(By.XPATH, "//*[@id='ranking-table']//th[button[starts-with(., 'E2E of all, mean')]]")
    button = header.find_element(By.TAG_NAME, "button")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    up = cells(driver, "E2E of all, mean")
    assert len(up) == 4
    assert up == sorted(up)
    assert len(set(up)) > 1
    assert header.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert cells(driver, "E2E of all, mean") == up[::-1]
    assert header.get_attribute("aria-sort") == "descending"
    name = driver.find_element(By.CSS_SELECTOR, "#ranking-table th button")
    name.send_keys(Keys.SPACE)
    rows = driver.find_elements(By.CSS_SELECTOR, "#ranking-table tbody th")
    texts = [row.text for row in rows]
    assert texts == sorted(texts, key=str.lower)
    assert header.get_attribute("aria-sort") is None, "one column at a time"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_and_text_are_seen_in_both_themes(driver: Any, pages: dict[str, Path], dark: bool) -> None:
    show(driver, pages["run"], dark=dark)
    for key in ("cdf-ttft", "budget", "gpu-time", "percentiles-e2e", "break-even-0"):
        seen = pixels(driver, f"#chart-{key} svg")
        paper = np.median(seen.reshape(-1, 3), axis=0) if key != "budget" else seen[2, 2]
        assert (paper.mean() < 60) if dark else (paper.mean() > 230), key
        distance = np.abs(seen - paper).max(axis=2)
        assert (distance > 100).mean() > 0.01, f"{key}: something is drawn"
        colourful = (seen.max(axis=2) - seen.min(axis=2)) > 60
        assert colourful.mean() > 0.003, f"{key}: in colour"
        # Letters: the left edge has the labels of rows or of the axis, which are nothing but text.
        left = seen[:, : seen.shape[1] // 6].reshape(-1, 3)
        shades = luminance(left)
        strongest = left[shades.argmax() if dark else shades.argmin()]
        assert contrast(strongest, paper) > 3.5, f"{key}: text can be read"


def test_the_button_changes_the_theme_and_back(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["run"])
    shades = []
    for _ in range(3):
        shades.append(pixels(driver, "header").reshape(-1, 3).mean())
        driver.execute_script("document.getElementById('theme').click()")
    assert shades[0] > 200
    assert shades[1] < 60
    assert shades[2] > 200
    driver.execute_script("try { localStorage.clear() } catch {}")


@pytest.mark.parametrize("kind", ["run", "store"])
def test_a_phone_scrolls_only_down(driver: Any, pages: dict[str, Path], kind: str) -> None:
    show(driver, pages[kind], width=390)
    driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true;")
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide == 390
    inside = driver.execute_script(
        "return [...document.querySelectorAll('figure.chart svg')].map((e) => e.getBoundingClientRect())"
        ".map((r) => [r.left, r.right, r.height])"
    )
    assert inside
    assert all(left >= 0 and right <= 390 and height > 100 for left, right, height in inside)
    scrolls = driver.execute_script(
        "const box = document.querySelector('#ranking-table .scroll, #models .scroll');"
        "return [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX]"
    )
    assert scrolls == [True, "auto"], "a wide table scrolls in its own box"


def test_pointing_at_a_row_picks_its_series_out(driver: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains  # noqa: PLC0415
    from selenium.webdriver.common.by import By  # noqa: PLC0415

    show(driver, pages["store"])
    row = driver.find_element(By.CSS_SELECTOR, "#ranking-table tr[data-series='1'] th")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", row)
    ActionChains(driver).move_to_element(row).perform()
    driver.execute_async_script("setTimeout(arguments[0], 250)")
    count = "return document.querySelectorAll('#chart-cdf-ttft svg.picked .series%s').length"
    assert driver.execute_script(count % ".s1.on") == 1
    opacity = "return getComputedStyle(document.querySelector('#chart-cdf-ttft .s%d')).opacity"
    assert float(driver.execute_script(opacity % 1)) == 1
    assert float(driver.execute_script(opacity % 0)) < 0.3


def test_a_series_says_its_name(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["store"])
    names = driver.execute_script(
        "return [...document.querySelectorAll('#chart-cdf-ttft .series > title')].map((e) => e.textContent)"
    )
    assert "<script>document.title = 'broken'</script>" in names
