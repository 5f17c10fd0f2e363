"""Start weights of the backbone: a timm name (downloaded once, then cached) or a local file. Always strict."""

from __future__ import annotations

import pickle
import socket
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trireid.errors import CheckpointError
from trireid.files import LAST_FILE, is_file, read_head
from trireid.models.backbone import timm_model_name
from trireid.models.positions import Grid, published_grid, recorded_grid, resize_table, table_grid
from trireid.models.timm_names import in_timm_names
from trireid.models.torchscript import is_torchscript, read_torchscript
from trireid.models.towers import clip_prefix, clip_rules, count_blocks, is_upstream, without_late_blocks
from trireid.models.untrusted import DAMAGE, checked_table, one_line, unpacked_size, value_fault
from trireid.models.vit_parts import ViT
from trireid.names import Interpolation

_PROGRAM_BYTES = 2**20
CLIP_FILE = " (for CLIP OpenAI's ViT-B-16.pt)"
_CLASSIFIER_PREFIXES = ("head.", "fc_norm.", "head_dist.", "attn_pool.")
_OWN_PREFIX = "backbone.vit."  # of the ViT in our own checkpoints
_FILTERS = "patch_embed.proj.weight"


def load_backbone_weights(
    vit: ViT,
    *,
    name: str,
    pretrained: str,
    interpolation: Interpolation = "bicubic",
    image_size: Grid | None = None,
    first_blocks: bool = False,
) -> str:
    """Load start weights in place.

    Args:
        vit: the model to fill; its position table is resized from the file's.
        name: backbone name, as in `create_vit`.
        pretrained: `none` keeps the fresh weights, `timm` takes those of the name, anything else is a local file
            (.safetensors, a torch file that holds tensors only, OpenAI's CLIP file in either form, or a checkpoint or
            folder of a run, of which the ViT is taken).
        interpolation: how the position table is resized: `bicubic` with antialiasing, as timm does, or `bilinear`
            without, as upstream does.
        image_size: (height, width) in pixels of the images that the position table of the file was made for; needed
            where neither the file nor its published source says it.
        first_blocks: the model may have fewer blocks than the file, whose last blocks are then left out.

    Returns:
        One line that says what was loaded, for the log.

    Raises:
        CheckpointError: no such weights, no network, a damaged file, or keys that do not fit.
    """
    if pretrained == "none":
        return f"backbone {name}: fresh weights"
    if pretrained == "timm":
        if name == "tiny":
            raise CheckpointError("backbone tiny has no pretrained weights: set model.backbone.pretrained to none")
        path = fetch_timm_weights(timm_model_name(name))
    else:
        path = start_file(pretrained)
        if not path.is_file():
            raise CheckpointError(
                f"weight file {path} does not exist: set model.backbone.pretrained to a local file{CLIP_FILE}, to timm "
                "to download, or to none to start from scratch"
            )
    state = read_state(path)
    tower, num_others = visual_tower(state, source=path)
    return fill_backbone(
        vit,
        tower,
        name=name,
        source=path,
        num_others=num_others,
        interpolation=interpolation,
        image_size=image_size,
        is_square=pretrained == "timm" or clip_prefix(state) is not None,
        first_blocks=first_blocks,
    )


def fill_backbone(
    vit: ViT,
    state: dict[str, Tensor],
    *,
    name: str,
    source: Path,
    num_others: int = 0,
    interpolation: Interpolation = "bicubic",
    image_size: Grid | None = None,
    is_square: bool = False,
    first_blocks: bool = False,
) -> str:
    """Load start weights that were read already.

    Args:
        vit, name, interpolation, image_size, first_blocks: as in `load_backbone_weights`; a ViT on the `meta` device
            takes over the tensors.
        state, num_others: what `visual_tower` gives.
        source: the file, for messages and the grid that its metadata name.
        is_square: it is of a source whose position tables are all square.

    Returns:
        One line that says what was loaded, for the log.

    Raises:
        CheckpointError: keys that do not fit, a position table that lies in no known grid, or values that are not
            finite real numbers.
    """
    converted = in_timm_names(vit, state, source=source, interpolation=interpolation)
    given, left_out = without_late_blocks(converted, len(vit.blocks) if first_blocks else None)
    ignored = [key for key in given if key.startswith(_CLASSIFIER_PREFIXES) and key not in vit.state_dict()]
    wanted = {key: value for key, value in given.items() if key not in ignored}
    notes = _fit_positions(
        vit, wanted, name=name, source=source, interpolation=interpolation, given=image_size, is_square=is_square,
        patch_size=patch_size_of(state, vit),
    )  # fmt: skip
    _load(vit, wanted, source=source)
    notes += [f"its last {left_out} blocks left out"] if left_out else []
    notes += [f"{len(ignored)} classifier tensors not used"] if ignored else []
    tower = "CLIP's visual tower" if is_square else "the ViT"
    notes += [f"{num_others} tensors outside {tower} not used here"] if num_others else []
    return ", ".join([f"backbone {name}: {source.name} loaded", "every key of the ViT", *notes])


def visual_tower(state: dict[str, Tensor], *, source: Path) -> tuple[dict[str, Tensor], int]:
    """A start file in float32 and timm's names: OpenAI's names of CLIP are translated, others stay.

    Of a checkpoint of ours it is the ViT alone.

    Returns:
        The tensors, and how many were left out because they are not of the ViT, or of CLIP's visual tower.

    Raises:
        CheckpointError: it is a checkpoint of upstream; a tensor of CLIP's visual tower is missing, not known, or not
            of finite real numbers.
    """
    if is_upstream(state):
        raise CheckpointError(
            f"{source} is a whole checkpoint of upstream: make it one of trireid's with `trireid import {source} "
            "START.safetensors --image-size HEIGHTxWIDTH`, then start from that file"
        )
    own = {key.removeprefix(_OWN_PREFIX): value for key, value in state.items() if key.startswith(_OWN_PREFIX)}
    if own:
        return own, len(state) - len(own)
    prefix = clip_prefix(state)
    if prefix is None:
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, 0
    tower = {key: value for key, value in state.items() if key.startswith(prefix)}
    if f"{prefix}proj" not in tower or tower[f"{prefix}proj"].dim() != 2:
        raise CheckpointError(f"weight file {source} has CLIP's names, but no projection {prefix}proj (width, dim)")
    depth = count_blocks(tower, f"{prefix}transformer.resblocks.")
    rules = clip_rules(depth=depth, dim=tower[f"{prefix}proj"].shape[1], prefix=prefix)
    wanted = {name for rule in rules for name in rule.sources}
    for what, names in (("lacks", wanted - tower.keys()), ("has unknown", tower.keys() - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:3])
            raise CheckpointError(f"weight file {source} {what} {len(names)} tensors of CLIP's visual tower ({shown})")
    check_values(tower, source=source)
    made = {rule.target: rule.make([tower[name].float() for name in rule.sources]) for rule in rules}
    return made, len(state) - len(tower)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, a torch file or a TorchScript archive; never runs code from the file.

    Raises:
        CheckpointError: if the file is absent, damaged or holds anything but plain tensors, see `checked_table`.
    """
    require_file(path)
    try:
        space = unpacked_size(path)
        state = _read_table(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"weight file {path} holds more than tensors, or is no weight file: it was not opened; "
            "give a .safetensors file or a plain state_dict"
        ) from error
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise CheckpointError(
            f"weight file {path} cannot be read ({one_line(error)}): it is damaged or no weight file; "
            "fetch it again or give another"
        ) from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"weight file {path} holds no table of tensors")
    return checked_table(state, path=path, space=space)


def start_file(pretrained: str) -> Path:
    """The local file of start weights: that of this path, or the last checkpoint of a run folder."""
    path = Path(pretrained).expanduser()
    return path / LAST_FILE if path.is_dir() else path


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a .safetensors file carries beside its tensors; none for another format.

    Raises:
        CheckpointError: it is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise CheckpointError(f"weight file {path} cannot be read ({one_line(error)}): it is damaged") from error


def patch_size_of(state: Mapping[str, Tensor], vit: ViT) -> Grid:
    """(height, width) in pixels of the patch filters of a file, those of the model where it has none of that name."""
    filters = next((value for key, value in state.items() if key.endswith(_FILTERS) and value.dim() == 4), None)
    height, width = vit.patch_embed.patch_size if filters is None else filters.shape[-2:]
    return max(1, height), max(1, width)


def require_file(path: Path) -> None:
    """Raise a CheckpointError where there is no weight file."""
    if not is_file(path):
        raise CheckpointError(f"weight file {path} does not exist: give the path of a local file")


def _read_table(path: Path) -> Any:
    """What the file holds: a dictionary of tensors, or whatever else was pickled without needing code."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return load_tensors(path)


def load_tensors(path: Path) -> Any:
    """What a file of torch holds, on the CPU, without running any code of it.

    Torch warns about unusual pickles, sparse and quantised tensors; the callers' checks report them in one line.
    """
    if b"bytearray" in _program(path):
        raise pickle.UnpicklingError("it holds a bytearray, which may take any memory and is no tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _program(path: Path) -> bytes:
    """The start of the pickle of a torch file, which names all that it makes."""
    if not zipfile.is_zipfile(path):
        return read_head(path, _PROGRAM_BYTES)
    with zipfile.ZipFile(path) as archive:
        parts = []
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as member:
                    parts.append(member.read(_PROGRAM_BYTES))
    return b"".join(parts)


def fetch_timm_weights(timm_name: str) -> Path:
    """Local path of the pretrained weights of a timm model: from the hub's cache, or downloaded now.

    Raises:
        CheckpointError: if timm has none of that name, or they are not cached and the hub cannot be reached.
    """
    import huggingface_hub as hub  # imported here: only a run that starts from pretrained weights needs it
    import timm
    from huggingface_hub.constants import ENDPOINT

    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=False)
    if config is None or not config.hf_hub_id:
        raise CheckpointError(
            f"timm has no pretrained weights named {timm_name}: set model.backbone.pretrained to a file"
        )
    repository = f"timm/{timm_name}" if config.hf_hub_id == "timm/" else config.hf_hub_id
    filename = config.hf_hub_filename or "model.safetensors"
    cached = hub.try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    hint = CLIP_FILE if "_clip_" in timm_name else ""
    advice = f"set model.backbone.pretrained to a local file{hint}, or to none to train from scratch"
    try:
        # The hub's client retries for most of a minute without a network; a failed name look-up tells at once.
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
        return Path(hub.hf_hub_download(repository, filename))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise CheckpointError(
            f"weights {timm_name} are not cached and cannot be downloaded ({one_line(error)}): {advice}"
        ) from error


def _fit_positions(
    vit: ViT,
    tensors: dict[str, Tensor],
    *,
    name: str,
    source: Path,
    patch_size: Grid,
    interpolation: Interpolation,
    given: Grid | None,
    is_square: bool,
) -> list[str]:
    """Resize the position table in place of the table of tensors, and say what was resized."""
    table = tensors.get("pos_embed")
    grid = (vit.patch_embed.grid_size[0], vit.patch_embed.grid_size[1])
    num_others = table_rows_of_others(vit)
    if table is None or table.dim() != 3 or table.shape[1] <= num_others or vit.pos_embed is None:
        return []  # the comparison of keys and shapes tells of it
    source_grid = table_grid(
        table.shape[1] - num_others,
        source=source,
        patch_size=patch_size,
        recorded=recorded_grid(read_metadata(source), patch_size=patch_size),
        given=given,
        published=None if name == "tiny" else published_grid(timm_model_name(name), patch_size=patch_size),
        is_square=is_square,
    )
    tensors["pos_embed"] = resize_table(table, source_grid, grid, interpolation=interpolation, num_others=num_others)
    own_size = tuple(vit.patch_embed.patch_size)
    changes = (("position table", source_grid, grid), ("patch filters", patch_size, own_size))
    return [
        f"{what} resized from {old[0]} x {old[1]} to {new[0]} x {new[1]}" for what, old, new in changes if old != new
    ]


def table_rows_of_others(vit: ViT) -> int:
    """Rows of the position table that are not of patches: of the class and register tokens, or none."""
    return 0 if vit.pos_embed is None else int(vit.pos_embed.shape[1]) - int(vit.patch_embed.num_patches)


def _load(vit: ViT, tensors: dict[str, Tensor], *, source: Path) -> None:
    own = vit.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - own.keys())
    shapes = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or surplus or shapes:
        parts = [("missing", missing), ("not in the model", surplus), ("of another shape", sorted(shapes))]
        found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in parts if keys)
        raise CheckpointError(f"weight file {source} does not fit the backbone: {found}")
    check_values(tensors, source=source)
    # A model without memory takes the tensors of the file themselves: it is as large as they are, whatever shapes say.
    vit.load_state_dict(tensors, strict=True, assign=next(vit.parameters()).is_meta)


def check_values(tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Refuse tensors that no weights can be.

    Raises:
        CheckpointError: one is of integers, truth values or complex numbers, not finite, or a negative variance.
    """
    faults = [f"{name} {fault}" for name, value in tensors.items() if (fault := value_fault(name, value))]
    if faults:
        more = f", and {len(faults) - 1} more tensors alike" if len(faults) > 1 else ""
        raise CheckpointError(
            f"weight file {source} holds values that are no weights: {faults[0]}{more}; it is damaged, or from a "
            "training that failed"
        )
