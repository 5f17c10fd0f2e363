"""Rules for several upstream settings together. Each rule takes all values and returns some of our settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trireid.config.presets import CLIP_TOWER_CODE, IMAGENET_LR_FACTOR, IMAGENET_TOWER_CODE, UPSTREAM_CODE
from trireid.errors import ConfigError

Values = Mapping[str, object]


TOWERS = {"ViT-B-16": "clip_vit_b16", "vit_base_patch16_224": "vit_b16"}
# Upstream's data set name (and folder under ROOT_DIR) -> format here, and subfolders that mark such a data set.
DATASETS = {
    "RGBNT201": ("rgbnt201", ("train_171", "train")),
    "RGBNT100": ("rgbnt100", ("rgbir",)),
    "MSVR310": ("msvr310", ("bounding_box_train",)),
    "WMVeID863": ("wmveid863", ("train",)),
}
LETTERS = {"r": "rgb", "n": "nir", "t": "tir"}
# Parts of its model and recipe that no key names, and that are kept as they are there.
ALWAYS = ("model.hdm_head_width", "model.hdm_query", "train.backbone_bias_lr_factor")


@dataclass(frozen=True)
class Resolved:
    """Settings of this package by dotted path, and lines to show the user."""

    settings: dict[str, object]
    notes: list[str] = field(default_factory=list)


def head(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """HDM, ATM and USE_SDTPS choose the head."""
    hdm, atm, sdtps = (values[f"MODEL.{name}"] for name in ("HDM", "ATM", "USE_SDTPS"))
    if sdtps and (hdm or atm):
        raise ConfigError(
            "MODEL.USE_SDTPS True replaces HDM and ATMoE, and MODEL.HDM or MODEL.ATM is True as well; "
            "use either MODEL.USE_SDTPS True or MODEL.HDM True [MODEL.ATM True]"
        )
    if atm and not hdm:
        raise ConfigError("MODEL.ATM True mixes the seven features that HDM makes; use MODEL.HDM True as well")
    name = "sdtps" if sdtps else "hdm_atmoe" if atm else "hdm" if hdm else "none"
    return Resolved({"model.head": name, "model.sdtps.preset": "reference"})


def tower(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """TRANSFORMER_TYPE chooses the backbone and, as hard-coded upstream, its learning rate and its camera embedding."""
    name = str(values["MODEL.TRANSFORMER_TYPE"])
    if name not in TOWERS:
        raise ConfigError(
            f"MODEL.TRANSFORMER_TYPE: given {name}, allowed is {' or '.join(TOWERS)}; "
            "other backbones are chosen with model.backbone.name in a trireid configuration"
        )
    clip = name == "ViT-B-16"
    drop_path, base_lr = values["MODEL.DROP_PATH"], values["SOLVER.BASE_LR"]
    if clip and drop_path not in (0.0, 0.1):
        raise ConfigError(
            f"MODEL.DROP_PATH: given {drop_path}, and upstream's CLIP tower has no drop path; leave it out, "
            "or use model.backbone.drop_path in a trireid configuration"
        )
    assert isinstance(base_lr, float)
    settings: dict[str, object] = {
        "train.backbone_lr": IMAGENET_LR_FACTOR * base_lr,
        **(CLIP_TOWER_CODE if clip else IMAGENET_TOWER_CODE),
        "model.backbone.name": TOWERS[name],
        "model.backbone.pretrained": _start_weights(str(values["MODEL.PRETRAIN_PATH_T"])),
        "model.backbone.drop_path": 0.0 if clip else drop_path,
        "model.sie_coefficient": values["MODEL.SIE_COE"] if values["MODEL.SIE_CAMERA"] else 0.0,
    }
    return Resolved(settings)


def _start_weights(given: str) -> str:
    """A path, `timm` (the default) or `none`; the last two in upper or lower case, because yacs users write None."""
    return given.lower() if given.lower() in ("none", "timm") else given or "timm"


def losses(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """The sampler's name also chooses the losses; NO_MARGIN chooses the soft margin."""
    margin, soft = values["SOLVER.MARGIN"], values["MODEL.NO_MARGIN"]
    if soft and margin != 0.3:
        raise ConfigError(
            f"SOLVER.MARGIN: given {margin}, and MODEL.NO_MARGIN True ignores it; set MODEL.NO_MARGIN False as well"
        )
    sampler, weight = values["DATALOADER.SAMPLER"], values["MODEL.TRIPLET_LOSS_WEIGHT"]
    if sampler not in ("softmax_triplet", "softmax"):
        raise ConfigError(f"DATALOADER.SAMPLER: given {sampler}, allowed is softmax_triplet or softmax")
    identity = sampler == "softmax_triplet"
    settings: dict[str, object] = {
        "data.sampler": "identity" if identity else "random",
        "train.triplet_weight": weight if identity else 0.0,
        "train.triplet_margin": None if soft else margin,
    }
    notes = [] if identity else ["DATALOADER.SAMPLER softmax: cross-entropy alone, on shuffled images"]
    return Resolved(settings, notes)


def optimiser(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """One weight decay for weights and biases."""
    decay, bias_decay = values["SOLVER.WEIGHT_DECAY"], values["SOLVER.WEIGHT_DECAY_BIAS"]
    if decay != bias_decay:
        raise ConfigError(
            f"SOLVER.WEIGHT_DECAY_BIAS {bias_decay} differs from SOLVER.WEIGHT_DECAY {decay}: there is one decay for "
            "weights and biases; set both to the same value"
        )
    return Resolved({})


def image_size(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """Training and test images have one size."""
    train, test = values["INPUT.SIZE_TRAIN"], values["INPUT.SIZE_TEST"]
    if train != test:
        raise ConfigError(
            f"INPUT.SIZE_TEST {test} differs from INPUT.SIZE_TRAIN {train}: the position table fits one size; "
            "set both to the same (height, width)"
        )
    return Resolved({})


def dataset(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """NAMES gives the format, and with ROOT_DIR the folder."""
    names = {name.lower(): name for name in DATASETS}
    wanted = str(values["DATASETS.NAMES"])
    if wanted.lower() not in names:
        raise ConfigError(
            f"DATASETS.NAMES: given {wanted}, allowed is one of {', '.join(DATASETS)}; "
            "other sets are read with data.format=csv in a trireid configuration"
        )
    folder = names[wanted.lower()]
    data_format, markers = DATASETS[folder]
    base = Path(str(values["DATASETS.ROOT_DIR"])).expanduser()
    root, notes = base / folder, []
    if not root.exists() and any((base / marker).is_dir() for marker in markers):
        notes = [f"DATASETS.ROOT_DIR {base} has no folder {folder} but is such a data set itself: it is read"]
        root = base
    return Resolved({"data.format": data_format, "data.root": root}, notes)


def fixed(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """What upstream's code does without a setting, and intended differences (`shared_geometry`)."""
    settings: dict[str, object] = {
        "data.interpolation": "bilinear",
        "data.augmentation.interpolation": "bicubic",
        "data.augmentation.shared_geometry": True,
        "data.augmentation.vertical_flip": 0.0,
        "data.augmentation.jitter": 0.0,
        "data.augmentation.blinding": 0.0,
        "data.val_ids": 0,
        **{name: UPSTREAM_CODE[name] for name in ALWAYS},
        "train.warmup_factor": UPSTREAM_CODE["train.warmup_factor"],
        "train.final_lr_factor": UPSTREAM_CODE["train.final_lr_factor"],
        "train.clip_grad_norm": 0.0,
        "train.precision": "auto",
    }
    return Resolved(settings)


def code_of_upstream(values: Values) -> dict[str, object]:
    """What upstream's code does independently of its settings, as in the `parity` preset.

    On a CPU, which upstream does not support, the precision is not changed; shuffled images keep their sampler.
    """
    kept = set()
    if values["MODEL.DEVICE"] == "cpu":
        kept.add("train.precision")
    if values["DATALOADER.SAMPLER"] == "softmax":
        kept.add("data.sampler")
    return {name: value for name, value in UPSTREAM_CODE.items() if name not in kept}


def missing(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """MISS names the modalities withheld at test by their first letters."""
    letters = str(values["TEST.MISS"]).lower()
    if letters in ("nothing", "none", ""):
        return Resolved({"evaluate.missing": ()})
    if len(letters) > 2 or len(set(letters)) < len(letters) or not set(letters) <= set(LETTERS):
        raise ConfigError(
            f"TEST.MISS: given {values['TEST.MISS']}, allowed is nothing or one of r, n, t, rn, rt, nt "
            "(the modalities to withhold)"
        )
    return Resolved({"evaluate.missing": tuple(LETTERS[letter] for letter in LETTERS if letter in letters)})


def reranking(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """RE_RANKING, which upstream never reads, switches re-ranking on."""
    if not values["TEST.RE_RANKING"]:
        return Resolved({})
    return Resolved({}, ["TEST.RE_RANKING is on and re-ranks here; upstream's code never reads it"])


def device(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """Upstream's default is CUDA; here it is `auto` (CUDA if there is one) unless the device is given."""
    name = values["MODEL.DEVICE"]
    if name not in ("cuda", "cpu"):
        raise ConfigError(f"MODEL.DEVICE: given {name}, allowed is cuda or cpu")
    return Resolved({"train.device": name if "MODEL.DEVICE" in given else "auto"})


def output(values: Values, given: frozenset[str], path: Path) -> Resolved:
    """OUTPUT_DIR is the run folder; for `.` and `..`, the run gets a subfolder."""
    folder = Path(str(values["OUTPUT_DIR"]))
    if folder.parts and any(part not in ("..", "/") for part in folder.parts):
        return Resolved({"output": folder})
    run = folder / f"{path.absolute().parent.name}-{path.stem}"
    return Resolved(
        {"output": run}, [f"OUTPUT_DIR {values['OUTPUT_DIR']} is not a folder of its own: the run is written to {run}"]
    )


RULES: tuple[Callable[[Values, frozenset[str], Path], Resolved], ...] = (
    head,
    tower,
    losses,
    optimiser,
    image_size,
    dataset,
    fixed,
    missing,
    reranking,
    device,
    output,
)
