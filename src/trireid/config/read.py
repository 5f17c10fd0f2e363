"""Read YAML as plain data, within limits of size and depth; errors name the file and the line.

The package reads all YAML here: settings, cells of grids, upstream's files and the settings of run folders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from trireid.errors import ConfigError, printable
from trireid.files import UnreadableFileError, read_text

MAX_SIZE = 1_000_000
"""Limit in bytes of a YAML file, and in characters of a text; the longest file of this package has 4,000."""
MAX_DEPTH = 20
"""Limit of nested lists and mappings; settings have 4 levels."""
MAX_NODES = 10_000
"""Limit of values, where an alias counts as all values that it stands for: nested aliases could exceed any memory."""
MAX_NUMBER = 100
"""Limit of characters of a number."""

_INT, _FLOAT, _TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))


def _refused(problem: str, node: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = node.start_mark  # the stubs name two kinds
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML within the limits of this module.

    It refuses repeated keys, explicit tags, control characters in text, and numbers that YAML 1.1 does not read as
    decimal (010 is 8, 1:30 is 90). It reads 1e-4 as a number and a date as text, as YAML 1.2 does.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._num_nodes = 0
        self._sizes: dict[int, int] = {}  # number of nodes of a subtree, by the id of its root

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._check_event(event)
        before = self._num_nodes
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _refused(f"*{event.anchor} refers to itself", event)
            self._count(self._sizes[id(node)], event)
        else:
            self._count(1, event)
            self._sizes[id(node)] = self._num_nodes - before
        return node

    def _check_event(self, event: yaml.Event) -> None:
        """Refuse an event before its node is built."""
        if self._depth >= MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} lists or mappings within each other", event)
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":  # "!" may mark a quoted text
            name = tag.replace("tag:yaml.org,2002:", "!!")
            raise _refused(f"the tag {name} is not allowed: write the value without it", event)

    def _count(self, number: int, event: yaml.Event) -> None:
        self._num_nodes += number
        if self._num_nodes > MAX_NODES:
            raise _refused(f"more than {MAX_NODES} values, counting those that aliases stand for", event)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        strange = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)
        if strange is not None:
            raise _refused(f"a control character or surrogate, {strange!a}, in a text", node)
        return text

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if len(text) > MAX_NUMBER:
            raise _refused(f"a number of {len(text)} characters; at most {MAX_NUMBER} are allowed", node)
        if ":" in text or re.match(r"[-+]?0[0-9_]", text):
            raise _refused(f"{text} would be read in base 8 or 60: write a decimal number, or quote a text", node)
        try:
            made = self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)
        except ValueError:  # 0x_ and the like
            raise _refused(f"{text} is not a number", node) from None
        return float(made) if node.tag == _FLOAT else int(made)


_StrictLoader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_text)
_StrictLoader.add_constructor(_TIMESTAMP, _StrictLoader.construct_text)
_StrictLoader.add_constructor("tag:yaml.org,2002:value", _StrictLoader.construct_text)  # a lone =
for _number_tag in (_INT, _FLOAT):
    _StrictLoader.add_constructor(_number_tag, _StrictLoader.construct_number)


def parse_yaml(text: str, *, source: str) -> object:
    """Parse YAML text.

    Raises:
        ConfigError: a syntax error, a repeated key, or a limit is exceeded; names `source` and the line.
    """
    source = printable(source)
    if len(text) > MAX_SIZE:
        raise ConfigError(f"{source} has {len(text)} characters; at most {MAX_SIZE} are allowed: give a settings file")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = printable(str(error.problem or error.context))
        raise ConfigError(f"{source}{line}: {problem}; correct the YAML there") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{source} is not valid YAML: {printable(' '.join(str(error).split()))}") from None


def read_mapping(path: Path) -> dict[str, object]:
    """Read a YAML file whose top level is a mapping of names.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, empty, or its top level is not a mapping.
    """
    shown = printable(str(path))
    try:
        text = read_text(path, limit=MAX_SIZE)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {shown} does not exist; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{shown} is a folder; give the path of a YAML file") from None
    except UnreadableFileError as error:
        raise ConfigError(f"{shown}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} is not a text file; give the path of a YAML file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"configuration file {shown} cannot be read: {error.strerror}") from None
    except ValueError as error:  # an invalid path
        raise ConfigError(f"configuration file {shown} cannot be read: {error}") from None
    content = parse_yaml(text.removeprefix("\ufeff"), source=str(path))
    if content is None:
        raise ConfigError(f"{shown} holds no settings; an example is configs/trireid/rgbnt201/sdtps.yaml")
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "single value"
        raise ConfigError(f"{shown} holds a {kind} at the top; it should hold sections such as `data:`")
    return {str(key): value for key, value in content.items()}
