"""What the service refuses, and how: problem details, limits, names of the host, other sites, the token."""

import asyncio
import json
import struct
import threading
import zlib

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.fakes import FakeEmbedder, FakeGallery, picture
from serve.test_api import encoded, form
from trireid.errors import InputError, RunError
from trireid.serve import gate
from trireid.serve.app import create_app
from trireid.serve.batching import Batcher
from trireid.serve.limits import Limits
from trireid.serve.security import Access, check_exposure, new_form_seed, read_token, set_cookie

TOKEN = "a-token-of-32-characters-for-test"


def bomb(height, width):
    """A PNG whose header says more than its few bytes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(height * (1 + 3 * width)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refused(answer, status, *words):
    """Problem details of this status, in one line with these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert problem["status"] == status
    assert "Traceback" not in answer.text
    assert "\n" not in problem["detail"]
    for word in words:
        assert word in problem["detail"], problem["detail"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    return answer


def test_every_error_is_problem_details(served):
    client = served(limits=Limits(items=2, metadata_bytes=50))
    items = {"items": [{"images": {"rgb": encoded()}}]}
    post = client.post
    refused(client.get("/nothing"), 404, "/docs")
    refused(client.get("/v1/items/"), 404)  # not led to http://, which a service behind TLS would say
    refused(client.put("/v1/items"), 405)
    refused(client.get("/v1/items/none"), 404, "'none'")
    refused(client.get("/v1/items", params={"limit": "x"}), 422, "query.limit")
    refused(post("/v1/embed", content=b"rgb", headers={"content-type": "text/plain"}), 415, "application/json")
    refused(post("/v1/embed", content=b"{", headers={"content-type": "application/json"}), 422)
    refused(post("/v1/embed", json={"items": [{"images": {"uv": ""}}]}), 422, "items.0.images")
    refused(post("/v1/embed", json={"items": [{"images": {"rgb": "%%%"}}]}), 422, "base64")
    refused(post("/v1/embed", json={"items": [{}]}), 422, "rgb, nir, tir")
    refused(post("/v1/embed", json={"items": items["items"] * 3}), 413, "at most 2")
    refused(post("/v1/embed", files={"rgb": ("a", b"no image")}), 422, "rgb", "not a JPEG")
    refused(post("/v1/embed", files={"rgb": ("a", picture()[:90])}), 422, "rgb")
    refused(post("/v1/embed", files={"5.rgb": ("a", picture())}), 413, "at most 2")
    refused(post("/v1/embed", files={"blue": ("a", picture())}), 422, "'blue'")
    refused(post("/v1/embed", files={"rgb": ("a", picture(size=(13, 8)))}), 400, "13 rows")
    refused(post("/v1/search", json={}), 422, "keys")
    refused(post("/v1/search", json={"keys": ["none"]}), 404)
    refused(post("/v1/search", json={**items, "top": 10**9}), 413, "1000")
    refused(post("/v1/search", json={**items, "threshold": 9}), 422, "threshold")
    refused(post("/v1/items", json=items), 422, "items.0.key")
    large = {"items": [{"key": "a", "metadata": {"x": "y" * 60}}]}
    refused(post("/v1/items", **form(large, rgb=picture())), 413, "metadata")
    refused(post("/v1/items", **form({"items": [{"key": "a\nb"}]}, rgb=picture())), 400, "cannot be printed")
    refused(client.patch("/v1/items", json={"keys": ["none"], "identity": "1"}), 404)
    refused(client.delete("/v1/items"), 422, "all=true")
    json_type = {"content-type": "application/json"}
    refused(post("/v1/embed", content=b"{", headers=json_type), 422, "/docs: body: Invalid JSON")
    long_boundary = {"content-type": f"multipart/form-data; boundary={'b' * 257}"}
    refused(post("/v1/embed", content=b"--", headers=long_boundary), 400, "damaged", "257")
    client.embedder.embed = lambda items: 1 / 0
    failed = refused(post("/v1/embed", files={"rgb": ("a", picture())}), 500, "log")
    assert failed.headers["connection"] == "close"
    assert client.gallery.rows == {}
    assert client.get("/health/ready").status_code == 200


def test_bodies_pixels_and_nesting_are_limited(served, monkeypatch):
    monkeypatch.setattr(gate, "_DISCARDED_SECONDS", 0.05)
    client = served(limits=Limits(body_bytes=40_000, image_pixels=2**16, decoded_pixels=2**17))
    refused(client.post("/v1/embed", content=b"x" * 40_001), 413, "40000")
    pieces = iter([b"x" * 10_000] * 9)
    refused(client.post("/v1/embed", content=pieces, headers={"content-type": "application/json"}), 413, "40000")
    refused(client.post("/v1/embed", files={"rgb": ("a", bomb(600, 600))}), 413, "600 x 600 pixels", "65536")
    wide = bomb(1, 2**16)
    refused(client.post("/v1/embed", files=dict.fromkeys(("rgb", "nir", "tir"), ("a", wide))), 413, "196608")
    deep = b'{"items": [{"key": "a", "metadata": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}]}"
    refused(client.post("/v1/items", content=deep, headers={"content-type": "application/json"}), 422)
    assert client.post("/v1/embed", files={"rgb": ("a", picture())}).status_code == 200


def test_an_engine_that_fails_is_no_fault_of_the_client(served):
    client = served()
    client.post("/v1/items", data={"request": '{"items": [{"key": "a"}]}'}, files={"rgb": ("a", picture())})

    def fail(*arguments, **options):
        raise RunError("the gallery does not answer: connection refused")

    for name in ("query", "list", "count", "add"):
        setattr(client.gallery, name, fail)
    files = {"rgb": ("a", picture())}
    for answer in (
        client.post("/v1/search", files=files),
        client.post("/v1/items", data={"request": '{"items": [{"key": "b"}]}'}, files=files),
        client.get("/v1/items"),
        client.get("/gallery", headers={"accept": "application/json"}),
    ):
        assert refused(answer, 503, "connection refused").headers["retry-after"] == "1"
    refused(client.get("/health/ready"), 503, "does not answer")
    metrics = client.get("/metrics").text
    assert "trireid_gallery_items NaN" in metrics
    assert "Nothing was changed" not in client.get("/gallery", headers={"accept": "text/html"}).text


def test_metrics_are_named_by_their_units_and_hold_no_text_of_users(served):
    client = served()
    for number in range(20):
        client.request(f"M{number}", f"/unknown-{number}")
        client.get(f"/v1/items/key-{number}", headers={"host": f"other-{number}"})
        client.get(f"/v1/items/key-{number}/images/rgb")
        client.get(f"/search/{number}", params={"language": f"l{number}"})
    routes, methods = set(), set()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.documentation, family.name
        assert family.name.startswith(("trireid_", "process_"))
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            assert set(sample.labels) <= {"method", "route", "status", "le"}
            routes.add(sample.labels.get("route", "none"))
            methods.add(sample.labels.get("method", "other"))
    assert routes <= {"none", "/v1/items/{key}", "/v1/items/{key}/images/{modality}", "/search/{number}", "/metrics"}
    assert methods <= {"GET", "other"}


def test_small_bodies_of_many_values_and_large_ones_without_images_are_refused(served):
    client = served(limits=Limits(json_values=100, text_bytes=1000))
    json_type = {"content-type": "application/json"}
    for value in (b"1", b"{}", b"[]"):  # each would take a kilobyte of memory, and stop all others while it is checked
        content = b'{"items": [' + value + (b"," + value) * 100 + b"]}"
        refused(client.post("/v1/embed", content=content, headers=json_type), 413, "100 values")
    many = {"request": json.dumps({"items": [{"key": "a", "metadata": {"x": [1] * 101}}]})}
    refused(client.post("/v1/items", data=many, files={"rgb": ("a", picture())}), 413, "100 values")
    wanted = {"keys": ["a"], "where": {"keys": ["a"] * 1001}}
    refused(served().post("/v1/search", json=wanted), 422, "where.keys", "1000")
    for method, address in (("PATCH", "/v1/items"), ("POST", "/login"), ("GET", "/v1/embed"), ("POST", "/v1/items/a")):
        refused(client.request(method, address, content=b"x" * 1001), 413, "1000 bytes")
    large = picture(size=(64, 64))
    assert client.post("/v1/embed", files={"rgb": ("a", large)}).status_code == 200
    assert len(large) > 1000


def test_too_many_at_once_are_told_to_come_again(served):
    client = served(embedder=FakeEmbedder(seconds=0.15), limits=Limits(in_flight=2, batch_items=1))
    answers = []

    def send():
        answers.append(client.post("/v1/embed", files={"rgb": ("a", picture())}))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = sorted(answer.status_code for answer in answers)
    assert status[:2] == [200, 200]
    assert status[-1] == 429
    late = next(answer for answer in answers if answer.status_code == 429)
    assert refused(late, 429, "limit of 2").headers["retry-after"] == "1"
    assert client.post("/v1/embed", files={"rgb": ("a", picture())}).status_code == 200
    assert "trireid_requests_in_flight 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("message", ["nothing", "disconnect", "end"])
def test_a_client_that_stalls_or_leaves_takes_no_place(tmp_path, message):
    """Sent below the client library: a body that never ends."""
    app = create_app(FakeEmbedder(), FakeGallery(), media=tmp_path, limits=Limits(body_seconds=0.05, in_flight=1))
    sent = []

    async def receive():
        if message == "disconnect":
            return {"type": "http.disconnect"}
        if message == "end":
            asyncio.current_task().cancel()
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(event):
        sent.append(event)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "raw_path": b"/v1/embed", "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "", "server": None}
    asyncio.run(app(scope, receive, send))
    status = {"disconnect": [], "nothing": [408], "end": [503]}[message]
    assert [event["status"] for event in sent if "status" in event] == status


def test_other_hosts_and_other_sites_are_refused(served):
    client = served(hosts=["127.0.0.1", "cameras.example"])
    for host in ("evil.example", "", "127.0.0.1.evil.example", "[", "127.0.0.1@evil.example:80"):
        refused(client.get("/health", headers={"host": host}), 400, "--allow-host")
    assert client.get("/health", headers={"host": "CAMERAS.example:8000"}).status_code == 200
    label = {"keys": ["a"], "identity": "1"}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        refused(client.patch("/v1/items", json=label, headers=headers), 403)
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    refused(client.patch("/v1/items", json=label, headers=own), 404)


def test_a_token_is_needed_and_never_repeated(served):
    client = served(token=TOKEN, hosts=None)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "x"}):
        answer = refused(client.get("/v1/items", headers=headers), 401, "Authorization: Bearer")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text
    refused(client.get("/metrics"), 401)
    refused(client.get(f"/v1/items?token={TOKEN}"), 401)
    assert client.get("/health").status_code == 200
    assert client.get("/v1/items", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    description = client.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert description["security"] == [{"token": []}]


def test_sessions_and_forms_are_signed():
    access, other = Access(TOKEN), Access("another-token-of-some-length")
    session = access.new_session()
    assert access.is_session(session)
    assert not other.is_session(session)
    until, _, signature = session.partition(".")
    assert not access.is_session(f"{int(until) + 1}.{signature}")
    assert not access.is_session(f"1.{access._sign('session', '1')}")  # over
    assert not access.is_session("")
    access.check("GET", "/v1/items", {"host": "localhost", "cookie": f"a=b; trireid_session={session}"})
    seed = new_form_seed()
    access.check_form({"cookie": f"trireid_form={seed}"}, access.form_token(seed))
    for headers, given in (({}, access.form_token("")), ({"cookie": f"trireid_form={seed}"}, other.form_token(seed))):
        with pytest.raises(Exception, match="load the page again"):
            access.check_form(headers, given)
    assert set_cookie("a", "b", secure=True).endswith("; HttpOnly; SameSite=Strict; Max-Age=43200; Secure")


def test_an_open_address_needs_a_token_and_the_line_says_how_to_get_tls(tmp_path):
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.7", "cameras.example"):
        with pytest.raises(InputError, match=r"--token-file FILE.*TLS.*caddy") as caught:
            check_exposure(host, None)
        assert "\n" not in str(caught.value)
        check_exposure(host, TOKEN)
    path = tmp_path / "token"
    for content in (b"short", b"", b"\xff" * 40, b"two words of a long token"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="openssl rand -hex 32"):
            read_token(path)
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none")


def test_requests_are_batched_and_an_error_stays_with_its_own():
    from concurrent.futures import ThreadPoolExecutor

    batches = []

    def work(entries, group):
        batches.append((group, list(entries)))
        if 13 in entries:
            raise InputError("13")
        return [10 * entry for entry in entries]

    async def run():
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(work, executor=pool, most=4, seconds=0.02)
            calls = [batcher([1, 2]), batcher([13]), batcher([3], group="b"), batcher([4]), batcher([5] * 6)]
            return await asyncio.gather(*calls, return_exceptions=True)

    first, bad, third, fourth, large = asyncio.run(run())
    assert (first, third, fourth, large) == ([10, 20], [30], [40], [50] * 6)
    assert str(bad) == "13"
    assert batches == [
        (None, [1, 2, 13, 4]),
        (None, [1, 2]),
        (None, [13]),
        (None, [4]),
        ("b", [3]),
        (None, [5] * 6),
    ]


def test_random_bodies_are_refused_and_leave_nothing(served):
    client = served()
    random = np.random.default_rng(0)
    whole = client.build_request("POST", "/v1/items", **form({"items": [{"key": "k"}]}, rgb=picture()))
    body, kind = whole.read(), whole.headers["content-type"]
    for number in range(60):
        broken = bytearray(body[: int(random.integers(0, len(body)))] if number % 2 else body)
        for _ in range(int(random.integers(1, 40)) if broken else 0):
            broken[int(random.integers(0, len(broken)))] = int(random.integers(0, 256))
        sent = kind if number % 3 else "application/json"
        answer = client.post("/v1/items", content=bytes(broken), headers={"content-type": sent})
        assert answer.status_code < 500, answer.text
        assert answer.status_code == 200 or json.loads(answer.text)["status"] == answer.status_code
    assert set(client.gallery.rows) <= {"k"} or all(len(key) == 1 for key in client.gallery.rows)
    assert client.get("/health/ready").status_code == 200
