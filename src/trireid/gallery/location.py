"""Where a gallery is: a folder of its own, or a name on a server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from trireid.errors import InputError, RunError, printable
from trireid.files import is_file, locked, read_text, write_json, writing
from trireid.gallery.about import SCHEMA, About
from trireid.gallery.connection import is_server
from trireid.gallery.engine import Engine
from trireid.typed_json import parse_object

MARK = "gallery.json"
"""In the folder: says that it is a gallery, of which version, and whether it is unfinished."""
_MARK = {"format": "trireid gallery", "schema_version": SCHEMA}
_ADDRESS = re.compile(r"[\w.-]+:\d+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def check_name(name: str) -> None:
    """Raise InputError unless a gallery can have a name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("_about"):
        raise InputError(
            f"the name {printable(repr(name), limit=80)} must be 1 to 100 letters, digits and _, without a digit at "
            "its start and without _about at its end"
        )


def place_of(location: str | Path, name: str) -> str:
    """A gallery in words."""
    return f"{name!r} at {printable(str(location))}"


def check_location(location: str | Path) -> None:
    """Raise InputError where an address is none that can be used."""
    text = str(location)
    if ("://" in text and not is_server(text)) or _ADDRESS.fullmatch(text):
        raise InputError(f"the location {printable(text)} must be a folder or http://host:port")
    if not text:
        raise InputError("the location is empty; give a folder or http://host:port")


@contextmanager
def made_folder(location: str | Path) -> Iterator[ExitStack]:
    """Make the folder of an embedded gallery; after an error in the block nothing of it is left.

    Yields:
        The lock of the folder, which the engine takes over: no other process may come in between.

    Raises:
        RunError: there is something in it already, another process is making it, or it cannot be written.
    """
    check_location(location)
    with ExitStack() as lock:
        if is_server(location):
            yield lock
            return
        folder = Path(location)
        is_own, complete = _make_or_find(folder), False
        try:
            lock.enter_context(locked(folder, taken=_being_made(folder)))
            if _is_unfinished(folder):
                _empty(folder)
            _check_empty(folder)
            write_json(folder / MARK, {**_MARK, "unfinished": True})
            yield lock
            write_json(folder / MARK, _MARK)
            complete = True
        finally:
            if not complete:
                lock.close()
                _clean(folder, is_own=is_own)


def _make_or_find(folder: Path) -> bool:
    """Make a folder where there is none, and tell whether this process has made it."""
    with writing(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise RunError(
                    f"{printable(str(folder))} exists already and is no gallery; choose another folder"
                ) from None
            return False
    return True


def _being_made(folder: Path) -> str:
    return (
        f"the gallery in {printable(str(folder))} is being made or used by another process: wait until it ends, or "
        "choose another folder"
    )


def _check_empty(folder: Path) -> None:
    if any(folder.iterdir()):
        is_gallery = (folder / MARK).exists()
        raise RunError(
            f"{printable(str(folder))} exists already{'' if is_gallery else ' and is no gallery'}; "
            f"{'open that gallery, or ' if is_gallery else ''}choose another folder"
        )


def _clean(folder: Path, *, is_own: bool) -> None:
    """Remove what a creation left that ended in an error, unless another process has the folder by now."""
    with suppress(RunError, OSError), locked(folder, taken=""):
        if _is_unfinished(folder):
            _empty(folder)
        if is_own:
            folder.rmdir()  # refuses a folder with something in it


def _is_unfinished(folder: Path) -> bool:
    """Whether a process that was killed has left a folder without having made the gallery."""
    try:
        return parse_object(read_text(folder / MARK)).get("unfinished") is True
    except (OSError, ValueError):
        return False


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def opened_folder(location: str | Path) -> None:
    """Check before the engine starts that a folder holds a gallery of this version.

    Raises:
        RunError: it does not.
    """
    check_location(location)
    if is_server(location):
        return
    folder, shown = Path(location), printable(str(location))
    if is_file(folder):
        raise RunError(
            f"{shown} is a file, a gallery is a folder; files of Milvus Lite 2 cannot be read: create the gallery "
            "again from its images or embeddings"
        )
    try:
        content = parse_object(read_text(folder / MARK))
    except FileNotFoundError:
        raise RunError(f"there is no gallery in {shown}; make one with `trireid gallery create`") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{printable(str(folder / MARK))} cannot be read ({printable(str(error), limit=120)})") from None
    if content.get("unfinished"):
        with locked(folder, taken=_being_made(folder)):
            pass
        raise RunError(f"the gallery in {shown} was not created to its end; create it again at the same place")
    if content.get("schema_version") != SCHEMA:
        found = printable(repr(content.get("schema_version")), limit=40)
        raise RunError(
            f"the gallery in {shown} has schema version {found}, this trireid reads {SCHEMA}: use the version that "
            "made it, or create it again from its images or embeddings"
        )


def new_engine(location: str | Path, name: str, about: About, opening: ExitStack, lock: ExitStack) -> Engine:
    """An empty gallery in `made_folder`; it is closed where the block of `opening` ends in an error."""
    engine = Engine(location, name, lock=lock)
    opening.callback(engine.close)
    if engine.exists():
        raise RunError(f"the gallery {place_of(location, name)} exists already; choose another name")
    engine.create(about.layout.row_width, about.model_dump_json())
    return engine


@contextmanager
def whole_or_nothing(engine: Engine) -> Iterator[None]:
    """Fill an open gallery: after an error nothing is left of it, and after a kill its folder counts as unfinished."""
    mark = Path(engine.location) / MARK
    with ExitStack() as undoing:
        undoing.callback(_discard, engine)
        if engine.embedded:
            write_json(mark, {**_MARK, "unfinished": True})
        yield
        if engine.embedded:
            write_json(mark, _MARK)
        undoing.pop_all()


def _discard(engine: Engine) -> None:
    """Remove an open gallery with all of its items, and what is in its folder."""
    with closing(engine):
        engine.drop()
    folder = Path(engine.location)
    if engine.embedded:
        with suppress(RunError), locked(folder, taken=""):
            _empty(folder)


def gallery_exists(location: str | Path, name: str) -> bool:
    """Whether there is a gallery; one that was not created to its end is none."""
    check_name(name)
    check_location(location)
    if not is_server(location):
        return (Path(location) / MARK).exists() and not _is_unfinished(Path(location))
    with closing(Engine(location, name)) as engine:
        return engine.exists()
