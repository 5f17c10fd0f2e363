"""What people changed on the pages, in a file of whole lines: the last changes can be undone, also after a restart."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trireid.errors import RunError, printable
from trireid.files import replacing, writing
from trireid.serve.problems import Problem

MOST = 50
"""Actions that can be undone; also those that are listed."""
COMPACTED = 4 * MOST
"""Lines from which on the file is written anew at the start."""

Kind = Literal["accept", "identity", "label", "unlabel", "remove", "add"]


@dataclass(frozen=True)
class Action:
    """One change of the gallery by a person.

    Attributes:
        number: of it, as text; larger for later ones.
        kind: what the person did.
        key: of the item that it is about.
        identity: that the item has afterwards, None: none.
        steps: what was changed, with what was there before.
        time: seconds since 1970.
        undone: whether it was taken back.
    """

    number: str
    kind: Kind
    key: str
    identity: str | None
    steps: Sequence[Mapping[str, Any]]
    time: float = field(default_factory=time.time)
    undone: bool = False


class Journal:
    """The last actions, in memory and in a file, which several services of one gallery can share.

    An action is written before the gallery is changed: a service that is killed in between leaves an action that
    undoing finds nothing of.

    Args:
        path: of the file; it is made with the first action.

    Raises:
        RunError: there is a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._actions: OrderedDict[str, Action] = OrderedDict()
        self._file: int | None = None  # which file it was, and how much of it was read
        self._position = 0
        self._ends_whole = True
        if self._refresh() > COMPACTED:
            self._compact()

    def _refresh(self) -> int:
        """Take over what was written since, also by other services; the number of lines.

        Raises:
            RunError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                if number != self._file:
                    self._file, self._position = number, 0
                    self._actions.clear()
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise RunError(
                f"{printable(str(self.path))}: the list of changes cannot be read ({error.strerror}); move it away, or "
                "give another folder with --media"
            ) from error
        *lines, rest = content.split(b"\n")
        self._position += len(content) - len(rest)
        self._ends_whole = not rest
        for line in lines:
            self._apply(line.decode("utf-8", "replace"))
        return len(lines)

    def _apply(self, line: str) -> None:
        """Take over one line; a torn one, of a full disk or a power loss, is none."""
        try:
            entry = json.loads(line)
            if "action" in entry:
                action = Action(**entry["action"])
                int(action.number)
                self._actions[action.number] = action
            elif entry["undone"] in self._actions:
                self._actions[entry["undone"]] = replace(self._actions[entry["undone"]], undone=True)
            elif entry.get("failed"):
                self._actions.pop(entry["failed"], None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        while len(self._actions) > MOST:
            self._actions.popitem(last=False)

    def _compact(self) -> None:
        with replacing(self.path) as temporary:
            lines = [json.dumps({"action": asdict(action)}) + "\n" for action in self._actions.values()]
            temporary.write_text("".join(lines), encoding="utf-8")
        self._refresh()

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Write one line in one piece, and wait for the disk.

        Raises:
            RunError: it cannot be written.
        """
        self._refresh()
        content = (("" if self._ends_whole else "\n") + json.dumps(entry) + "\n").encode()
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._refresh()

    def write(self, kind: Kind, key: str, identity: str | None, steps: Sequence[Mapping[str, Any]]) -> Action:
        """State an action that is done next."""
        action = Action(str(time.time_ns()), kind, key, identity, list(steps))
        self._append({"action": asdict(action)})
        return action

    def fail(self, action: Action) -> None:
        """State that an action was not done after all."""
        self._append({"undone": "", "failed": action.number})

    def undo(self, action: Action) -> None:
        """State that an action was taken back."""
        self._append({"undone": action.number})

    def find(self, number: str) -> Action:
        """An action by its number.

        Raises:
            Problem: 404, it is not among the last ones.
        """
        self._refresh()
        if number not in self._actions:
            raise Problem(
                404, f"only the last {MOST} changes are kept, and this one is not among them; correct the item by hand"
            )
        return self._actions[number]

    def get(self, number: str) -> Action | None:
        """The same, None where there is none."""
        self._refresh()
        return self._actions.get(number)

    def last(self) -> list[Action]:
        """All that are kept, the last first."""
        self._refresh()
        return list(reversed(self._actions.values()))
