"""The API on a fake model and a fake gallery: what each route answers."""

import base64
import json

import numpy as np

from serve.fakes import picture
from trireid.serve.media import SIDE

HOSTILE = [
    "../../etc/passwd",
    "a/b?c#d&e=f%2F",
    "<script>alert(1)</script>",
    "'; drop table items; --",
    '{"$ref": "x"} in ["a"]',
    "\u202egnp.exe",
    "名前 😀",
    "x" * 200,
]


def encoded(seed=0, **options):
    return base64.b64encode(picture(seed, **options)).decode()


def form(fields, **files):
    return {
        "data": {"request": json.dumps(fields)},
        "files": {name: (f"{name}.png", each) for name, each in files.items()},
    }


def test_features_of_any_subset_are_equal_as_json_and_as_a_form(served):
    client = served()
    as_json = client.post("/v1/embed", json={"items": [{"images": {"rgb": encoded(), "tir": encoded(1)}}]}).json()
    as_form = client.post("/v1/embed", **form({"encoding": "base64"}, rgb=picture(), tir=picture(1))).json()
    (item,) = as_json["items"]
    assert item["present"] == {"rgb": True, "nir": False, "tir": True}
    vector = np.frombuffer(base64.b64decode(as_form["items"][0]["vector"]), dtype="<f4")
    assert vector.tolist() == item["vector"]
    assert as_json["model"]["fingerprint"] == "f" * 64


def test_items_are_added_found_labelled_and_removed(served):
    client = served()
    several = {"items": [{"key": "a", "camera": "gate"}, {"key": "b", "identity": "7", "time": 12.5}]}
    parts = {"0.rgb": picture(0), "1.rgb": picture(1), "1.nir": picture(2)}
    first = client.post("/v1/items", **form(several, **parts))
    assert first.json() == {"added": 2, "replaced": 0, "keys": ["a", "b"]}
    assert client.post("/v1/items", **form(several, **parts)).json()["replaced"] == 2
    found = client.post("/v1/search", **form({"top": 2, "threshold": 0.5}, rgb=picture(1), nir=picture(2))).json()
    (result,) = found["results"]
    assert [match["key"] for match in result["matches"]] == ["b", "a"]
    assert (result["known"], result["query"], result["matches"][0]["time"]) == (True, "0", 12.5)
    assert client.patch("/v1/items", json={"keys": ["a"], "identity": "9"}).json() == {"changed": 1}
    assert client.get("/v1/items/a").json()["identity"] == "9"
    assert client.patch("/v1/items/a", json={"identity": None}).json() == {"changed": 1}
    assert client.get("/v1/items/a").json()["identity"] is None
    by_key = client.post("/v1/search", json={"keys": ["b", "a"], "where": {"cameras": ["gate"]}}).json()["results"]
    assert [result["query"] for result in by_key] == ["b", "a"]
    assert [match["key"] for match in by_key[0]["matches"]] == ["a"]
    assert client.delete("/v1/items/b").json() == {"changed": 1}
    assert client.delete("/v1/items", params={"camera": "gate"}).json() == {"changed": 1}
    assert client.get("/v1/items").json() == {"items": [], "next": None}


def test_a_list_is_read_by_pages(served):
    client = served()
    keys = [f"k{number}" for number in range(7)]
    for key in keys:
        client.post("/v1/items", **form({"items": [{"key": key}]}, rgb=picture()))
    seen, cursor = [], None
    while True:
        page = client.get("/v1/items", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["key"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == keys
    assert client.get("/v1/items", params={"cursor": "!"}).status_code == 422


def test_pictures_of_uploads_are_kept_shown_and_removed(served, tmp_path):
    client = served()
    client.post("/v1/items", **form({"items": [{"key": "a"}]}, rgb=picture(size=(1000, 600)), nir=picture()))
    images = client.get("/v1/items/a").json()["images"]
    assert sorted(images) == ["nir", "rgb"]
    shown = client.get(images["rgb"])
    assert shown.headers["content-type"] == "image/webp"
    import io

    from PIL import Image

    assert max(Image.open(io.BytesIO(shown.content)).size) == SIDE
    client.post("/v1/items", **form({"items": [{"key": "a"}]}, nir=picture()))
    assert sorted(client.get("/v1/items/a").json()["images"]) == ["nir"]
    assert client.get(images["rgb"]).status_code == 404
    client.delete("/v1/items/a")
    assert [path for path in (tmp_path / "media").rglob("*") if path.is_file()] == []


def test_names_of_users_are_stored_and_returned_as_text(served, tmp_path):
    client = served()
    for number, name in enumerate(HOSTILE):
        fields = {"key": name, "identity": name, "camera": name, "scene": name, "metadata": {name: [name]}}
        files = {"rgb": (name, picture(number))}
        sent = client.post("/v1/items", data={"request": json.dumps({"items": [fields]})}, files=files)
        assert sent.status_code == 200, sent.text
        from urllib.parse import quote

        got = client.get(f"/v1/items/{quote(name, safe='')}").json()
        file_name = got["metadata"].pop("file_names")["rgb"]
        assert got["metadata"] == {name: [name]}
        assert file_name == name.replace('"', "%22")  # as browsers and httpx write it
        assert [got[each] for each in ("key", "identity", "camera", "scene")] == [name] * 4
        assert client.get(got["images"]["rgb"]).status_code == 200
        assert [item["key"] for item in client.get("/v1/items", params={"key": name}).json()["items"]] == [name]
    inside = {path.parent.parent for path in tmp_path.rglob("*.webp")}
    assert inside == {tmp_path / "media"}
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


def test_an_item_from_a_file_is_shown_only_below_the_root(served, tmp_path):
    from dataclasses import replace

    from trireid.embedding.items import Item

    client = served(root=tmp_path / "root")
    for folder in ("root", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(picture())
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root" / "text.png").write_text("secret")
    places = {"in": "a.png", "out": "../elsewhere/a.png", "link": "link.png", "text": "text.png", "gone": "gone.png"}
    client.post("/v1/items", **form({"items": [{"key": "x"}]}, rgb=picture()))
    item, *rest = client.gallery.rows["x"]
    for key, place in places.items():
        path = str(tmp_path / "root" / place)
        client.gallery.rows[key] = (replace(item, key=key, images={"nir": path}), *rest)
        assert isinstance(client.gallery.rows[key][0], Item)
    status = {key: client.get(f"/v1/items/{key}/images/nir").status_code for key in places}
    assert status == {"in": 200, "out": 404, "link": 404, "text": 404, "gone": 404}
    reasons = {key: client.get(f"/v1/items/{key}").json()["images_not_shown"] for key in places}
    outside = {"nir": "outside_root"}
    assert reasons == {"in": {}, "out": outside, "link": outside, "text": {}, "gone": {"nir": "no_file"}}
    page = client.get("/item", params={"key": "out"}).text
    assert "The nir image of out is not shown" in page
    assert "below the root of the gallery, and these files are elsewhere" in page
    listed = client.get("/gallery?language=zh").text  # one note for each reason, not for each item
    assert (listed.count("这些文件不在该目录下"), listed.count(">未显示<"), listed.count("已被移走或删除")) == (1, 3, 1)
    without = served(root=None, gallery=client.gallery)
    assert without.get("/v1/items/in").json()["images_not_shown"] == {"nir": "no_root"}
    match = without.post("/v1/search", json={"keys": ["in"]}).json()["results"][0]["matches"][0]
    assert match["images_not_shown"] in ({}, {"nir": "no_root"})
    assert "this gallery has no root" in without.get("/?item=in").text


def test_the_examples_of_the_description_are_accepted(served):
    client = served()
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    (added,) = schemas["AddRequest"]["examples"]
    other = {"items": [{**added["items"][0], "key": "yard-3"}]}
    sent = [("POST", "/v1/items", [added, other])]
    sent += [("POST", f"/v1/{each.lower()}", schemas[f"{each}Request"]["examples"]) for each in ("Embed", "Search")]
    sent += [("PATCH", "/v1/items", schemas["LabelRequest"]["examples"])]
    sent += [("PATCH", "/v1/items/gate-17", schemas["OneLabel"]["examples"])]
    sent += [
        ("POST", "/v1/search", [{"keys": ["yard-3"], "where": each} for each in schemas["FilterFields"]["examples"]])
    ]
    for method, address, examples in sent:
        for example in examples:
            answer = client.request(method, address, json=example)
            assert answer.status_code == 200, (address, answer.text)


def test_the_description_is_complete_and_its_page_needs_no_other_host(served):
    client = served()
    description = client.get("/openapi.json").json()
    text = json.dumps(description)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(description["components"]["schemas"])
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), f"{method} {path}"
            assert operation.get("description"), f"{method} {path}"
            if "requestBody" in operation and path in ("/v1/embed", "/v1/search", "/v1/items") and method == "post":
                content = operation["requestBody"]["content"]
                assert "example" in content["application/json"], path
                assert "multipart/form-data" in content
            assert all("description" in each for each in operation.get("parameters", [])), f"{method} {path}"
            failures = {code: each for code, each in operation["responses"].items() if code >= "400"}
            assert {"401", "403", "429", "503"} <= set(failures) or not path.startswith("/v1/")
            for answer in failures.values():
                assert list(answer["content"]) == ["application/problem+json"]
                assert answer["content"]["application/problem+json"]["schema"]["$ref"].endswith("/ProblemDetails")
    page = client.get("/docs")
    assert "http:" not in page.text
    assert "https:" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert client.get("/static/swagger/swagger-ui-bundle.js").status_code == 200
    assert "trireid_requests_total" in client.get("/metrics").text
