"""The same service on both engines, and two services on one Milvus server."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from serve.fakes import MODEL, picture
from serve.test_api import HOSTILE, form

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


@pytest.fixture(
    params=[pytest.param("folder", marks=pytest.mark.slow), pytest.param("server", marks=pytest.mark.server)]
)
def gallery(request, tmp_path):
    """An empty gallery of the fake model, in a folder or on a server."""
    from trireid.gallery.gallery import Gallery

    place = str(tmp_path / "gallery") if request.param == "folder" else request.getfixturevalue("server").address
    return Gallery.create(place, MODEL, name=f"served_{next(_numbers)}")


def test_an_engine_answers_as_the_fake_does(served, gallery):
    client = served(gallery=gallery)
    several = {"items": [{"key": "a", "camera": "gate"}, {"key": "b", "identity": "7", "time": 12.5}]}
    parts = {"0.rgb": picture(0), "1.rgb": picture(1), "1.nir": picture(2)}
    assert client.post("/v1/items", **form(several, **parts)).json()["added"] == 2
    assert client.post("/v1/items", **form(several, **parts)).json() == {"added": 0, "replaced": 2, "keys": ["a", "b"]}
    fields = {"top": 2, "threshold": 0.61}
    (result,) = client.post("/v1/search", **form(fields, rgb=picture(1), nir=picture(2))).json()["results"]
    assert (result["matches"][0]["key"], result["known"], result["matches"][0]["accepted"]) == ("b", True, True)
    assert result["matches"][0]["distance"] == pytest.approx((2 - 2 * (2 / 3) ** 0.5) ** 0.5)  # two blocks of three
    assert client.patch("/v1/items", json={"keys": ["a"], "identity": "9"}).json() == {"changed": 1}
    by = client.post("/v1/search", json={"keys": ["b"], "by": "identity"}).json()["results"][0]["matches"]
    assert [match["identity"] for match in by] == ["9"]
    assert client.patch("/v1/items/a", json={"identity": None}).status_code == 200
    assert client.get("/v1/items/a").json()["identity"] is None
    assert client.post("/v1/search", json={"keys": ["none"]}).status_code == 404
    refused = client.post("/v1/search", **form({"fmr": 0.01}, rgb=picture()))
    assert (refused.status_code, "calibration" in refused.json()["detail"]) == (400, True)
    for number, name in enumerate(HOSTILE):
        item = {"key": name, "identity": name, "camera": name, "scene": name, "metadata": {name: [name]}}
        sent = client.post("/v1/items", **form({"items": [item]}, tir=picture(number)))
        assert sent.status_code == 200, sent.text
        got = client.get(f"/v1/items/{quote(name, safe='')}").json()
        assert [got[each] for each in ("key", "identity", "camera", "scene")] == [name] * 4
        assert got["metadata"][name] == [name]
        assert [each["key"] for each in client.get("/v1/items", params={"identity": name}).json()["items"]] == [name]
    seen, cursor = [], {}
    while cursor is not None:
        page = client.get("/v1/items", params={"limit": 4, **cursor}).json()
        seen += [item["key"] for item in page["items"]]
        cursor = page["next"] and {"cursor": page["next"]}
    assert sorted(seen) == sorted(["a", "b", *HOSTILE])
    assert client.get("/v1/gallery").json()["about"]["items"] == len(seen)
    assert client.delete("/v1/items", params={"camera": "gate"}).json() == {"changed": 1}
    assert client.delete("/v1/items", params={"all": "true"}).json() == {"changed": len(seen) - 1}
    assert client.get("/health/ready").status_code == 200


@pytest.mark.server
def test_two_services_on_one_server_give_one_truth(server, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import serve_soak
    import serving

    from trireid.embedding.embedder import Embedder
    from trireid.gallery.gallery import Gallery

    name = f"shared_{next(_numbers)}"
    run = serving.write_model(tmp_path / "model.safetensors", "tiny")
    Gallery.create(server.address, Embedder(run, device="cpu").model, name=name).close()
    options = ["--name", name, "--media", str(tmp_path / "media"), "--device", "cpu"]
    pair = [serving.Server(run, server.address, *options, log=tmp_path / f"log{number}") for number in range(2)]
    try:
        end = time.monotonic() + 8
        clients = [serve_soak.Client(number, {"server": pair[number % 2]}, end) for number in range(4)]
        for client in clients:
            client.read = client.search  # what another process has written is seen within a moment, not at once
            client.start()
        for client in clients:
            client.join(timeout=60)
        noted = {key: note for client in clients for key, note in client.notes.items()}
        assert [client.fault for client in clients if client.fault] == []
        assert noted
        assert sum(len(client.seconds) for client in clients) > 20
        time.sleep(2)
        assert [serve_soak.listed(service) for service in pair] == [noted, noted]
        body = serving.form({"top": 20}, {"rgb": serving.encoded(3, (64, 32))})
        answers = []
        for service in pair:
            connection = service.connect()
            connection.request("POST", "/v1/search", body, {"Content-Type": serving.FORM})
            answers.append(json.loads(connection.getresponse().read())["results"])
        assert answers[0] == answers[1]
        print(
            f"\n{sum(len(client.seconds) for client in clients)} requests to two services, {len(noted)} items in both"
        )
    finally:
        for service in pair:
            service.end()


@pytest.mark.slow
def test_a_gallery_that_is_centred_by_camera_is_searched_and_not_changed(served, tmp_path):
    from gallery_cases import embed
    from trireid.gallery.gallery import Gallery

    things = Gallery.create(tmp_path / "gallery", MODEL, by_camera=True)
    things.add(embed(MODEL, np.random.default_rng(0).standard_normal((4, MODEL.width)), np.ones((4, 3)), camera="gate"))
    client = served(gallery=things)
    parts = {"rgb": picture(0)}
    found = client.post("/v1/search", **form({"items": [{"camera": "gate"}]}, **parts))
    assert (found.status_code, len(found.json()["results"][0]["matches"])) == (200, 4)
    refused = client.post("/v1/search", **form({}, **parts))
    assert (refused.status_code, "give the camera that it was seen by" in refused.json()["detail"]) == (400, True)
    item = {"items": [{"key": "b", "camera": "gate"}]}
    for answer in (client.post("/v1/items", **form(item, **parts)), client.delete("/v1/items/item0000")):
        assert (answer.status_code, "make another one of all items" in answer.json()["detail"]) == (400, True)
    assert client.get("/v1/gallery").json()["about"]["items"] == 4
