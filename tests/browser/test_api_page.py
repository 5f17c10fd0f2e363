"""The page that describes the API, in Chromium: its script is this service's own, under a strict content policy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
TESTS = Path(__file__).resolve().parents[1]
SERVER = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serve.fakes import FakeEmbedder, FakeGallery
from trireid.serve.app import create_app
from trireid.serve.limits import Limits
from trireid.serve.running import listen, serve
with tempfile.TemporaryDirectory() as folder:
    listening = listen("127.0.0.1", 0)
    app = create_app(FakeEmbedder(), FakeGallery(), media=Path(folder))
    started = lambda: print(listening.getsockname()[1], flush=True)
    serve(app, listening, limits=Limits(), started=started)
"""


@pytest.fixture(scope="module")
def address():
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(TESTS)], stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.terminate()
    process.wait(timeout=10)


def test_the_page_of_the_api_works_without_another_host(browser, address):
    page = browser.new_page()
    said, requested = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{address}/docs")
    page.wait_for_selector(".opblock")
    assert page.locator(".opblock").count() >= 15
    page.locator(".opblock-get", has_text="/v1/model").locator(".opblock-summary").click()
    page.locator(".try-out__btn").click()
    page.locator("button.execute").click()
    page.wait_for_selector(".live-responses-table .response-col_status")
    assert "200" in page.locator(".live-responses-table").inner_text()
    assert said == []
    assert [url for url in requested if not url.startswith(address)] == []
    page.close()
