"""The pages on a fake model and a fake gallery: forms, decisions, errors, languages; in a browser: tests/browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.fakes import FakeGallery, picture
from trireid.serve import journal as journals
from trireid.serve import languages
from trireid.serve.answers import notes_on_rate
from trireid.serve.connection import HEAD_BYTES
from trireid.serve.journal import Journal
from trireid.serve.pages import _verdict
from trireid.serve.problems import Problem
from trireid.serve.texts_chinese import CHINESE
from trireid.serve.texts_english import ENGLISH
from trireid.serve.wording import chance_words, match_words

SERVE = Path(languages.__file__).parent
HTML = {"Accept": "text/html", "Accept-Language": "en"}
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


class Person:
    """Someone with a browser, who fills the forms of the pages in."""

    def __init__(self, client):
        self.client = client
        self.token = re.search(r'name="form" value="(\w+)"', self.get("/")).group(1)

    def get(self, address):
        answer = self.client.get(address, headers=HTML)
        assert answer.status_code == 200, answer.text
        return answer.text

    def send(self, address, files=None, **fields):
        answer = self.client.post(address, data={"form": self.token, **fields}, files=files, headers=HTML)
        return answer

    def changes(self):
        """Addresses of the changes that can be taken back, the last first."""
        return re.findall(r'action="(/changes/\d+)/undo"', self.get("/changes"))

    def search(self, seed=0, **fields):
        answer = self.send("/search", files={"rgb": ("a_rgb.png", picture(seed))}, **fields)
        assert answer.status_code == 200, answer.text
        return answer.url.path


@pytest.fixture
def person(served):
    found = Person(served())
    for key, seed, identity in (("first", 0, "7"), ("second", 1, "8"), ("third", 2, None)):
        fields = {"items": [{"key": key, "identity": identity, "camera": "gate", "time": 0.0}]}
        body = {"data": {"request": json.dumps(fields)}, "files": {"rgb": (f"{key}.png", picture(seed))}}
        assert found.client.post("/v1/items", **body).status_code == 200
    return found


def rows(person):
    return {key: row[0].identity for key, row in person.client.gallery.rows.items()}


def test_both_languages_have_every_text_and_no_text_is_idle():
    assert set(ENGLISH) == set(CHINESE)
    fields = {key: set(re.findall(r"{(\w+)}", text)) for key, text in ENGLISH.items()}
    assert fields == {key: set(re.findall(r"{(\w+)}", text)) for key, text in CHINESE.items()}
    source = "".join(path.read_text(encoding="utf-8") for path in (*SERVE.glob("templates/*"), *SERVE.glob("*.py")))
    source = source.replace((SERVE / "texts_english.py").read_text(encoding="utf-8"), "")
    source = source.replace((SERVE / "texts_chinese.py").read_text(encoding="utf-8"), "")
    used = set(re.findall(r"[\"'](\w+)[\"']", source))
    made = re.compile(r"(done|undone|exclude|view|spectrum|problem|not_shown)_\w+")
    assert sorted(key for key in ENGLISH if key not in used and not made.fullmatch(key)) == []
    called = set(re.findall(r"\bt\(\s*[\"'](\w+)[\"'][,)]", source))
    assert sorted(called - set(ENGLISH)) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_speaks_the_language_of_the_person(person, language):
    result = person.search()
    for address in (
        "/",
        "/gallery",
        "/gallery?view=identities",
        "/item?key=first",
        "/add",
        "/changes",
        "/report",
        result,
    ):
        page = person.client.get(address, headers={**HTML, "Accept-Language": f"{language},de;q=0.5"})
        assert f'<html lang="{language}">' in page.text
        assert ("图库" in page.text) == (language == "zh")
    switched = person.client.get("/gallery?language=zh", headers=HTML)
    assert '<html lang="zh">' in switched.text
    assert '<html lang="zh">' in person.client.get("/", headers=HTML).text  # remembered


def test_a_search_ranks_and_an_accepted_query_is_an_item_until_it_is_undone(person):
    result = person.search(threshold="0.5", query_camera="yard")
    page = person.get(result)
    assert "Probably 7" in page
    assert page.index(">7</a>") < page.index(">8</a>")
    accepted = person.send(f"{result}/accept", match="first")
    assert "Accepted" in accepted.text
    added = [key for key in rows(person) if key.startswith("query-")]
    assert [rows(person)[key] for key in added] == ["7"]
    assert person.client.gallery.rows[added[0]][0].camera == "yard"
    assert f'href="/item?key={added[0]}">{added[0]}</a> · compared' not in person.get(result)  # not a match of itself
    person.send(f"{result}/accept", match="second")  # the person thinks again
    assert rows(person)[added[0]] == "8"
    last, before = person.changes()
    assert "Undone" in person.send(f"{last}/undo", back=result).text
    assert rows(person)[added[0]] == "7"
    assert "taken back before" in person.send(f"{last}/undo").text
    person.send(f"{before}/undo")
    assert added[0] not in rows(person)
    assert "Add as new identity" in person.get(result)  # it is a query again


def test_a_match_without_identity_and_a_new_one(person):
    result = person.search(2, by="item", key="mine")
    assert "write the name that both get" in person.send(f"{result}/accept", match="third").text
    person.send(f"{result}/accept", match="third", identity="9")
    assert rows(person) == {"first": "7", "second": "8", "third": "9", "mine": "9"}
    person.send(f"{person.changes()[0]}/undo")
    assert rows(person) == {"first": "7", "second": "8", "third": None}
    other = person.search(2, key="mine")
    assert "has an identity" in person.send(f"{other}/identity", identity="7").text
    person.send(f"{other}/identity", identity="new")
    assert rows(person)["mine"] == "new"


def test_a_rejected_match_is_hidden_for_this_query_alone(person):
    result = person.search(by="item")
    person.send(f"{result}/reject", match="first")
    assert 'id="name-1"' in person.get(result)
    assert "item?key=first" not in person.get(result)
    assert "item?key=first" in person.get(person.search(by="item"))
    person.send(f"{result}/show", match="first")
    assert "item?key=first" in person.get(result)


def test_changes_that_others_made_since_are_not_overwritten(person):
    person.send("/item/label", key="first", identity="other", back="/gallery")
    person.client.patch("/v1/items/first", json={"identity": "third party"})
    answer = person.send(f"{person.changes()[0]}/undo")
    assert answer.status_code == 409
    assert "changed or removed since" in answer.text
    assert rows(person)["first"] == "third party"


def test_hostile_text_is_text(person):
    person.send("/item/label", key="first", identity=HOSTILE, back="https://other.example/")
    result = person.search(by="item", key=HOSTILE, query_camera=HOSTILE)
    person.send(f"{result}/accept", match="first")
    pages = ["/gallery", "/gallery?view=identities", "/changes", result, f"/item?key={HOSTILE.replace('&', '%26')}"]
    for address in pages:
        page = person.get(address)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "{{7*7}}" in page


def test_a_mistake_is_shown_with_the_line_of_the_api(person):
    for answer, status, line in (
        (person.send("/search"), 422, "there is no image to search with"),
        (person.send("/search", files={"rgb": ("a.png", b"no image")}), 422, "rgb"),
        (person.send("/search", item="none"), 404, "no item with the key"),
        (person.send("/search", item="first", top="0"), 422, "1 to 100 matches"),
        (person.send("/search", item="first", identity="x" * 3000), 413, "shorten it"),
        (person.send("/search", files=[("rgb", ("a.png", picture(seed))) for seed in (0, 1)]), 422, "two rgb images"),
        (person.send("/search", files={"rgb": ("a.png", picture())}, query_camera="x" * 300), 422, "camera"),
        (person.client.get("/item?key=none", headers=HTML), 404, "no item with the key"),
        (person.client.get("/nowhere", headers=HTML), 404, "nothing at this address"),
        (person.client.get("/search/old", headers=HTML), 404, "search again"),
        (person.client.post("/item/remove", data={"key": "first"}, headers=HTML), 403, "load the page again"),
    ):
        assert answer.status_code == status
        assert 'role="alert"' in answer.text
        assert line in answer.text
    assert person.client.get("/nowhere").json()["status"] == 404  # a program is answered in JSON
    away = person.client.get("http://127.0.0.1:8000//other.example/", headers=HTML)
    assert 'href="//' not in away.text
    assert "first" in rows(person)


def test_a_person_without_the_token_is_led_to_the_login(served):
    client = served(token="a token of many letters")
    number = client.app.state.pages.journal.write("label", "a secret", "7", []).number
    for outside in (f"/login?done={number}", f"//nowhere?done={number}"):
        assert "a secret" not in client.get(f"http://127.0.0.1:8000{outside}", headers=HTML).text
    assert "a secret" not in client.get(f"http://other.example/?done={number}", headers=HTML).text
    answer = client.get("/gallery?view=cameras", headers=HTML)
    assert answer.url.path == "/login"
    form = re.search(r'name="form" value="(\w+)"', answer.text).group(1)
    back = re.search(r'name="back" value="([^"]+)"', answer.text).group(1)
    wrong = client.post("/login", data={"form": form, "token": "no", "back": back}, headers=HTML)
    assert "This is not the token" in wrong.text
    right = client.post("/login", data={"form": form, "token": "a token of many letters", "back": back}, headers=HTML)
    assert (right.url.path, right.status_code) == ("/gallery", 200)
    assert client.post("/logout", data={"form": form}, headers=HTML).url.path == "/login"


def test_words_of_a_distance():
    t = languages.Language("en")
    common = {"distance": 0.4, "threshold": None, "calibrated": True, "comparable": True}
    assert match_words(t, rate=0.001, accepted=True, **common) == "Same object: at most 1 false match in 1,000"
    assert match_words(t, rate=0.03, accepted=False, **common) == "Not near enough: at most 1 false match in 33"
    assert match_words(t, rate=0.7, accepted=None, **common) == "most other objects are this near"
    assert (
        match_words(t, rate=None, accepted=None, **{**common, "calibrated": False}) == "distance 0.400, not calibrated"
    )
    assert "no spectrum in common" in match_words(t, rate=None, accepted=False, **{**common, "comparable": False})
    assert "about 5.0 are this near" in chance_words(t, 0.001, 5000)
    assert chance_words(t, 0.001, 10) == ""


def test_a_query_is_called_unknown_only_where_all_matches_were_refused():
    t = languages.Language("en")
    for kinds, title in (
        (("far", "far"), "Unknown"),
        (("far", ""), "Nearest in the gallery"),
        (("", "near"), "Probably 7"),
    ):
        matches = [SimpleNamespace(kind=kind, identity="7") for kind in kinds]
        search = SimpleNamespace(arguments={"fmr": 0.01, "threshold": None}, note="")
        verdict, note = _verdict(t, search, matches)
        assert (verdict, "neither known nor unknown" in note) == (title, title.startswith("Nearest"))
    found = [SimpleNamespace(matches=[SimpleNamespace(accepted=each) for each in (True, None, None)])]
    assert notes_on_rate(found, None) == []
    assert notes_on_rate(found, 0.01)[0].startswith("fmr=0.01 is not calibrated for 2 of the matches")


MOST = 5


@pytest.fixture
def short_journals(monkeypatch):
    """Lists that keep few changes, so that they are written anew soon."""
    monkeypatch.setattr(journals, "MOST", MOST)
    monkeypatch.setattr(journals, "COMPACTED", 4 * MOST)


def test_a_journal_survives_a_torn_line_and_keeps_the_last_changes(tmp_path, short_journals):
    journal = Journal(tmp_path / "a" / "changes.jsonl")
    for number in range(5 * MOST):  # so many that it is written anew
        journal.write("label", f"item {number}", "7", [{"op": "label", "key": "a", "before": None, "after": "7"}])
    journal.undo(journal.last()[0])
    with journal.path.open("a") as file:
        file.write('{"action": {"number": "999", "kin')
    again = Journal(journal.path)
    assert [action.key for action in again.last()] == [f"item {n}" for n in range(5 * MOST - 1, 4 * MOST - 1, -1)]
    assert [action.undone for action in again.last()[:2]] == [True, False]
    again.write("label", "later", None, [])
    with journal.path.open("a") as file:
        file.write('{"undone": "2')
    Journal(journal.path).write("label", "last", None, [])
    assert [action.key for action in Journal(journal.path).last()[:2]] == ["last", "later"]
    with pytest.raises(Problem, match="not among them"):
        again.find("1")


def test_services_of_one_folder_list_the_changes_of_each_other(tmp_path, short_journals):
    one, two = Journal(tmp_path / "changes.jsonl"), Journal(tmp_path / "changes.jsonl")
    first, second = one.write("label", "a", "7", []), two.write("label", "b", "8", [])
    one.undo(second)
    assert [(action.key, action.undone) for action in two.last()] == [("b", True), ("a", False)]
    two.fail(first)
    assert [action.key for action in one.last()] == ["b"]
    for number in range(5 * MOST):
        two.write("label", str(number), "7", [])
    three = Journal(tmp_path / "changes.jsonl")  # writes the file anew
    three.write("label", "c", "7", [])
    two.write("label", "d", "7", [])
    assert [[action.key for action in each.last()[:2]] for each in (one, two, three)] == [["d", "c"]] * 3


def test_a_change_that_fails_is_not_listed(served):
    class Full(FakeGallery):
        def label(self, keys, identity):
            raise OSError("no space left")

    person = Person(served(gallery=Full()))
    body = {"data": {"request": '{"items": [{"key": "a"}]}'}, "files": {"rgb": ("a.png", picture())}}
    person.client.post("/v1/items", **body)
    assert person.send("/item/label", key="a", identity="7").status_code == 500
    assert "Nothing was changed yet" in person.get("/changes")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the script")
def test_many_long_keys_are_removed_by_requests_that_the_service_takes():
    source = (SERVE / "static" / "page.js").read_text(encoding="utf-8")
    function = re.search(r"async function removeItems.*?\n}\n", source, re.DOTALL).group(0)
    script = f"""{function}
    const lengths = [];
    globalThis.fetch = async address => {{
      lengths.push(address.length);
      return {{ ok: true, json: async () => ({{ changed: new URL("http://a" + address).searchParams.size }}) }};
    }};
    removeItems(Array.from({{ length: 45 }}, (_, number) => "\u6f22".repeat(160) + "&=" + number))
      .then(removed => console.log(JSON.stringify([removed, Math.max(...lengths), lengths.length])));"""
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True, timeout=30)
    removed, longest, requests = json.loads(done.stdout)
    assert removed == 45
    assert longest < HEAD_BYTES / 2
    assert requests < 20
