"""The pages of a running service in Chromium, with a real gallery: from dropped images to answers that stay."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from test_pages import CONTRAST, SCREENS

from tiny_run import untrained_run, write_tree
from trireid.embedding.embedder import Embedder
from trireid.embedding.items import Item
from trireid.evaluation.calibration import Calibration, Curve, PairRates
from trireid.gallery.filters import Filter
from trireid.gallery.gallery import Gallery
from trireid.report.page import write_report

pytestmark = pytest.mark.browser

SPECTRA = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
FIRST = "000100_cam1_0_00"
DROP = """
([selector, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, text] of files)
    transfer.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name, {type}));
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
}
"""


class Running:
    """A service as a process of its own, and its gallery."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        self.tree = write_tree(folder / "images", identities=4)
        self.run = untrained_run(
            self.tree, folder / "run", "model.head=sdtps", "model.sie_coefficient=0", "model.backbone.depth=2"
        )
        write_report(self.run)
        embedder = Embedder(self.run, device="cpu")
        found = embedder.embed(list(self.items()))
        curve = Curve(*(np.array([1.0, 0.1, 0.001]) for _ in range(3)))
        cosine = np.array([-1.0, 0.5, 0.9999])
        rates = PairRates("rnt", "rnt", (99, 99), 300, 44850, 99, 9999, cosine, curve, curve)
        with Gallery.create(folder / "gallery", embedder.model, root=self.tree) as gallery:
            gallery.add(found)
            gallery.set_calibration(Calibration(embedder.model.fingerprint, embedder.model.feature, (rates,)))
        self.start()

    def files(self, key):
        return {name: self.tree / "test" / folder / f"{key}.jpg" for name, folder in SPECTRA.items()}

    def items(self):
        for path in sorted((self.tree / "test" / "RGB").iterdir()):
            key = path.stem
            identity = None if key.startswith("000103_cam2") else key[:6]
            item = Item(self.files(key), key=key, identity=identity, camera=key[10], time=86400.0 * int(key[10]))
            yield item if key != "000102_cam2_0_01" else replace(item, metadata={"operator": "<b>night</b>"})

    def start(self):
        command = [sys.executable, "-m", "trireid", "serve", self.run, "--gallery", self.folder / "gallery"]
        self.process = subprocess.Popen(
            [*map(str, command), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seen = ""
        for line in self.process.stdout:
            seen += line
            if found := re.search(r"at (http://\S+)", line):
                self.address = found[1]
                return
        raise AssertionError(seen)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=10) == 0
        self.process.stdout.close()

    def restart(self):
        self.stop()
        self.start()

    def keys(self, **conditions):
        """Keys of the gallery, read while the service is stopped."""
        with Gallery.open(self.folder / "gallery") as gallery:
            return [item.key for item in gallery.list(Filter(**conditions) if conditions else None)]


@pytest.fixture(scope="module")
def service(browser, tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


@pytest.fixture
def visit(browser, service):
    """Opens a page and watches what it asks for and complains about."""
    contexts = []

    def open_page(address="/", *, screen="desk", scheme="light", language="en", **options):
        width, height = SCREENS[screen]
        options |= {"extra_http_headers": {"Accept-Language": language}}
        contexts.append(
            browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, **options)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.open = lambda address: page.goto(service.address + address)
        page.open(address)
        return page

    yield open_page
    for context in contexts:
        context.close()


def drop(page, files, selector="[data-drop]"):
    encoded = [(name, "image/jpeg", base64.b64encode(path.read_bytes()).decode()) for name, path in files.items()]
    page.evaluate(DROP, [selector, encoded])


def search(page, service, key=FIRST):
    """Search with the images of an item; gives the address of the result."""
    page.open("/")
    for name, path in service.files(key).items():
        page.set_input_files(f"#file-{name}", path)
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url("**/search/*")
    return page.url.removeprefix(service.address)


def until(page, condition):
    """Wait for a condition; Playwright's own way needs `eval`, which the policy of the pages forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def all_drawn(page, selector="main img"):
    """Wait until every image is loaded; their number."""
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    until(page, "[...document.images].every(image => image.complete)")
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.src)")
    assert broken == []
    return page.locator(selector).count()


def test_from_dropped_images_to_an_answer_that_outlives_the_server(service, visit):
    page = visit()
    files = service.files(FIRST)
    drop(page, {"a_thermal.jpg": files["tir"], "b_RGB.jpg": files["rgb"], "unnamed.jpg": files["nir"]})
    chosen = page.evaluate("[...document.querySelectorAll('[data-slot] input')].map(i => i.files[0].name)")
    assert chosen == ["b_RGB.jpg", "unnamed.jpg", "a_thermal.jpg"]  # by name; the third where there is room
    assert all_drawn(page, "[data-preview] img") == 3
    page.select_option("#move-rgb", "nir")  # the person knows better: they change places
    assert page.evaluate("document.querySelector('#file-nir').files[0].name") == "b_RGB.jpg"
    page.select_option("#move-nir", "rgb")
    page.locator("summary", has_text="About these images").click()
    page.fill("#query-key", "dropped / <b>1</b>")
    page.fill("#query-camera", "yard")
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url("**/search/*")
    assert page.locator("h1").inner_text() == "Probably 000100"
    first = page.locator(".match").first
    assert "Same object: at most 1 false match in 1,000" in first.inner_text()
    assert "compared: rgb + nir + tir" in first.inner_text()
    names = page.locator(".match h3 a").all_inner_texts()
    assert (len(names), len(set(names))) == (4, 4)
    assert all_drawn(page, ".match img") == 12
    first.get_by_role("button", name="Same object").click()
    assert "Accepted: dropped / <b>1</b> is 000100" in page.locator(".flash").inner_text()
    assert page.complaints == []
    assert {address.split("/")[2] for address in page.asked if "//" in address[:8]} == {service.address.split("/")[2]}
    service.stop()
    assert "dropped / <b>1</b>" in service.keys(identities=["000100"], cameras=["yard"])
    service.start()
    page.open("/gallery?identity=000100")
    page.get_by_role("link", name="dropped / <b>1</b>").click()
    assert page.locator("h1").inner_text() == "dropped / <b>1</b>"
    assert all_drawn(page) == 3
    page.open("/changes")
    page.get_by_role("button", name="Undo: Accepted: dropped").click()
    assert "Undone: accepted dropped" in page.locator(".flash").inner_text()
    page.open("/gallery?identity=000100")
    assert page.get_by_role("link", name="dropped").count() == 0


def test_decisions_change_the_gallery_and_are_undone(service, visit):
    page = visit()
    address = search(page, service)
    page.locator(".match").nth(1).get_by_role("button", name="Not the same").click()
    assert page.locator(".match").count() == 3
    page.get_by_role("button", name="Show again").click()
    assert page.locator(".match").count() == 4
    first = page.locator(".match").first
    first.locator("summary").click()
    first.get_by_label("Identity of").fill("renamed")
    first.get_by_role("button", name="Save").click()
    assert f"Labelled {FIRST} as renamed" in page.locator(".flash").inner_text()
    assert "renamed" in page.locator(".match h3").all_inner_texts()[0]
    page.locator(".flash").get_by_role("button", name="Undo").click()
    assert "renamed" not in page.locator(".matches").inner_text()
    page.get_by_label("Name of the new identity").fill("stranger")
    page.get_by_role("button", name="Add as new identity").click()
    assert "New identity stranger" in page.locator(".flash").inner_text()
    page.locator(".flash").get_by_role("button", name="Undo").click()
    page.open(address)
    before = page.locator(".match").first.inner_text()
    page.open(f"/item?key={FIRST}")
    page.get_by_role("button", name="Remove this item").click()
    assert f"Removed {FIRST}" in page.locator(".flash").inner_text()
    page.open(address)
    assert FIRST not in page.locator(".matches").inner_text()
    page.open("/changes")
    page.get_by_role("button", name=f"Undo: Removed {FIRST}").click()
    page.open(address)
    assert page.locator(".match").first.inner_text() == before  # with the same feature
    assert page.complaints == []


def test_a_person_sees_why(service, visit):
    page = visit()
    address = search(page, service, "000101_cam1_0_00")
    page.locator("summary", has_text="Kept patches").click()
    assert all_drawn(page, "[data-kept] img") == 3
    page.locator(".match").nth(1).get_by_role("link", name="Why?").click()
    assert page.locator("h1").inner_text() == "Why this match?"
    assert all_drawn(page) == 18  # image, kept patches and heat, of three spectra and two items
    assert "4 of 8" in page.locator(".why").first.inner_text()
    page.get_by_role("link", name="Back to the result").click()
    assert page.url.endswith(address)
    page.get_by_role("link", name="Report").click()
    assert page.locator("h2", has_text="Kept patches").count() == 1
    assert page.complaints == []


def test_mistakes_are_shown_to_the_person(service, visit, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    page = visit()
    page.get_by_role("button", name="Search", exact=True).click()
    assert "there is no image to search with" in page.get_by_role("alert").inner_text()
    page.get_by_role("link", name="Go back").click()
    page.wait_for_url(f"{service.address}/")
    page.set_input_files("#file-nir", tmp_path / "text.png")
    page.locator("[data-preview]", has_text="no preview").wait_for()
    page.get_by_role("button", name="Search", exact=True).click()
    assert "nir" in page.get_by_role("alert").inner_text()
    page.go_back()
    page.locator("summary", has_text="Ranking and threshold").click()
    page.set_input_files("#file-nir", [])
    page.set_input_files("#file-rgb", service.files(FIRST)["rgb"])
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url("**/search/*")
    # rgb alone was not calibrated
    assert "is not calibrated for the spectra" in page.locator("main > p").first.inner_text()


def test_a_folder_is_added_with_its_faults_listed(service, visit, tmp_path):
    folder = tmp_path / "cameras"
    for name, place in SPECTRA.items():
        (folder / place).mkdir(parents=True)
        for number, key in enumerate((FIRST, "000101_cam1_0_00")):
            Image.open(service.files(key)[name]).save(folder / place / f"new-{number}.png")
    (folder / "RGB" / "broken.png").write_bytes(b"no image")
    page = visit("/add")
    page.set_input_files("[data-folder]", folder)
    page.fill("[data-camera]", "gate")
    page.locator("[data-status]", has_text="3 items are ready").wait_for()
    page.get_by_role("button", name="Add all").click()
    page.locator("[data-status]", has_text="3 of 3 done: 2 added, 0 replaced, 1 not added").wait_for()
    assert page.evaluate("document.querySelector('progress').value") == 3
    assert page.locator("[data-fault-list]").inner_text().startswith("broken: 0.rgb")
    (tmp_path / "table.csv").write_text(
        'rgb,tir,key,identity,time\nRGB/new-0.png,TI/new-0.png,"t,1",9,1970-01-02T00:00:00\nRGB/none.png,,t2,9,\n'
    )
    page.set_input_files("[data-table]", tmp_path / "table.csv")
    page.locator("[data-fault-list]", has_text="RGB/none.png, which is not in the folder").wait_for()
    page.get_by_role("button", name="Add all").click()
    page.locator("[data-status]", has_text="2 of 2 done: 1 added").wait_for()
    page.open("/item?key=t,1")
    assert {"9", "gate", "1970-01-02 00:00:00"} <= set(page.locator("td.value").all_inner_texts())
    page.open("/gallery?camera=gate")
    assert page.locator(".card").count() == 3
    page.open("/add")
    (folder / "TI").rename(tmp_path / "thermal")
    (tmp_path / "thermal" / "new-1.png").rename(tmp_path / "thermal" / "later.png")
    page.set_input_files("[data-folder]", tmp_path / "thermal")
    page.fill("[data-camera]", "gate")
    page.locator("[data-status]", has_text="2 items are ready").wait_for()
    page.get_by_role("button", name="Add all").click()
    page.get_by_role("button", name="Remove the added items again").click()
    page.locator("[data-status]", has_text="1 of 1 added items were removed").wait_for()  # the other was replaced
    page.open("/gallery?camera=gate")
    assert page.locator(".card").count() == 3


def test_the_forms_work_without_scripts(service, visit):
    page = visit(java_script_enabled=False)
    for name, path in service.files(FIRST).items():
        page.set_input_files(f"#file-{name}", path)
    page.get_by_role("button", name="Search", exact=True).click()
    assert page.locator("h1").inner_text() == "Probably 000100"
    page.locator(".match").first.get_by_role("button", name="Same object").click()
    page.locator(".flash").get_by_role("button", name="Undo").click()
    assert "Undone" in page.locator(".flash").inner_text()
    page.open("/add")
    assert "needs JavaScript" in page.locator("main").inner_text()


def test_everything_is_done_by_keys(service, visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for name, path in service.files(FIRST).items():
        page.set_input_files(f"#file-{name}", path)
    page.locator("#file-rgb").focus()
    walk(page, "Search")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search/*")
    before = page.locator(".match").count()
    walk(page, "Not the same: 2")
    page.keyboard.press("Enter")
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(page.locator(".match")).to_have_count(before - 1)  # also while the page is left


def walk(page, name):
    """Press Tab until the element of a name has the focus; each on the way shows it."""
    for _ in range(80):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)]; }"
        )
        assert here[1] != "none", here
        assert here[2] >= 2, here
        if here[0].startswith(name):
            return
    raise AssertionError(f"'{name}' is not reached by Tab")


LOOKS = [("light", "desk", "en"), ("dark", "phone", "en"), ("light", "phone", "zh"), ("dark", "desk", "zh")]


@pytest.mark.parametrize(("scheme", "screen", "language"), LOOKS)
def test_every_page_is_readable(service, visit, scheme, screen, language):
    maker = visit()
    result = search(maker, service)
    why = maker.locator(".match a.button").nth(1).get_attribute("href")
    page = visit("/", scheme=scheme, screen=screen, language=language)
    pages = [
        "/",
        "/gallery",
        "/gallery?view=days",
        "/gallery?view=unlabelled",
        f"/item?key={FIRST}",
        "/add",
        "/changes",
    ]
    for address in [*pages, "/changes", result, why, "/item?key=none"]:
        page.open(address)
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        all_drawn(page)
        ratio, where = page.evaluate(CONTRAST.replace("summary,", "summary,button,label,input,select,dd,code,legend,"))
        assert ratio >= 4.5, (address, where)
        assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen][0], address
        assert page.evaluate("document.documentElement.lang") == language
        order = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
        assert (order[0], order.count(1)) == (1, 1), address
        assert all(after - before <= 1 for before, after in pairwise(order)), address
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]),select')].filter(e => !e.labels.length)"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == [], address
    assert [line for line in page.complaints if "404" not in line] == []
    assert all(url.startswith((service.address, "data:", "blob:")) for url in page.asked)


def test_the_language_is_switched_and_remembered(visit):
    page = visit("/gallery?camera=1")
    page.get_by_role("link", name="中文").click()
    assert page.locator("h1").inner_text() == "图库"
    assert "camera=1" in page.url
    page.open("/")
    assert page.locator("h1").inner_text() == "检索"
    page.get_by_role("link", name="English").click()
    assert page.locator("h1").inner_text() == "Search"
