"""`trireid serve`: what keeps it from starting is said in one line, before anything heavy is loaded."""

import pytest
from typer.testing import CliRunner

from trireid.cli.app import app

TOKEN = "a-token-of-32-characters-for-test"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--token-file FILE"),
        (["--token-file", "none"], "No such file"),
        (["--gallery", "nowhere"], "nowhere"),
        (["--gallery", "http://127.0.0.1:9"], "--media FOLDER"),
        (["--host", "256.1.1.1", "--token-file", "token"], "--host 256.1.1.1"),
        (["--max-items", "0"], "--max-items is 0"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    given = options if "--gallery" in options else ["--gallery", "gallery", *options]
    done = CliRunner().invoke(app, ["serve", "run", "--port", "0", *given])
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True]
    assert words in lines[0]
    assert TOKEN not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
