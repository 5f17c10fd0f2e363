"""Rewrite messages about settings of this package for users of upstream's command line: `KEY VALUE` pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from trireid.config.load import setting_paths
from trireid.upstream.keys import KEYS

_OF_SEVERAL_KEYS = {
    "data.format": "DATASETS.NAMES",
    "data.root": "DATASETS.ROOT_DIR",
    "data.sampler": "DATALOADER.SAMPLER",
    "evaluate.missing": "TEST.MISS",
    "model.backbone.drop_path": "MODEL.DROP_PATH",
    "model.backbone.name": "MODEL.TRANSFORMER_TYPE",
    "model.backbone.pretrained": "MODEL.PRETRAIN_PATH_T",
    "model.head": "MODEL.HDM",
    "model.sie_coefficient": "MODEL.SIE_COE",
    "output": "OUTPUT_DIR",
    "train.device": "MODEL.DEVICE",
    "train.triplet_margin": "SOLVER.MARGIN",
    "train.triplet_weight": "MODEL.TRIPLET_LOSS_WEIGHT",
}
UPSTREAM_NAMES: Mapping[str, str] = MappingProxyType(
    {key.target: name for name, key in KEYS.items() if key.target} | _OF_SEVERAL_KEYS
)
"""Setting of this package -> the key of upstream that changes it."""

_HEADS = {"none": "MODEL.HDM False", "hdm": "MODEL.HDM True", "hdm_atmoe": "MODEL.HDM True MODEL.ATM True"}
_HEADS["sdtps"] = "MODEL.USE_SDTPS True"
_VALUE = r"\[[^\]]*\]|[^\s,;:()\]'\"]*[^\s,;:()\]'\".]"  # a list, or up to the end of a word
_SETTING = re.compile(rf"(?<![\w./\\-])([a-z]+(?:\.[a-z][a-z0-9_]*)+|output(?=[:=]))(?:=({_VALUE}))?")


def in_upstream_names(line: str) -> str:
    """The line with settings replaced by upstream's keys; a setting without a key keeps its name."""
    return _replaced(line, lambda path, value: UPSTREAM_NAMES.get(path, path) + ("" if value is None else f"={value}"))


def in_upstream_words(line: str) -> str:
    """As `in_upstream_names`, with `setting=value` as a `KEY VALUE` pair; settings without a key are pairs, too."""
    return _replaced(line, _pair)


def _replaced(line: str, write: Callable[[str, str | None], str]) -> str:
    own = set(setting_paths())
    return _SETTING.sub(lambda found: write(found[1], found[2]) if found[1] in own else found[0], line)


def _pair(path: str, value: str | None) -> str:
    name = UPSTREAM_NAMES.get(path, path)
    if value is None:
        return path if path == "output" else name  # the log uses it as a title
    if path == "model.head" and value in _HEADS:
        return _HEADS[value]
    allowed = KEYS[name].values if name in KEYS else None
    theirs = {str(ours).lower(): str(key) for key, ours in (allowed or {}).items()}
    return f"{name} {theirs.get(value.lower(), value)}"
