"""The container file: what it copies is there, and what it starts is a command that exists. It is not built here."""

import json
import re
from pathlib import Path

import typer

from trireid.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def instructions(name):
    return re.findall(rf"^{name} (.+)$", TEXT, re.M)


def test_what_is_copied_is_there():
    copied = [word for line in instructions("COPY") for word in line.split()[:-1]]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists()] == []


def test_it_starts_a_service_that_needs_a_token_as_a_user_of_its_own():
    words = json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[0])
    assert words[0] == "trireid"
    command = typer.main.get_command(app).commands[words[1]]
    context = command.make_context("serve", words[2:])
    assert (context.params["host"], context.params["port"]) == ("0.0.0.0", int(instructions("EXPOSE")[0]))
    assert str(context.params["token_file"]).startswith("/run/secrets/")
    user, created = instructions("USER")[0], re.search(r"useradd --uid (\d+) .*?(\w+) &&", TEXT)
    assert (user, int(created[1]) > 1000) == (created[2], True)
    assert TEXT.index("\nUSER ") < TEXT.index("\nENTRYPOINT ")
    assert f":{context.params['port']}/health" in TEXT
