"""The pages in a real browser: nothing is asked of the network, everything is reached by key, on any screen."""

from __future__ import annotations

import pytest

from tiny_run import untrained_run, write_tree
from trireid.report.compare import write_comparison
from trireid.report.page import write_report

pytestmark = pytest.mark.browser

SLIMMING = "model.slimming=[{after_block: 1, keep_ratio: 0.5, guidance: cross}]"
ORIENTATIONS = {"portrait": (32, 16), "landscape": (16, 32)}
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
HISTORY = (
    '{"epoch": %d, "loss": {"total": %f}, "lr": {"backbone": 0.001}, "metrics": {"test": {"joint": {"mAP": 0.5}}}}\n'
)

CONTRAST = """
() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const node of document.querySelectorAll("h1,h2,h3,h4,p,th,td,dt,dd,a,li,summary,strong,span,svg")) {
    if (!node.getClientRects().length || !node.textContent.trim() || node.className === "skip") continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 80)];
  }
  return worst;
}
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of both orientations, and the comparison of two runs, by name."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, size in ORIENTATIONS.items():
        root = write_tree(folder / name / "images", identities=4, size=size)
        settings = (f"data.image_size={list(size)}", "model.backbone.depth=2")
        run = untrained_run(root, folder / name / "run", *settings, SLIMMING)
        (run / "metrics.jsonl").write_text("".join(HISTORY % (epoch, 3.0 / epoch) for epoch in (1, 2, 3)))
        made[name] = write_report(run)
    other = untrained_run(root, folder / "other", *settings, "model.head=none")
    made["compare"] = write_comparison([run, other], folder / "compare.html")
    return made


@pytest.fixture
def visit(browser, pages):
    """Opens a page and watches what it asks for and complains about."""
    contexts = []

    def open_page(name, *, screen="desk", scheme="light"):
        width, height = SCREENS[screen]
        contexts.append(
            browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, offline=True)
        )
        page = contexts[-1].new_page()
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


NAMES = [*ORIENTATIONS, "compare"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_of_the_network_and_nothing_is_complained_about(visit, pages, name):
    page = visit(name)
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith("data:")] == [pages[name].as_uri()]


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_drawn_and_says_what_it_shows(visit, name):
    page = visit(name)
    images = page.evaluate("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth])")
    assert len(images) > 20
    assert all(alt and width for alt, width in images)
    drawings = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => [s.ariaLabel, s.getBoundingClientRect().height])"
    )
    assert drawings
    assert all(label and height > 100 for label, height in drawings)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_text_is_readable_in_light_and_dark(visit, name, scheme):
    page = visit(name, scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 60) == (scheme == "dark")
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_scrolls_down_only(visit, name):
    page = visit(name, screen="phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS["phone"][0]
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, th')].map(n => parseFloat(getComputedStyle(n).fontSize))"
    )
    assert min(sizes) >= 12
    drawn = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert all(250 < width <= 390 for width in drawn)


def test_the_first_key_skips_to_the_content(visit):
    page = visit("portrait")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_keys_lead_everywhere(visit):
    page = visit("portrait")
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        here = page.evaluate("[document.activeElement.tagName, document.activeElement.getAttribute('aria-label')]")
        if here[0] == "BODY":
            break
        reached.append(tuple(here))
    lists = page.evaluate(
        "[...document.querySelectorAll('.list, .scroll')].filter(n => !n.closest('details:not([open])')).length"
    )
    assert sum(tag == "DIV" and bool(label) for tag, label in reached) == lists
    assert ("SUMMARY", None) in reached
    assert sum(tag == "A" for tag, _ in reached) == page.evaluate("document.links.length")


def test_a_list_scrolls_and_details_open_by_key(visit):
    page = visit("landscape", screen="phone")
    page.locator(".list").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.list').scrollLeft > 0")
    page.locator("details:not([open]) summary").first.focus()
    before = page.locator("details[open]").count()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == before + 1


def test_contents_lead_to_their_sections(visit):
    page = visit("portrait")
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(f"section[aria-labelledby='{target[1:]}']").count() == 1
    page.locator("nav a", has_text="Kept patches").click()
    page.wait_for_function("Math.abs(document.getElementById('patches').getBoundingClientRect().top) < 60")


def test_right_and_wrong_differ_by_more_than_colour(visit):
    page = visit("portrait")
    marks = page.evaluate(
        "[...document.querySelectorAll('.item.right, .item.wrong')].map("
        "n => [n.className, n.innerText.trim()[0], getComputedStyle(n).borderTopStyle])"
    )
    assert {tuple(mark) for mark in marks} == {("item right", "✓", "solid"), ("item wrong", "✗", "dashed")}
