"""Upstream's YAML files and `SECTION.KEY VALUE` overrides -> our `Config`.

Keys that upstream's own files set are accepted; a key or value without a meaning here is an error that names the
replacement. Absent keys have upstream's defaults, not those of this package.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trireid.config.load import nearest_setting, nested, override_config, setting_paths, validate
from trireid.config.read import read_mapping
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.upstream.keys import KEYS, UpstreamKey
from trireid.upstream.rules import RULES, Resolved, code_of_upstream
from trireid.upstream.wording import UPSTREAM_NAMES, in_upstream_names

DEVIATIONS = (
    "differs from upstream's code on purpose: flip and crop are drawn once per triplet, every group warms up from a "
    "tenth of its own learning rate, the learning rate has no noise, precision by device (train.precision auto); "
    "--parity before the overrides does all of it, and what docs/upstream.md lists, as upstream"
)
PARITY = (
    "--parity, as upstream's code: flip and crop drawn per modality, every group warms up from a tenth of "
    "SOLVER.BASE_LR, noise on the learning rate, fp16 on CUDA, missing modalities as zeros; see the settings below"
)
_SWITCHES = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class UpstreamSettings:
    """Result of reading an upstream configuration.

    Attributes:
        config: the run, in settings of this package.
        weight: `TEST.WEIGHT`, the checkpoint to test; "" if not given.
        notes: lines to show once: intended differences from upstream, and values that were read in another way.
    """

    config: Config
    weight: str
    notes: tuple[str, ...]


def load_upstream_yaml(path: Path | str, overrides: Sequence[str] = (), *, parity: bool = False) -> UpstreamSettings:
    """Read an upstream YAML file and overrides as upstream's command line gives them.

    Args:
        path: a file such as configs/RGBNT201/DeMo_SDTPS.yml.
        overrides: `KEY VALUE` pairs in one flat list, for example `["MODEL.SDTPS_USE_GUMBEL", "True"]`; a setting of
            this package without a key of upstream is given in the same way, `["data.skip_bad", "true"]`.
        parity: follow upstream's code also where this package differs on purpose.

    Raises:
        ConfigError: a file, key or value is not allowed; the message names the nearest key or a replacement.
    """
    path = Path(path)
    pairs = _pairs(overrides)
    own = [f"{name}={value}" for name, value in pairs.items() if name not in KEYS]
    given = {**_flatten(path), **{name: value for name, value in pairs.items() if name in KEYS}}
    values = {name: key.default for name, key in KEYS.items()}
    values |= {name: _coerce(name, KEYS[name], value) for name, value in given.items()}
    settings: dict[str, object] = {}
    notes = [PARITY if parity else DEVIATIONS]
    for name, key in KEYS.items():
        ours = _translate(name, key, values[name])
        if key.target:
            settings[key.target] = ours
    for rule in RULES:
        resolved: Resolved = rule(values, frozenset(given), path)
        settings |= resolved.settings
        notes += resolved.notes
    if parity:
        settings |= code_of_upstream(values)
    config = override_config(_validate(settings, path), own)
    return UpstreamSettings(config=config, weight=str(values["TEST.WEIGHT"]), notes=tuple(notes))


def _flatten(path: Path) -> dict[str, object]:
    """`{"SECTION.KEY": value}` of a file, every key checked."""
    tree = read_mapping(path)
    if not any(key.isupper() for key in tree):
        raise ConfigError(
            f"{path} has no upstream section (MODEL, DATASETS, ...); "
            f"if it is a file of trireid, run `trireid train --config {path}`"
        )
    flat: dict[str, object] = {}
    for section, content in tree.items():
        if section in KEYS:
            flat[section] = content
        elif isinstance(content, dict):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        elif content is not None or not _is_section(section):
            raise ConfigError(f"{path}: {_unknown(section)}")
    for name in flat:
        if name not in KEYS:
            raise ConfigError(f"{path}: {_unknown(name)}")
    return flat


def _pairs(overrides: Sequence[str]) -> dict[str, object]:
    """A flat list `KEY VALUE KEY VALUE` as a mapping, the last one winning."""
    if len(overrides) % 2:
        raise ConfigError(
            f"overrides are pairs KEY VALUE, and {overrides[-1]!r} is left over; "
            "write for example MODEL.SDTPS_USE_GUMBEL True"
        )
    pairs = dict(zip(overrides[::2], overrides[1::2], strict=True))
    without_key = set(setting_paths()) - UPSTREAM_NAMES.keys()
    for name in pairs:
        if name not in KEYS and name not in without_key:
            raise ConfigError(_unknown(name))
    return dict(pairs)


def _is_section(name: str) -> bool:
    return any(key.startswith(name + ".") for key in KEYS)


def _unknown(name: str) -> str:
    if _is_section(name):
        example = next(key for key in KEYS if key.startswith(name + "."))
        return f"{name} is a section of upstream's settings; set one of its keys, for example {example}"
    own = name.partition("=")[0].lower()
    if own in set(setting_paths()):
        key = UPSTREAM_NAMES.get(own)
        instead = f"upstream's key for it is {key}" if key else "no key of upstream sets it: give it as a pair, "
        return f"{name} is one of trireid's own settings; {instead}" + ("" if key else f"{own} VALUE")
    nearest = nearest_setting(name, list(KEYS))
    hint = (
        f"the nearest is {nearest}" if nearest else "the sections are MODEL, INPUT, DATASETS, DATALOADER, SOLVER, TEST"
    )
    return f"unknown upstream setting {name}; {hint}"


def _coerce(name: str, key: UpstreamKey, value: object) -> object:
    """A value as yacs reads it (Python literals in text), in the type of the key's default.

    Raises:
        ConfigError: the value has another type.
    """
    value = _literal(value)
    default = key.default
    if isinstance(default, bool):
        value = _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name}: given {value!r}, should be True or False")
    if isinstance(default, tuple):
        return _numbers(name, default, value)
    if isinstance(default, str):
        return _text(name, value)
    return _number(name, default, value)


def _literal(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        literal: object = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        return value
    return literal


def _number(name: str, default: object, value: object) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if not isinstance(default, int):
            return float(value)
        if int(value) == value:
            return int(value)
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise ConfigError(f"{name}: given {value!r}, should be {kind}")


def _numbers(name: str, default: tuple[object, ...], value: object) -> tuple[int | float, ...]:
    if not isinstance(value, list | tuple) or len(value) != len(default):
        raise ConfigError(f"{name}: given {value!r}, should be {len(default)} numbers such as {list(default)}")
    return tuple(_number(name, default[0], part) for part in value)


def _text(name: str, value: object) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]  # ("RGBNT201",)
    if isinstance(value, list | tuple | dict | bool):
        raise ConfigError(f"{name}: given {value!r}, should be a single text")
    return str(value)


def _translate(name: str, key: UpstreamKey, value: object) -> object:
    """Translate a value of upstream to this package.

    Raises:
        ConfigError: the value has no meaning here; the message names a replacement.
    """
    if key.values is None:
        return value
    if value not in key.values:
        allowed = " or ".join(str(list(v) if isinstance(v, tuple) else v) for v in key.values)
        shown = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{name}: given {shown}, allowed is {allowed}; {key.instead}")
    return key.values[value]


def _validate(settings: Mapping[str, object], path: Path) -> Config:
    try:
        return validate(nested(settings), source=f"{path}: ")
    except ConfigError as error:
        raise ConfigError(in_upstream_names(str(error))) from None
