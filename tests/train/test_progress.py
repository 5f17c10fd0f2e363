"""Progress: a bar on a terminal, lines elsewhere, nothing for work that ends at once by an error."""

import time

import pytest

from trireid.train import progress
from trireid.train.progress import progress_bar


@pytest.fixture
def quick(monkeypatch):
    """A line every 50 milliseconds, and a bar after as long."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    monkeypatch.setattr(progress, "SECONDS_BEFORE_A_BAR", 0.05)


def test_piped_work_says_how_far_it_is_even_while_a_step_takes_long(quick, capsys):
    with progress_bar("working", total=3) as bar:
        bar.advance(1)
        bar.annotate("loss 1.5")
        time.sleep(0.18)  # nothing is told meanwhile
        bar.reach(3, 3)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[0] == "working: 1/3 in 0 s, loss 1.5"
    assert lines[-1] == "working: 3/3 in 0 s, loss 1.5"


@pytest.mark.parametrize("options", [{"enabled": False}, {"transient": True}, {"transient": True, "counted": False}])
def test_short_or_hidden_work_leaves_no_line(capsys, options):
    with progress_bar("working", **options) as bar:
        bar.reach(1, 2)
    assert capsys.readouterr().err == ""


def test_work_that_is_not_counted_gives_signs_of_life(quick, capsys):
    with progress_bar("writing the page", transient=True, counted=False):
        time.sleep(0.08)
    assert capsys.readouterr().err == "writing the page: 0 s\n"


def test_an_error_at_once_stands_alone(capsys, monkeypatch):
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        with pytest.raises(ValueError, match="at once"), progress_bar("working"):
            raise ValueError("at once")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_also_before_the_first_step_has_ended(quick, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress_bar("work [b]on[/b] <x>", total=2) as bar:
        time.sleep(0.2)
        assert "work [b]on[/b] <x>" in capsys.readouterr().err
        bar.advance(2)
    assert "2/2" in capsys.readouterr().err
