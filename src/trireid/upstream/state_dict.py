"""Convert a state_dict of upstream (DeMo) to one of this package. Tensors only, no files.

The keys and shapes of a checkpoint determine its facts. `upstream_rules` then lists how each tensor of our model is
made, and `convert_upstream` applies these rules: an unused key, a missing key and a shape that does not fit are errors,
with a report of every key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional

from trireid.errors import CheckpointError
from trireid.models.towers import Rule, clip_rules, count_blocks, is_upstream, same, timm_rules
from trireid.models.untrusted import value_fault
from trireid.names import HeadName
from trireid.types import MODALITIES, modality_subsets

BASE = "BACKBONE.base."
CAMERA, IMAGENET_CAMERA = "BACKBONE.cv_embed", "BACKBONE.base.sie_embed"  # of the two towers
EXPERTS = "generalFusion.moe.experts."
GATE = "generalFusion.moe.gating_network.gate."
LETTERS = tuple(name[0] for name in MODALITIES)  # r, n, t
SUBSETS = tuple("".join(LETTERS[index] for index in subset) for subset in modality_subsets())
NORM = ("weight", "bias", "running_mean", "running_var")
STEPS = "num_batches_tracked"
HEAD_WIDTH = 64  # channels of an attention head in upstream's ViT and HDM; shapes do not determine it

IGNORED = (
    (
        re.compile(r"sdtps\.\w+_aggr\.weight\.3\.bias"),
        "one number per slot, equal for all patches, so the softmax over the patches cancels it",
    ),
    (re.compile(r"BACKBONE\.base\.(fc|head)\.(weight|bias)"), "the ImageNet classifier, which features do not use"),
)
"""Keys that a file may have and that are not used, with the reason."""


@dataclass(frozen=True)
class UpstreamFacts:
    """What the keys and shapes of a checkpoint determine.

    Attributes:
        is_clip: whether the ViT is CLIP's; otherwise the ImageNet one.
        patch_size, width, depth, num_heads: of the ViT; num_heads is width / 64.
        dim: width of its output tokens.
        num_positions: patches of the position table.
        num_cameras: rows of the camera embedding; 0: no embedding.
        num_classes: training identities.
        pife: whether it has the reductions of PIFE.
        head: `none`, `hdm`, `hdm_atmoe` or `sdtps`.
        atmoe_heads: heads of ATMoE; 0: no ATMoE.
        num_slots: aggregated slots of SDTPS; 0: no SDTPS.
        joint: one classifier for the concatenated global features (DIRECT 1); otherwise one per modality (DIRECT 0).
    """

    is_clip: bool
    patch_size: int
    width: int
    depth: int
    num_heads: int
    dim: int
    num_positions: int
    num_cameras: int
    num_classes: int
    pife: bool
    head: HeadName
    atmoe_heads: int
    num_slots: int
    joint: bool


@dataclass(frozen=True)
class ImportReport:
    """The use of every key of a file.

    Attributes:
        used: key -> name in this package.
        ignored: key -> reason.
        missing: name in this package -> keys that it needs and the file lacks.
        unknown: keys that no rule knows.
        misfits: name in this package -> what is wrong with the shape.
        unusable: key -> what is wrong with the values.
        notes: what was read from the file, assumed, resized or filled in.
    """

    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    misfits: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every key is used or ignored, every tensor has its keys, and every value is usable."""
        return not (self.missing or self.unknown or self.misfits or self.unusable)

    def describe(self) -> str:
        """One line with the counts and the first names of each kind of fault."""
        absent = sorted({key for keys in self.missing.values() for key in keys})
        parts = [f"{len(self.used)} keys used", f"{len(self.ignored)} ignored"]
        parts += [f"{len(absent)} missing ({_some(absent)})"] if absent else ["none missing"]
        parts += [f"{len(self.unknown)} unknown ({_some(self.unknown)})"] if self.unknown else []
        wrong = [f"{name}: {what}" for name, what in self.misfits.items()]
        parts += [f"{len(wrong)} of another shape ({_some(wrong)})"] if wrong else []
        faults = [f"{key} {what}" for key, what in self.unusable.items()]
        parts += [f"{len(faults)} unusable as weights ({_some(faults)})"] if faults else []
        return ", ".join(parts)


class UpstreamMismatchError(CheckpointError):
    """A checkpoint of upstream that does not fit, with its report.

    Args:
        message: one line.
        report: the use of every key.
    """

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__(message)
        self.report = report


def strip_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state in float32 (counters stay), without the prefix `module.` of a parallel run.

    Raises:
        CheckpointError: a key exists with and without the prefix.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if len(plain) < len(state):
        raise CheckpointError("the file has the same tensor with and without the prefix module.: keep one of them")
    return {key: value.float() if value.is_floating_point() else value for key, value in plain.items()}


def read_facts(state: Mapping[str, Tensor]) -> UpstreamFacts:
    """Determine the facts of a model from its state_dict (without prefix).

    Raises:
        CheckpointError: it is not a checkpoint of upstream, or a tensor that determines a fact is missing.
    """
    if not is_upstream(state):
        shown = _some(sorted(state)) or "none"
        raise CheckpointError(
            f"these are not weights of upstream: no key starts with BACKBONE. ({len(state)} keys: {shown}); give a "
            "state_dict of a whole DeMo model"
        )
    is_clip = f"{BASE}conv1.weight" in state
    filters = _of_rank(state, f"{BASE}conv1.weight" if is_clip else f"{BASE}patch_embed.proj.weight", 4)
    width = filters.shape[0]
    if filters.shape[2] != filters.shape[3] or (width > HEAD_WIDTH and width % HEAD_WIDTH):
        raise CheckpointError(
            f"upstream's ViT has square patches and a width that is a multiple of {HEAD_WIDTH}; this one has patches "
            f"of {filters.shape[2]} x {filters.shape[3]} pixels and width {width}"
        )
    table = _of_rank(state, f"{BASE}positional_embedding", 2) if is_clip else _of_rank(state, f"{BASE}pos_embed", 3)[0]
    camera = CAMERA if is_clip else IMAGENET_CAMERA
    has_moe, has_hdm = any(key.startswith(EXPERTS) for key in state), "generalFusion.r_token" in state
    has_sdtps = any(key.startswith("sdtps.") for key in state)
    joint = "classifier.weight" in state
    classifier = _of_rank(state, "classifier.weight" if joint else f"classifier_{LETTERS[0]}.weight", 2)
    slots = _of_rank(state, f"sdtps.{MODALITIES[0]}_aggr.weight.3.weight", 2).shape[0] if has_sdtps else 0
    head: HeadName = "sdtps" if has_sdtps else "hdm_atmoe" if has_moe else "hdm" if has_hdm else "none"
    return UpstreamFacts(
        is_clip=is_clip,
        patch_size=filters.shape[2],
        width=width,
        depth=count_blocks(state, f"{BASE}transformer.resblocks." if is_clip else f"{BASE}blocks."),
        num_heads=max(1, width // HEAD_WIDTH),
        dim=_of_rank(state, f"{BASE}proj", 2).shape[1] if is_clip else width,
        num_positions=table.shape[0] - 1,
        num_cameras=_of_rank(state, camera, 3).shape[0] if camera in state else 0,
        num_classes=classifier.shape[0],
        pife=any(key.startswith(f"{MODALITIES[0]}_reduce.") for key in state),
        head=head,
        atmoe_heads=count_blocks(state, EXPERTS) if has_moe else 0,
        num_slots=slots,
        joint=joint,
    )


def upstream_rules(facts: UpstreamFacts) -> list[Rule]:
    """How each tensor of our model is made from upstream's."""
    vit = "backbone.vit."
    if facts.is_clip:
        rules = clip_rules(depth=facts.depth, dim=facts.dim, prefix=BASE, target=vit)
    else:
        rules = timm_rules(depth=facts.depth, prefix=BASE, target=vit)
    if facts.num_cameras:
        camera = CAMERA if facts.is_clip else IMAGENET_CAMERA
        rules.append(Rule("backbone.camera_embedding.weight", (camera,), lambda t: t[0].flatten(1)))
    if facts.pife:
        reduce = "{}_reduce.{}.{}"
        for ours, place in (("norm", 0), ("reduce", 1)):
            rules += [_stacked(f"pife.{ours}.{part}", reduce, place, part) for part in ("weight", "bias")]
    if facts.head in ("hdm", "hdm_atmoe"):
        rules += _hdm_rules()
    if facts.head == "hdm_atmoe":
        rules += _atmoe_rules(facts.atmoe_heads)
    if facts.head == "sdtps":
        rules += _sdtps_rules()
    pairs = [("global", "")] if facts.joint else [(name, f"_{name[0]}") for name in MODALITIES]
    if facts.head != "none":
        pairs.append(("head", "_sdtps" if facts.head == "sdtps" else "_moe"))
    for ours, theirs in pairs:
        rules.append(Rule(f"classifiers.{ours}.classifier.weight", (f"classifier{theirs}.weight",)))
        rules += _batch_norm(f"classifiers.{ours}.bottleneck", (f"bottleneck{theirs}",))
    return rules


def convert_upstream(
    state: Mapping[str, Tensor],
    rules: list[Rule],
    *,
    shapes: Mapping[str, torch.Size],
    notes: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], ImportReport]:
    """Apply the rules; returns the complete state of our model and the report.

    Args:
        state: state_dict of upstream, without prefix.
        rules: `upstream_rules`; those of resized tables may be changed.
        shapes: shape of every tensor of the model.
        notes: lines for the report.
        ignore: patterns (`*` for anything) of further keys that may be left out.

    Raises:
        UpstreamMismatchError: keys are missing, unknown, of another shape or not finite; its report lists every key.
    """
    made: dict[str, Tensor] = {}
    report = ImportReport(notes=notes)
    for rule in rules:
        absent = tuple(key for key in rule.sources if key not in state)
        if absent:
            report.missing[rule.target] = absent
        report.used.update({key: rule.target for key in rule.sources if key in state})
        if not absent:
            try:
                made[rule.target] = rule.make([state[key] for key in rule.sources])
            except (RuntimeError, IndexError) as error:
                report.misfits[rule.target] = f"{_some(rule.sources)} cannot be joined: {str(error).splitlines()[0]}"
    for name, shape in shapes.items():
        if name in made and made[name].shape != shape:
            sources = next(rule.sources for rule in rules if rule.target == name)
            report.misfits[name] = f"{_some(sources)} give {tuple(made[name].shape)}, not {tuple(shape)}"
    rest = sorted(key for key in state if key not in report.used)
    report.ignored.update({key: why for key in rest if (why := _why_ignored(key, ignore)) is not None})
    report = ImportReport(
        used=report.used,
        ignored=report.ignored,
        missing=report.missing,
        unknown=tuple(key for key in rest if key not in report.ignored),
        misfits=report.misfits,
        unusable={key: fault for key in report.used if (fault := value_fault(key, state[key]))},
        notes=notes,
    )
    if not report.is_complete:
        only_more = not (report.missing or report.misfits or report.unusable)
        advice = "; if the model can do without these keys, name them with --ignore (ignore=)" if only_more else ""
        raise UpstreamMismatchError(f"the file does not fit upstream's model: {report.describe()}{advice}", report)
    assert made.keys() == shapes.keys(), f"rules and model differ: {sorted(made.keys() ^ shapes.keys())[:5]}"
    return made, report


def _why_ignored(key: str, ignore: tuple[str, ...]) -> str | None:
    if any(fnmatchcase(key, pattern) for pattern in ignore):
        return "left out by --ignore"
    return next((why for known, why in IGNORED if known.fullmatch(key)), None)


def resize_positions(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position table `(1, 1 + N, D)` to another patch grid, bilinear, as upstream does with start weights."""
    cls, patches = table[:, :1], table[:, 1:]
    plane = patches.unflatten(1, source).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    plane = functional.interpolate(plane, size=target, mode="bilinear", align_corners=False)
    return torch.cat([cls, plane.flatten(2).transpose(1, 2)], dim=1)


def resize_cameras(table: Tensor, num_cameras: int) -> Tensor:
    """Camera table `(c, D)` for another number of cameras: the first rows, and the mean of all for additional ones."""
    mean = table.mean(dim=0, keepdim=True)
    return torch.cat([table[:num_cameras], mean.expand(max(0, num_cameras - len(table)), -1)])


def _hdm_rules() -> list[Rule]:
    attention = "generalFusion.{}.{}"

    def keys(part: str) -> tuple[str, ...]:
        return tuple(attention.format(subset, part) for subset in SUBSETS)

    tokens = tuple(f"generalFusion.{subset}_token" for subset in SUBSETS)
    return [
        Rule("head.hdm.query", tokens, lambda t: torch.stack(t).flatten(1)),
        Rule("head.hdm.in_weight", keys("in_proj_weight"), lambda t: torch.stack(t).unflatten(1, (3, -1))),
        Rule("head.hdm.in_bias", keys("in_proj_bias"), lambda t: torch.stack(t).unflatten(1, (3, -1))),
        Rule("head.hdm.out_weight", keys("out_proj.weight"), torch.stack),
        Rule("head.hdm.out_bias", keys("out_proj.bias"), torch.stack),
    ]


def _atmoe_rules(num_heads: int) -> list[Rule]:
    num_experts = len(SUBSETS)
    # Expert first, then head: the order of our channels, which is upstream's order as well (heads concatenated on the
    # last axis of the stacked experts, then flattened).
    mlps = [f"{EXPERTS}{head}.expertHead.{expert}.mlp" for expert in range(num_experts) for head in range(num_heads)]

    def by_expert(tensors: list[Tensor]) -> Tensor:
        joined: Tensor = torch.stack(tensors).unflatten(0, (num_experts, num_heads))
        return joined

    ours = "head.atmoe."
    return [
        Rule(f"{ours}gate_reduce.0.weight", (f"{GATE}linear_re.0.weight",)),
        Rule(f"{ours}gate_reduce.0.bias", (f"{GATE}linear_re.0.bias",)),
        *_batch_norm(f"{ours}gate_reduce.2", (f"{GATE}linear_re.2",)),
        Rule(f"{ours}gate_query.weight", (f"{GATE}q_.weight",)),
        Rule(f"{ours}gate_key.weight", (f"{GATE}k_.weight",)),
        Rule(f"{ours}expert_weight", tuple(f"{mlp}.0.weight" for mlp in mlps), by_expert),
        Rule(f"{ours}expert_bias", tuple(f"{mlp}.0.bias" for mlp in mlps), by_expert),
        *_batch_norm(f"{ours}expert_norm", tuple(f"{mlp}.2" for mlp in mlps)),
    ]


def _sdtps_rules() -> list[Rule]:
    score, slots = "sdtps.{}_sparse.score_predictor.{}.{}", "sdtps.{}_aggr.weight.{}.{}"
    rules = [_stacked(f"head.predictor.{at}.{part}", score, at, part) for at in (0, 2) for part in ("weight", "bias")]
    rules += [
        _stacked(f"head.aggregation.{at}.{part}", slots, at, part) for at in (0, 1) for part in ("weight", "bias")
    ]
    scales = tuple(f"sdtps.{name}_aggr.scale" for name in MODALITIES)
    return [
        *rules,
        _stacked("head.aggregation.3.weight", slots, 3, "weight"),
        Rule("head.scale", scales, lambda t: torch.stack(t).reshape(len(t), 1, 1)),
    ]


def _stacked(target: str, form: str, place: int, part: str) -> Rule:
    """One tensor per modality, stacked."""
    return Rule(target, tuple(form.format(name, place, part) for name in MODALITIES), torch.stack)


def _batch_norm(target: str, sources: tuple[str, ...]) -> list[Rule]:
    """A batch normalisation, or several side by side as one over all their channels."""
    rules = [Rule(f"{target}.{part}", tuple(f"{name}.{part}" for name in sources), torch.cat) for part in NORM]
    steps = tuple(f"{name}.{STEPS}" for name in sources)
    return [*rules, Rule(f"{target}.{STEPS}", steps, same if len(steps) == 1 else lambda t: torch.stack(t).amax())]


def _of_rank(state: Mapping[str, Tensor], key: str, rank: int) -> Tensor:
    """A tensor that determines facts.

    Raises:
        CheckpointError: it is missing or has another number of axes.
    """
    if key not in state or state[key].dim() != rank or 0 in state[key].shape:
        found = f"has the shape {tuple(state[key].shape)}" if key in state else "is missing"
        raise CheckpointError(f"the file is not a complete checkpoint of upstream: {key} ({rank} axes) {found}")
    return state[key]


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
