"""Read a YAML file as a plain mapping, with errors that name the file and the line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from trireid.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as a number (YAML 1.1 reads it as text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, *, source: str) -> object:
    """Parse YAML text.

    Raises:
        ConfigError: on a syntax error or a repeated key; names `source` and the line.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}; correct the YAML there") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source} is not valid YAML: {reason}") from None


def read_mapping(path: Path) -> dict[str, object]:
    """Read a YAML file whose top level is a mapping of names.

    Raises:
        ConfigError: if the file is missing, unreadable, not YAML, empty, or holds something else at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from None
    content = parse_yaml(text, source=str(path))
    if content is None:
        raise ConfigError(f"{path} holds no settings; an example is configs/rgbnt201/sdtps.yaml")
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "single value"
        raise ConfigError(f"{path} holds a {kind} at the top; it should hold sections such as `data:`")
    return {str(key): value for key, value in content.items()}
