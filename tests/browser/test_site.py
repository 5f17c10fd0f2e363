"""The documentation site that `make docs` built, opened from the disk as a reader would, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
PAGES = ("index", "quick-start", "training", "results", "reference/models")


@pytest.fixture(scope="module", autouse=True)
def site():
    if not (SITE / "index.html").exists():
        pytest.skip("there is no documentation site: run make docs first")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_and_fits_the_screen(browser, name, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    outside, said = [], []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith("file:") else None)
    page.on("console", lambda message: said.append(message.text))
    page.goto((SITE / f"{name}.html").as_uri())
    page.wait_for_timeout(300)
    assert outside == []
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_search_finds_a_page_from_the_disk(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((SITE / "index.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("thermal")
    page.wait_for_selector(".md-search-result__item", timeout=10_000)
    assert page.locator(".md-search-result__item").count() > 0
    page.close()
