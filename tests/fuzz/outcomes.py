"""Judges how a case ended: it worked, it was refused in one line with exit code 2, or something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.sandbox import SEEN, TRACEBACK, WRONG_RESULT

MOST_GROWTH = 1500 * 2**10  # KiB of memory beyond what a child starts with
LONGEST_LINE = 4000  # characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
PYTHON_WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning", re.MULTILINE)
SETTING_LINE = re.compile(r"\s*(override |\S*\.ya?ml: )")  # several wrong settings: a line for each
NO_MEMORY = re.compile(r"can't allocate memory|[Cc]annot allocate memory|not enough memory|out of memory")


@dataclass(frozen=True)
class Ended:
    """How a case ended: exit code, negative for the number of a signal, and whether its time was over."""

    code: int
    hung: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `works`, `refused`, or the name of what is wrong with it, and the line that says so."""

    name: str
    detail: str = ""

    @property
    def right(self) -> bool:
        """Whether the case ended as it should."""
        return self.name in ("works", "refused")


def judge(ended: Ended, folder: Path) -> Outcome:
    """The outcome of a case from how its process ended and what it left in its folder."""
    words = {name: _read(folder / f"{name}.txt") for name in ("out", "err", "foreign")}
    seen = json.loads(_read(folder / SEEN) or "{}")
    code = seen.get("code", ended.code)
    if ended.hung or -code in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome("hangs", _place(words["foreign"]))
    if code < 0:
        return Outcome(f"signal {-code}", _place(words["foreign"]) or _last(words["err"]))
    if code == TRACEBACK or "Traceback (most recent call last)" in words["err"]:
        return Outcome("traceback", _last(words["err"]) or _last(words["foreign"]))
    if code == WRONG_RESULT:
        return Outcome("wrong result", _last(words["err"]))
    return _harm(seen, folder, words) or _ending(code, words)


def _harm(seen: dict[str, Any], folder: Path, words: dict[str, str]) -> Outcome | None:
    """What a case did that none may do, however it ended."""
    if seen.get("ran"):
        return Outcome("runs something", seen["ran"][0])
    if seen.get("outside"):
        return Outcome("writes outside", seen["outside"][0])
    peak = seen.get("peak", 0)
    if peak - own_memory() > MOST_GROWTH or NO_MEMORY.search(words["err"] + words["foreign"]):
        return Outcome("memory", f"{peak // 1024} MiB; {_last(words['err'])}")
    if words["foreign"].strip():
        return Outcome("words of a library", _last(words["foreign"]))
    warning = PYTHON_WARNING.search(words["err"])
    if warning:
        return Outcome("warning of Python", words["err"][warning.start() :].splitlines()[0])
    left = [path for path in (folder / "work").rglob("*") if path.name.endswith((".tmp", ".part"))]
    return Outcome("temporary file left", str(left[0])) if left else None


def _ending(code: int, words: dict[str, str]) -> Outcome:
    """Whether what was said and the exit code belong together."""
    lines = [line for line in words["err"].split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    control = CONTROL.search(words["err"] + words["out"])
    if control:
        return Outcome("control characters", f"{control[0]!r} in {_around(words['err'] + words['out'], control)!r}")
    if code == 0:
        return Outcome("works") if not errors else Outcome("error with exit code 0", errors[0])
    if code != 2:
        return Outcome(f"exit code {code}", _last(words["err"]))
    if "Usage: " in words["err"] or (not errors and "fault" in words["out"]):
        return Outcome("refused")
    after = lines[lines.index(errors[0]) + 1 :] if errors else []
    if len(errors) != 1 or any(not SETTING_LINE.match(line) for line in after):
        return Outcome("not one line of error", " | ".join(lines[-3:]))
    if len(errors[0]) > LONGEST_LINE:
        return Outcome("a line without end", errors[0][:200])
    return Outcome("refused")


def own_memory() -> int:
    """KiB of memory that this process holds now, which a child starts with."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            return stream.read(200_000)
    except FileNotFoundError:
        return ""


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _place(text: str) -> str:
    """The innermost line of the stack that a child writes when its time is over."""
    found = re.search(r'File "([^"]*)", line (\d+) in (\S+)', text)
    inside = re.search(r'File "[^"]*/(trireid/[^"]*)", line (\d+) in (\S+)', text)
    return " < ".join(":".join(match.groups()) for match in (found, inside) if match)


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(match.start() - 40, 0) : match.end() + 40]
