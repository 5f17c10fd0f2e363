"""The service as a process of its own: what it survives. The numbers are printed with `pytest -s`."""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def serving():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import serving

    yield serving
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def made(serving, tmp_path_factory):
    """A checkpoint of random weights, and a server of an empty gallery with it."""
    from trireid.embedding.embedder import Embedder
    from trireid.gallery.gallery import Gallery

    folder = tmp_path_factory.mktemp("served")
    run = serving.write_model(folder / "model.safetensors", "tiny")
    Gallery.create(folder / "gallery", Embedder(run, device="cpu").model).close()
    return run, str(folder / "gallery"), folder / "log"


@pytest.fixture(scope="module")
def server(serving, made):
    run, gallery, log = made
    found = serving.Server(run, gallery, "--device", "cpu", "--max-in-flight", "16", log=log)
    yield found
    if found.process.poll() is None:
        found.end(signal.SIGKILL)


def add(serving, server, key):
    body = serving.form({"items": [{"key": key}]}, {"rgb": serving.encoded(len(key), (64, 32))})
    connection = server.connect()
    connection.request("POST", "/v1/items", body, {"Content-Type": serving.FORM})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def malformed(random, whole, kind):
    """One request that is wrong in some way, as bytes."""

    def request(body, *, method="POST", path="/v1/items", content=kind, length=None, extra=b""):
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content}\r\n".encode("latin-1")
        return head + f"Content-Length: {len(body) if length is None else length}\r\n".encode() + extra + b"\r\n" + body

    noise = random.bytes(int(random.integers(1, 2000)))
    cut = whole[: int(random.integers(0, len(whole)))]
    broken = bytearray(whole)
    for place in random.integers(0, len(whole), 20):
        broken[place] = int(random.integers(0, 256))
    large = b"X-Large: " + b"x" * int(random.integers(1, 100_000)) + b"\r\n"
    return [
        lambda: noise,
        lambda: request(noise),
        lambda: request(cut),
        lambda: request(bytes(broken)),
        lambda: request(b"{" * 3000, content="application/json"),
        lambda: request(
            json.dumps({"items": [{"key": 5, "images": [noise.hex()]}]}).encode(), content="application/json"
        ),
        lambda: request(noise, extra=large),
        lambda: request(b"", length=10**12),
        lambda: request(b"", length=-1),
        lambda: request(noise, content="multipart/form-data"),
        lambda: request(noise, method="BREW"),
        lambda: request(b"", path="/" + "%00/../" * int(random.integers(1, 500)), method="GET"),
        lambda: request(b"", path="/v1/items/" + "%ff", method="GET"),
        lambda: request(b"", extra=b"Transfer-Encoding: chunked\r\n") + b"zz\r\n",
        lambda: request(b"", method="GET", path="/health", extra=b"Host: evil.example\r\n"),
    ][int(random.integers(0, 15))]()


def test_a_thousand_malformed_requests_and_bad_clients_harm_nobody(serving, server):
    from serve.test_safety import bomb

    assert add(serving, server, "kept")[0] == 200
    random = np.random.default_rng(0)
    whole = serving.form({"items": [{"key": "x"}]}, {"rgb": serving.encoded(0, (64, 32))})
    server.get("/v1/items")
    before = server.memory()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for number, each in enumerate(slow):  # heads and bodies that never end, more than may be in flight
        head = b"POST /v1/items HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        each.sendall(head if number % 2 else head + b"Content-Length: 1000\r\n\r\nx")
    times, done, most = [], threading.Event(), [before]

    def other_user():
        while not done.is_set():
            start = time.perf_counter()
            status, _ = add(serving, server, "other")
            times.append(time.perf_counter() - start)
            assert status == 200
            most[0] = max(most[0], server.memory())

    user = threading.Thread(target=other_user)
    user.start()
    status: dict[str, int] = {}
    for number in range(1000):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        try:
            connection.sendall(malformed(random, whole, serving.FORM))
            if number % 5:  # the others leave at once
                connection.settimeout(0.15)
                line = connection.recv(4096).split(b"\r\n")[0][9:12].decode("latin-1")
                status[line] = status.get(line, 0) + 1
        except TimeoutError:
            status["waits"] = status.get("waits", 0) + 1
        except OSError:
            status["closed"] = status.get("closed", 0) + 1
        finally:
            connection.close()
    for _ in range(20):  # decompression bombs: 16 million pixels in 50 kB
        connection = server.connect()
        body = serving.form({"items": [{"key": "bomb"}]}, {"rgb": bomb(4000, 4000)})
        connection.request("POST", "/v1/items", body, {"Content-Type": serving.FORM})
        assert connection.getresponse().status == 413
    done.set()
    user.join()
    keys = {item["key"] for item in server.get("/v1/items")["items"]}
    print(f"\nanswers {status}; other user: {len(times)} answers, slowest {max(times):.2f} s; ", end="")
    print(f"memory {before / 2**20:.0f} MB, at most {most[0] / 2**20:.0f} MB")
    assert not [code for code in status if code.startswith("5")]
    assert {"kept", "other"} <= keys
    assert all(len(key) <= 5 for key in keys)
    assert most[0] < before + 200 * 2**20
    for each in slow:
        each.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_document_work(serving, server, tmp_path):
    for number, name in enumerate(("rgb", "nir", "tir")):
        (tmp_path / f"{name}.jpg").write_bytes(serving.encoded(number, (64, 32)))
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("curl ")]
    assert len(commands) == 4
    for command in commands:
        here = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
        done = subprocess.run([*here, "--silent", "--fail"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        answer = json.loads(done.stdout)
        assert answer.get("added", answer.get("changed", len(answer.get("results", [])))) == 1


def test_sigterm_answers_what_it_has_taken_and_sigkill_loses_nothing(serving, made, server):
    run, gallery, log = made
    keys, refused = [], []

    def write(number, until):
        for turn in range(10**6):
            key = f"{number}-{turn}"
            try:
                answered = add(serving, server, key)[0]
            except (OSError, http.client.HTTPException):
                refused.append(key)
                return
            assert answered == 200
            keys.append(key)
            if until.is_set():
                return

    for how in (signal.SIGTERM, signal.SIGKILL):
        threads = [threading.Thread(target=write, args=(f"{how}{number}", threading.Event())) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(2.0)
        seconds = server.end(how)
        for thread in threads:
            thread.join()
        print(
            f"\n{how.name}: ended after {seconds:.2f} s, {len(keys)} items answered, exit {server.process.returncode}"
        )
        assert seconds < 5
        assert server.process.returncode == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        server.__init__(run, gallery, "--device", "cpu", log=log)
        found, cursor = set(), ""
        while cursor is not None:
            page = server.get(f"/v1/items?limit=500{cursor}")
            found |= {item["key"] for item in page["items"]}
            cursor = page["next"] and f"&cursor={page['next']}"
        assert set(keys) <= found
        assert len(found - set(keys) - {"kept", "other", "bomb", "x"}) <= len(refused)


def test_a_short_soak_ends_with_the_gallery_equal_to_what_was_answered(serving, tmp_path):
    import serve_soak

    result = serve_soak.soak(0.2, 8, 0, tmp_path)
    print(f"\n{json.dumps(result)}")
    assert result["faults"] == []
    assert result["requests"] > 20
    assert result["seconds_to_end"] < 5
    assert set(result["by_status"]) <= {"200", "404", "429", "not answered"}


def test_the_load_script_runs_and_batches(serving, tmp_path):
    out = tmp_path / "load.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--backbone", "tiny", "--device", "cpu"]
    options = ["--seconds", "0.5", "--clients", "1,8", "--items", "100", "--out", str(out)]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=100)
    result = json.loads(out.read_text())
    assert [(row["route"], row["clients"]) for row in result["rows"]] == [
        ("embed", 1),
        ("embed", 8),
        ("search", 1),
        ("search", 8),
    ]
    assert result["mean_batch"]["embed"] > 1.0
    assert [row["mean_batch"] > 1.0 for row in result["rows"]] == [False, True, False, True]
