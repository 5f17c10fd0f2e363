"""What options and settings of one command line say about the same thing, and the values of `--centring`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from trireid.errors import ConfigError, InputError, printable
from trireid.names import Centring


def with_options(overrides: Sequence[str], options: Mapping[str, object], *, section: str = "evaluate") -> list[str]:
    """The settings of a command line, and those that its options give.

    Args:
        overrides: `section.setting=value`.
        options: value of each option, named as its setting in the section; None: not given.
        section: of the settings.

    Raises:
        ConfigError: an option and a setting contradict each other.
    """
    made = list(overrides)
    for name, value in options.items():
        if value is not None:
            refuse_contradiction(name, value, f"{section}.{name}", overrides)
            made.append(f"{section}.{name}={_yaml(value)}")
    return made


def refuse_contradiction(name: str, value: object, path: str, overrides: Sequence[str]) -> None:
    """Refuse an option beside a setting with another value: whichever won, the other would be ignored.

    Args:
        name: of the option, with `_` for `-`.
        value: of the option; None: not given.
        path: the setting that it gives.
        overrides: `section.setting=value`, the last one counts.

    Raises:
        ConfigError: they contradict each other.
    """
    from trireid.config.read import parse_yaml

    setting = next((each for each in reversed(overrides) if each.partition("=")[0].strip() == path), None)
    if value is None or setting is None or "=" not in setting:
        return
    shown = printable(setting, limit=80)
    if parse_yaml(setting.partition("=")[2], source=f"override '{shown}'") == value:
        return
    option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
    if isinstance(value, list):
        option += f" {','.join(value) or 'none'}"
    elif not isinstance(value, bool):
        option += f" {printable(str(value), limit=40)}"
    raise ConfigError(f"{option} and {shown} contradict each other: give one of them")


def check_centring(given: str | None) -> None:
    """Refuse an unknown value of `--centring`, for commands that also centre by camera.

    Raises:
        InputError: it is unknown.
    """
    if given is not None and given not in get_args(Centring):
        raise InputError(f"--centring is {printable(given, limit=40)!r}: allowed are {', '.join(get_args(Centring))}")


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
