"""Ways to damage bytes and plain data, and places that are not what their name says; all drawn from a `Random`."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from random import Random
from typing import Any

ODD_TEXT = (
    "", " ", "-", "--help", "~", "~nobody_here/x", "$HOME", "*", "..", "../../..", "/etc/passwd", "/dev/null",
    "/dev/zero", "a\nb", "a\r\nerror: b", "\t", "\x00", "\x1b[31mred\x07", "\x85", "\u2028", "\u202egpj", "\ufeff",
    "\ud800", "e\u0301", "日本", "\U0001f600", "<script>alert(1)</script>", "'", '"', "{0}", "%s%n", "$x^2$",
    "$\\frac{", "\\", "C:\\x.jpg", "http://127.0.0.1:9/x.jpg", "=cmd|' /C calc'!A0", "x" * 300, "x" * 5000, "0", "-1",
    "01", "1.0", "1e400", "nan", "None", "true", "9" * 30, "\u0661\u0662",
)  # fmt: skip
ODD_NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.5, 1.5, 1e-300, 1e300, 10**12, 10**30, 10**400, float("nan"), float("inf"), True)


def damaged(random: Random, data: bytes, *, most: int = 5, start: int = 0) -> bytes:
    """Bytes with a few of them changed, left out, doubled or put in, from `start` on; sometimes cut."""
    changed = bytearray(data)
    if random.random() < 0.15:
        return bytes(changed[: random.randrange(start, len(changed) + 1)])
    for _ in range(random.randint(1, most)):
        if len(changed) <= start:
            break
        place, way = random.randrange(start, len(changed)), random.random()
        if way < 0.5:
            changed[place] = random.choice((0, 255, random.randrange(256), changed[place] ^ (1 << random.randrange(8))))
        elif way < 0.75:
            del changed[place : place + random.randint(1, 60)]
        elif way < 0.85:
            changed[place:place] = changed[place : place + random.randint(1, 60)]
        else:
            changed[place:place] = random.randbytes(random.randint(1, 20))
    return bytes(changed)


def odd_value(random: Random) -> Any:
    """A value of JSON that few readers expect where they read it."""
    way = random.randrange(7)
    if way == 0:
        return random.choice(ODD_TEXT)
    if way == 1:
        return random.choice(ODD_NUMBERS)
    if way == 2:
        return None
    if way == 3:
        return [odd_value(random) for _ in range(random.choice((0, 1, 2, 3, 7)))]
    if way == 4:
        return {random.choice(("a", "mAP", "joint", "global", "path", "", "<b>")): odd_value(random)}
    if way == 5:
        return {}
    deep: Any = 1
    for _ in range(random.choice((3, 50, 300))):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return deep


def changed_data(random: Random, data: Any, *, times: int | None = None) -> Any:
    """A copy of plain data with another value, key or length at a few places, anywhere in it."""
    result = copy.deepcopy(data)
    for _ in range(times or random.choice((1, 1, 1, 2, 3))):
        result = _changed_once(random, result)
    return result


def _changed_once(random: Random, data: Any) -> Any:
    """Walks down at random, so that upper places are met as often as the many lower ones."""
    if not isinstance(data, (dict, list)) or not data or random.random() < 0.1:
        return odd_value(random)
    key = random.choice(sorted(data, key=repr)) if isinstance(data, dict) else random.randrange(len(data))
    way = random.random()
    if way < 0.06:
        del data[key]
    elif way < 0.12:
        if isinstance(data, list):
            data.insert(key, copy.deepcopy(data[key]))
        else:
            data[random.choice(("", "x", "\x00", "<script>", "a\nb", str(key).upper()))] = data[key]
    elif way < 0.15 and isinstance(data, list):
        del data[key:]
    else:
        data[key] = _changed_once(random, data[key])
    return data


def odd_place(random: Random, folder: Path) -> tuple[str, Path]:
    """What something is that is no ordinary file, and its path; made in `folder` where it has to be made."""
    places = {
        "folder": folder, "null": Path("/dev/null"), "zeros": Path("/dev/zero"), "memory": Path("/proc/self/mem"),
        "password file": Path("/etc/passwd"), "long name": Path("x" * 5000), "NUL in its name": Path("a\0b"),
        "half a character": Path("a\udcff.x"), "missing": folder / "nothing", "empty name": Path(), "option": Path("-"),
        "pipe": folder / "pipe", "dangling": folder / "dangling", "loop": folder / "loop", "empty": folder / "empty",
    }  # fmt: skip
    name = random.choice(sorted(places))
    path = places[name]
    if name not in ("folder", "missing") and path.parent == folder:
        make_odd_file(path, name)
    return name, path


def make_odd_file(path: Path, what: str) -> None:
    """Make a pipe, a link to nothing, to itself, to zeros or to a folder, a device, an empty or a huge empty file."""
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "dangling":
        path.symlink_to("/nonexistent/file")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "zeros":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "link to a folder":
        path.symlink_to("/proc/self")
    elif what == "huge":
        with path.open("wb") as stream:
            stream.write(b"\xff\xd8\xff")
            stream.truncate(900 * 2**20)
    else:
        path.write_bytes(b"")


ODD_FILES = ("pipe", "dangling", "loop", "zeros", "folder", "link to a folder", "huge", "empty")
