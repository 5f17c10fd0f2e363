"""Settings that build the model of an upstream checkpoint from its shapes, and notes on what had to be assumed."""

from __future__ import annotations

from trireid.config.schema import BackboneConfig, Config, ModelConfig, SDTPSConfig
from trireid.errors import CheckpointError, InputError
from trireid.models.sdtps import slot_count
from trireid.models.selection import keep_count
from trireid.upstream.state_dict import HEAD_WIDTH, UpstreamFacts

SIE_COEFFICIENT, SPARSE_RATIO, BETA = 1.0, 0.5, 0.25  # of the published configurations
SDTPS_VARIANT = (
    "SDTPS: its variants cannot be told apart, because their files have the same keys and shapes; assumed is the one "
    "whose slots weight the kept patches by the aggregation alone; a later one also weights them by a softmax of the "
    "scores"
)
_NATIVE = {"clip_vit_b16": (16, 768, 12, 12, 512), "vit_b16": (16, 768, 12, 12, None)}


def describe_facts(facts: UpstreamFacts) -> str:
    """One line of facts that the file determines."""
    heads = {
        "none": "no head",
        "hdm": "HDM",
        "hdm_atmoe": f"HDM and ATMoE with {facts.atmoe_heads} heads",
        "sdtps": f"SDTPS with {facts.num_slots} slots",
    }
    parts = [
        f"{facts.num_classes} identities",
        f"{facts.num_cameras} cameras" if facts.num_cameras else "no camera embedding",
        f"{'CLIP' if facts.is_clip else 'ImageNet'} ViT of {facts.depth} blocks, {facts.width} wide",
        "PIFE" if facts.pife else "no PIFE",
        heads[facts.head],
        "one classifier of the joined globals (DIRECT 1)" if facts.joint else "one classifier per modality (DIRECT 0)",
    ]
    return f"read from the file: {', '.join(parts)}"


def upstream_config(
    facts: UpstreamFacts,
    image_size: tuple[int, int],
    num_cameras: int,
    *,
    sie_coefficient: float,
    sparse_ratio: float,
    beta: float,
) -> tuple[Config, tuple[str, ...]]:
    """Settings that build the model of these facts, and notes on what had to be assumed.

    Raises:
        CheckpointError: the slots of SDTPS do not fit the patches of these images, or all patches would be kept.
        InputError: a number was given for a part that the checkpoint does not have.
    """
    if not num_cameras and sie_coefficient != SIE_COEFFICIENT:
        raise InputError(f"sie_coefficient is {sie_coefficient:g}, but the file has no camera embedding: leave it out")
    if facts.head != "sdtps" and (sparse_ratio, beta) != (SPARSE_RATIO, BETA):
        raise InputError(
            f"sparse_ratio and beta ({sparse_ratio:g}, {beta:g}) belong to SDTPS, which the file does not "
            "have: leave them out"
        )
    name = "clip_vit_b16" if facts.is_clip else "vit_b16"
    own = (facts.patch_size, facts.width, facts.depth, facts.num_heads, facts.dim if facts.is_clip else None)
    changed = [value if value != native else None for value, native in zip(own, _NATIVE[name], strict=True)]
    patch_size, width, depth, num_heads, projection = changed
    num_patches = (image_size[0] // facts.patch_size) * (image_size[1] // facts.patch_size)
    sdtps = SDTPSConfig()
    if facts.head == "sdtps":
        sdtps = _sdtps_config(facts.num_slots, num_patches, sparse_ratio=sparse_ratio, beta=beta)
    model = ModelConfig(
        backbone=BackboneConfig(
            name=name,
            pretrained="none",
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            projection=projection,
        ),
        sie_coefficient=sie_coefficient,
        sie_tokens="cls" if facts.is_clip else "all",
        pife=facts.pife,
        head=facts.head,
        sdtps=sdtps,
        hdm_head_width=HEAD_WIDTH,
        hdm_query="scaled",
        atmoe_heads=facts.atmoe_heads or ModelConfig().atmoe_heads,
        global_classifier="joint" if facts.joint else "separate",
    )
    return Config(model=model), _assumptions(facts, model, num_cameras)


def _assumptions(facts: UpstreamFacts, model: ModelConfig, num_cameras: int) -> tuple[str, ...]:
    """Notes on what no shape determines, one line each."""
    notes = [f"ViT: {facts.num_heads} heads assumed, {HEAD_WIDTH} channels each"]
    if num_cameras:
        where = "the CLS token" if facts.is_clip else "every token"
        scale = f"scale {model.sie_coefficient:g} assumed (SIE_COE)"
        notes.append(f"camera embedding: {num_cameras} cameras, {scale}, added to {where}")
    if facts.head in ("hdm", "hdm_atmoe"):
        notes.append(f"HDM: {max(1, facts.dim // HEAD_WIDTH)} heads assumed, {HEAD_WIDTH} channels each")
    if facts.head == "hdm_atmoe":
        head_width = facts.dim // max(1, facts.atmoe_heads)
        notes.append(f"ATMoE: products of query and key divided by sqrt({head_width}), the width of a head, assumed")
    if facts.head == "sdtps":
        sdtps = model.sdtps
        ratios = f"with sparse_ratio {sdtps.sparse_ratio:g} and beta {sdtps.beta:g} assumed"
        notes += [f"SDTPS: {facts.num_slots} slots, so aggr_ratio {sdtps.aggr_ratio:g}, {ratios}", SDTPS_VARIANT]
    return tuple(notes)


def _sdtps_config(num_slots: int, num_patches: int, *, sparse_ratio: float, beta: float) -> SDTPSConfig:
    """Settings with which these patches give the slots of the file.

    Raises:
        CheckpointError: there are no such settings, or all patches would be kept.
    """
    if keep_count(num_patches, sparse_ratio) == num_patches:
        raise CheckpointError(
            f"sparse_ratio {sparse_ratio:g} keeps all {num_patches} patches: upstream then averages a token of "
            "zeros with the slots, which is not supported here; give a smaller ratio"
        )
    aggr_ratio = 0.4
    if slot_count(num_patches, sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio) != num_slots:
        aggr_ratio = num_slots / (num_patches * sparse_ratio)
    if aggr_ratio > 1.0:
        raise CheckpointError(
            f"SDTPS has {num_slots} slots, more than the kept ones of {num_patches} patches at sparse_ratio "
            f"{sparse_ratio:g}: give a larger image_size or sparse_ratio"
        )
    return SDTPSConfig(sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio, beta=beta)
