"""Convert YAML and dotted overrides to a `Config` and back. Every mistake is reported in one line with its setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trireid.config.nearest import nearest_name
from trireid.config.presets import TOWER_SETTINGS, preset_settings
from trireid.config.read import parse_yaml, read_mapping
from trireid.config.schema import Config, SlimmingConfig
from trireid.errors import ConfigError, printable

Tree = dict[str, object]

# Messages of pydantic about Python types, in terms of a YAML file.
_ALLOWED = {
    "tuple_type": "should be a list",
    "too_long": "holds too many values for a list",
    "missing": "holds too few values for a list",
    "path_type": "should be a path (text)",
    "string_type": "should be text",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
}

_RANGE = "should be auto, file or two values of the sensor such as [28315, 31315]"

# What a list looks like whose default is empty or none.
_LISTS = {
    "model.backbone.pretrained_image_size": "[224, 224]",
    "model.sdtps.cells": "[4, 2]",
    "model.slimming": "[{after_block: 4, keep_ratio: 0.5}]",
    "evaluate.missing": "[rgb, nir]",
}


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides such as `train.epochs=5`, the last one winning.

    `preset: parity` in the file, or `preset=parity` among the overrides, gives the settings that neither of them sets.

    Args:
        path: a YAML file, or None for the defaults.
        overrides: `section.setting=value`, the value in YAML (`data.image_size=[128, 64]`, `evaluate.rerank=true`).

    Raises:
        ConfigError: a file, key or value is not allowed; one line per fault.

    Example:
        >>> config = load_config(overrides=["train.epochs=5", "data.image_size=[128, 64]"])
        >>> config.train.epochs, config.data.image_size
        (5, (128, 64))
    """
    tree: Tree = {}
    if path is not None:
        tree = read_mapping(Path(path))
        _refuse_upstream_sections(tree, path)
    source = "" if path is None else f"{path}: "
    tree, overrides = _apply_preset(tree, overrides, source=source)
    given = _apply_overrides(tree, overrides)
    return validate(tree, source=source, overridden=given)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """The same configuration with some settings changed; `overrides` as in `load_config`.

    Raises:
        ConfigError: as `load_config`.
    """
    preset = next((override for override in overrides if _is_preset(override)), None)
    if preset is not None:
        raise ConfigError(
            f"override {_quoted(preset)}: a preset only gives settings that a file does not set, and here all are "
            "set; change single settings, e.g. evaluate.missing_as=zeros"
        )
    tree: Tree = config.model_dump()
    return validate(tree, overridden=_apply_overrides(tree, overrides))


def validate(
    tree: Mapping[str, object], *, source: str = "", overridden: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """Check a nested mapping of settings and return it as a `Config`.

    Args:
        tree: settings by section.
        source: origin of the settings, for messages.
        overridden: dotted path -> the override that set it, which messages then name in place of the source.

    Raises:
        ConfigError: one line per fault, each starting with its source.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        faults = _in_order(error.errors())
        lines = [_blamed(fault, source, overridden) + describe_fault(fault) for fault in faults]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _blamed(fault: ErrorDetails, source: str, overridden: Mapping[str, str]) -> str:
    """Origin of a fault: an override, the source, or the source with overrides."""
    place = _fault_path(fault)
    for path, override in overridden.items():
        if place == path or place.startswith(f"{path}."):
            return f"override {_quoted(override)}: "
    touched = [override for path, override in overridden.items() if path.startswith(f"{place}." if place else "")]
    if source and touched:  # a check of several settings, some of them overridden
        return f"{source.removesuffix(': ')} with {', '.join(touched)}: "
    return source


def _in_order(faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Unknown settings first, as missing ones are often the same mistake; of a range, a name or two numbers, one."""
    once = [fault for fault in faults if not _of_range(fault) or fault["type"] == "literal_error"]
    return sorted(once, key=lambda fault: fault["type"] != "extra_forbidden")


def _of_range(fault: ErrorDetails) -> bool:
    """Whether a fault is of a value in `data.range`: each kind of value that is allowed there reports its own."""
    return fault["loc"][:2] == ("data", "range") and len(fault["loc"]) > 3


def _fault_path(fault: ErrorDetails) -> str:
    place = fault["loc"][:3] if _of_range(fault) else fault["loc"]
    return printable(".".join(str(part) for part in place if not str(part).startswith("function-")), limit=200)


def dump_config(config: Config) -> str:
    """All settings as YAML text that `load_config` reads back to an equal `Config`.

    Example:
        >>> dump_config(Config()).splitlines()[:2]
        ['data:', '  format: rgbnt201']
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dump_changes(config: Config) -> str:
    """The settings that differ from their defaults as YAML text, for a log."""
    return yaml.safe_dump(
        config.model_dump(mode="json", exclude_defaults=True), sort_keys=False, default_flow_style=None
    )


def setting_paths(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted path of every setting (not of sections): `data.format`, `data.root`, ..."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_paths(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest_setting(path: str, known: Sequence[str]) -> str | None:
    """The known dotted path a user most likely meant, or None.

    A setting of the same name in another section comes first, then the most similar path (or the only one that is
    begun, where just the section is similar), then the most similar name.
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    leaves = {candidate.rpartition(".")[2]: candidate for candidate in reversed(lowered)}
    wanted, leaf = path.lower(), path.lower().rpartition(".")[2]
    if leaf in leaves and wanted not in lowered:
        same_leaf = [candidate for candidate in lowered if candidate.rpartition(".")[2] == leaf]
        return lowered[difflib.get_close_matches(wanted, same_leaf, n=1, cutoff=0.0)[0]]
    close = difflib.get_close_matches(wanted, list(lowered), n=1, cutoff=0.75)
    section = wanted.rpartition(".")[0]
    begun = [each for each in lowered if each.startswith(wanted) and each.rpartition(".")[0] == section]
    if leaf and len(begun) == 1 and not difflib.get_close_matches(leaf, [each.rpartition(".")[2] for each in close]):
        return lowered[begun[0]]  # what makes the other path similar is its section alone
    if close:
        return lowered[close[0]]
    close_leaf = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)
    return lowered[leaves[close_leaf[0]]] if close_leaf else None


def describe_fault(fault: ErrorDetails) -> str:
    """One line for a fault found by pydantic: the setting, the given value and the allowed ones."""
    path, given = _fault_path(fault), fault["input"]
    if fault["type"] == "extra_forbidden":
        return _unknown(path)
    if fault["type"] in ("model_type", "model_attributes_type"):
        shown = "nothing" if given is None else _shown(given)
        return f"{path} is a section, given {shown}; give its settings, for example {_first_setting(path)}"
    if fault["type"] == "missing" and isinstance(given, Mapping):
        return f"{path} is not given, and has no default"
    allowed = _ALLOWED.get(fault["type"]) or fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "value_error" and isinstance(given, Mapping | BaseModel):
        return allowed  # a check of several settings names them itself
    path, place = _list_and_place(path)
    if fault["type"] in ("tuple_type", "too_long", "missing"):
        return f"{path}: given {_shown(given)}, {allowed} such as {_list_like(path)}"
    if _of_range(fault):
        allowed = _RANGE
    line = f"{path}: given {_shown(given)}{place}, {allowed[:1].lower()}{allowed[1:]}"
    if fault["type"] == "literal_error" and isinstance(given, str):
        close = nearest_name(given, re.findall(r"'([^']*)'", fault["msg"]))
        line += f"; the nearest is {close}" if close else ""
    return line


def _list_and_place(path: str) -> tuple[str, str]:
    """The setting whose list a value is in, and words for its place there; the path itself and none for others."""
    setting, _, index = path.rpartition(".")
    return (setting, f" in place {int(index) + 1} of the list") if index.isdecimal() else (path, "")


def _list_like(path: str) -> str:
    """A list that a setting may hold: its default, unless that is empty."""
    value: object = Config()
    for part in path.split("."):
        value = getattr(value, part, None)
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) and value else _LISTS.get(path, "[...]")


def advice(config: Config) -> tuple[str, ...]:
    """Warnings about settings that are allowed but probably a mistake; empty if there are none."""
    lines = []
    data, train = config.data, config.train
    identities = data.batch_size // data.num_instances
    if data.sampler != "random" and identities < 4:
        lines.append(
            f"data.batch_size={data.batch_size} with data.num_instances={data.num_instances} puts only {identities} "
            "identities in a batch, which starves BatchNorm and the triplet loss; 4 or more learn better"
        )
    if train.warmup_epochs >= train.epochs:
        lines.append(
            f"train.warmup_epochs={train.warmup_epochs} of train.epochs={train.epochs}: the whole run is warm-up, "
            "and the full learning rate is never reached"
        )
    if train.evaluate_every > train.epochs:
        lines.append(
            f"train.evaluate_every={train.evaluate_every} is more than train.epochs={train.epochs}: "
            "only the last epoch is evaluated"
        )
    return tuple(lines)


def _is_preset(override: str) -> bool:
    return override.partition("=")[0].strip() == "preset"


def _apply_preset(tree: Tree, overrides: Sequence[str], *, source: str) -> tuple[Tree, list[str]]:
    """Fill the tree with the settings of its preset; returns it and the overrides without `preset=`, which win."""
    chosen, name = source, tree.get("preset")
    for override in filter(_is_preset, overrides):
        chosen, name = (
            f"override {_quoted(override)}: ",
            parse_yaml(override.partition("=")[2], source=f"override {_quoted(override)}"),
        )
    given = {path: _given(path, tree, overrides) for path in (*TOWER_SETTINGS, "model.backbone.name")}
    try:
        settings = preset_settings(name, given)
    except ConfigError as error:
        raise ConfigError(f"{chosen}{error}") from None
    filled = _merge(nested(settings), {key: value for key, value in tree.items() if key != "preset"})
    return filled, [override for override in overrides if not _is_preset(override)]


def _given(path: str, tree: Tree, overrides: Sequence[str]) -> object:
    """The value of a setting in the last override or in the tree; None if neither has it."""
    for override in reversed(overrides):
        name, _, text = override.partition("=")
        if name.strip() == path:
            return text.strip()
    value: object = tree
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _merge(low: Tree, high: Tree) -> Tree:
    """Merge two trees section by section; values of `high` win."""
    merged = {**low, **high}
    for key in low.keys() & high.keys():
        below, above = low[key], high[key]
        if isinstance(below, dict) and isinstance(above, dict):
            merged[key] = _merge(below, above)
    return merged


def nested(settings: Mapping[str, object]) -> Tree:
    """Settings by dotted path as nested dictionaries."""
    tree: Tree = {}
    for path, value in settings.items():
        _put(tree, path, value)
    return tree


def _apply_overrides(tree: Tree, overrides: Sequence[str]) -> dict[str, str]:
    """Apply the overrides to the tree; returns them by the dotted path that they set."""
    given: dict[str, str] = {}
    known = list(setting_paths())
    sections = {path.rpartition(".")[0] for path in known} - {""}
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals:
            raise ConfigError(
                f"override {_quoted(override)} has no value; write it as setting=value, e.g. train.epochs=5"
            )
        if path in sections:
            raise ConfigError(f"{path} is a section; set one of its settings, e.g. {_first_setting(path)}=...")
        if path not in known:
            raise ConfigError(_unknown(path))
        _put(tree, path, parse_yaml(text, source=f"override {_quoted(override)}"))
        given[path] = override
    return given


def _put(tree: Tree, path: str, value: object) -> None:
    """Set a dotted path in nested dictionaries, creating missing sections."""
    *sections, leaf = path.split(".")
    for section in sections:
        inner = tree.get(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} is a section, given {_shown(inner)}; give its settings, or leave it out")
        tree[section] = dict(inner)
        tree = tree[section]  # type: ignore[assignment]
    tree[leaf] = value


def _refuse_upstream_sections(tree: Tree, path: Path | str) -> None:
    upper = [key for key in tree if key.isupper()]
    if upper:
        raise ConfigError(
            f"{path} has upstream's section {upper[0]}; run it with `python train_net.py --config_file {path}`, "
            "or write the settings in lower case as in configs/trireid/rgbnt201/sdtps.yaml"
        )


def _unknown(path: str) -> str:
    if cut := _cut_settings(path):
        return f"unknown setting {printable(path, limit=80)}; {_hint_of_cut(path, cut)}"
    nearest = nearest_setting(path, list(setting_paths()))
    hint = f"the nearest is {nearest}" if nearest else f"the sections are {', '.join(Config.model_fields)}"
    return f"unknown setting {printable(path, limit=80) or '(empty)'}; {hint}"


def _hint_of_cut(path: str, cut: Sequence[str]) -> str:
    """What to do about an unknown setting of a cut, whose settings are `cut`."""
    if path in cut:  # an override of a part of the list
        return f"give the whole list, such as model.slimming={_LISTS['model.slimming']}"
    names = list(SlimmingConfig.model_fields)
    nearest = nearest_name(path.rpartition(".")[2], names)
    hint = f"the nearest is {nearest}; " if nearest else ""
    return f"{hint}the settings of a cut are {', '.join(names)}"


def _first_setting(section: str) -> str:
    known = (*_cut_settings(section), *setting_paths())
    return next((path for path in known if path.startswith(section + ".")), section)


def _cut_settings(path: str) -> list[str]:
    """Paths of the settings of the cut that a path lies in, such as `model.slimming.0`; empty outside of cuts."""
    cut = re.match(r"model\.slimming\.\d+", path)
    return [f"{cut[0]}.{name}" for name in SlimmingConfig.model_fields] if cut else []


def _quoted(override: str) -> str:
    return printable(repr(override))


def _shown(value: object) -> str:
    return printable(str(value) if isinstance(value, Path) else repr(value), limit=80)
