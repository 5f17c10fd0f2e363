"""Every setting of upstream (DeMo's yacs tree) as data: its default there and its meaning here.

Source: public code 924973292/DeMo, config/defaults.py (names and values). Upstream's switches written as text ('yes',
'no', 'on', 'off') are booleans here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class UpstreamKey:
    """One upstream setting.

    Attributes:
        default: upstream's default, which also determines the type of the value.
        target: dotted setting of this package that takes the value; "" if no single one does.
        values: allowed value -> value here; None: every value of the type is allowed.
        instead: what to use in place of a value that is not allowed.
    """

    default: object
    target: str = ""
    values: Mapping[object, object] | None = None
    instead: str = ""


def _only(*values: object, instead: str) -> UpstreamKey:
    """A key that is accepted only with values that change nothing; the first value is the default."""
    return UpstreamKey(values[0], values=MappingProxyType({value: value for value in values}), instead=instead)


def _unread(default: object) -> UpstreamKey:
    """A key that upstream's code never reads: only its default is accepted."""
    return _only(default, instead="upstream's code never reads it, and nothing here does; leave it out")


_BEFORE = "features are always taken before BNNeck; leave it out"
_CENTRE = "there is no centre loss; leave it out"

KEYS: Mapping[str, UpstreamKey] = MappingProxyType(
    {
        # -- model ---------------------------------------------------------------------------------------------
        "MODEL.DEVICE": UpstreamKey("cuda"),
        "MODEL.DEVICE_ID": _only("0", instead="choose the GPU with the environment variable CUDA_VISIBLE_DEVICES"),
        "MODEL.NAME": _only("DeMo", instead="only DeMo and its SDTPS variant are built (MODEL.USE_SDTPS True)"),
        "MODEL.PRETRAIN_PATH_T": UpstreamKey(""),
        "MODEL.NECK": _only("bnneck", instead="BNNeck is always used; leave it out"),
        "MODEL.IF_WITH_CENTER": _only(False, instead=_CENTRE),
        "MODEL.ID_LOSS_TYPE": _only("softmax", instead="cross-entropy is the only identity loss; leave it out"),
        "MODEL.ID_LOSS_WEIGHT": UpstreamKey(1.0, "train.id_weight"),
        "MODEL.TRIPLET_LOSS_WEIGHT": UpstreamKey(1.0),
        "MODEL.METRIC_LOSS_TYPE": _only("triplet", instead="the batch-hard triplet is the only metric loss"),
        "MODEL.DIST_TRAIN": _only(False, instead="start several processes with `accelerate launch train_net.py ...`"),
        "MODEL.PROMPT": _only(False, instead="prompts are not supported; leave it out"),
        "MODEL.ADAPTER": _only(False, instead="adapters are not supported; leave it out"),
        "MODEL.FROZEN": _only(False, instead="use train.backbone_lr=0 in a trireid configuration (trireid train)"),
        "MODEL.HDM": UpstreamKey(False),
        "MODEL.ATM": UpstreamKey(False),
        "MODEL.USE_SDTPS": UpstreamKey(False),
        "MODEL.SDTPS_SPARSE_RATIO": UpstreamKey(0.5, "model.sdtps.sparse_ratio"),
        "MODEL.SDTPS_AGGR_RATIO": UpstreamKey(0.4, "model.sdtps.aggr_ratio"),
        "MODEL.SDTPS_BETA": UpstreamKey(0.25, "model.sdtps.beta"),
        "MODEL.SDTPS_USE_GUMBEL": UpstreamKey(False, "model.sdtps.use_gumbel"),
        "MODEL.SDTPS_GUMBEL_TAU": UpstreamKey(1.0, "model.sdtps.gumbel_tau"),
        "MODEL.IF_LABELSMOOTH": UpstreamKey(True, "train.label_smoothing", {True: 0.1, False: 0.0}),
        "MODEL.NO_MARGIN": UpstreamKey(True),
        "MODEL.DIRECT": UpstreamKey(1, "model.global_classifier", {1: "joint", 0: "separate"}, "use 1 or 0"),
        "MODEL.DROP_PATH": UpstreamKey(0.1),
        "MODEL.DROP_OUT": _only(0.0, instead="the backbone has no dropout; MODEL.DROP_PATH is there for ImageNet"),
        "MODEL.ATT_DROP_RATE": _only(0.0, instead="the backbone has no attention dropout; leave it out"),
        "MODEL.TRANSFORMER_TYPE": UpstreamKey("vit_base_patch16_224"),
        "MODEL.STRIDE_SIZE": _only(
            (16, 16), instead="patches do not overlap: the stride is the patch size; any INPUT.SIZE_TRAIN works"
        ),
        "MODEL.GLOBAL_LOCAL": UpstreamKey(False, "model.pife"),
        "MODEL.HEAD": UpstreamKey(12, "model.atmoe_heads"),
        "MODEL.SIE_COE": UpstreamKey(3.0),
        "MODEL.SIE_CAMERA": UpstreamKey(True),
        "MODEL.SIE_VIEW": _only(False, instead="there is no view embedding; MODEL.SIE_CAMERA True embeds the camera"),
        # -- input and data ------------------------------------------------------------------------------------
        "INPUT.SIZE_TRAIN": UpstreamKey((256, 128), "data.image_size"),
        "INPUT.SIZE_TEST": UpstreamKey((256, 128)),
        "INPUT.PROB": UpstreamKey(0.5, "data.augmentation.flip"),
        "INPUT.RE_PROB": UpstreamKey(0.5, "data.augmentation.erasing"),
        "INPUT.PIXEL_MEAN": UpstreamKey((0.5, 0.5, 0.5), "data.mean"),
        "INPUT.PIXEL_STD": UpstreamKey((0.5, 0.5, 0.5), "data.std"),
        "INPUT.PADDING": UpstreamKey(10, "data.augmentation.padding"),
        "DATASETS.NAMES": UpstreamKey("RGBNT201"),
        "DATASETS.ROOT_DIR": UpstreamKey("./data"),
        "DATALOADER.NUM_WORKERS": UpstreamKey(14, "data.workers"),
        "DATALOADER.SAMPLER": UpstreamKey("softmax_triplet"),
        "DATALOADER.NUM_INSTANCE": UpstreamKey(16, "data.num_instances"),
        # -- solver --------------------------------------------------------------------------------------------
        "SOLVER.OPTIMIZER_NAME": UpstreamKey(
            "SGD", "train.optimizer", {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}, "use Adam, AdamW or SGD"
        ),
        "SOLVER.MAX_EPOCHS": UpstreamKey(120, "train.epochs"),
        "SOLVER.BASE_LR": UpstreamKey(0.009, "train.lr"),
        "SOLVER.LARGE_FC_LR": UpstreamKey(False, "train.classifier_lr_factor", {False: 1.0, True: 2.0}),
        "SOLVER.BIAS_LR_FACTOR": UpstreamKey(2.0, "train.bias_lr_factor"),
        "SOLVER.MOMENTUM": UpstreamKey(0.9, "train.momentum"),
        "SOLVER.MARGIN": UpstreamKey(0.3),
        "SOLVER.WEIGHT_DECAY": UpstreamKey(1e-4, "train.weight_decay"),
        "SOLVER.WEIGHT_DECAY_BIAS": UpstreamKey(1e-4),
        "SOLVER.GAMMA": _unread(0.1),
        "SOLVER.STEPS": _unread((40, 70)),
        "SOLVER.WARMUP_FACTOR": _only(
            0.01, instead="upstream always warms up from 0.1; use train.warmup_factor in `trireid train`"
        ),
        "SOLVER.WARMUP_ITERS": UpstreamKey(10, "train.warmup_epochs"),
        "SOLVER.WARMUP_METHOD": _unread("linear"),
        "SOLVER.SEED": UpstreamKey(1111, "train.seed"),
        "SOLVER.CHECKPOINT_PERIOD": UpstreamKey(10, "train.checkpoint_every"),
        "SOLVER.LOG_PERIOD": UpstreamKey(10, "train.log_every"),
        "SOLVER.EVAL_PERIOD": UpstreamKey(1, "train.evaluate_every"),
        "SOLVER.IMS_PER_BATCH": UpstreamKey(128, "data.batch_size"),
        "SOLVER.CENTER_LR": _unread(0.5),
        "SOLVER.CENTER_LOSS_WEIGHT": _unread(0.0005),
        "SOLVER.CLUSTER_MARGIN": _unread(0.3),
        "SOLVER.RANGE_K": _unread(2),
        "SOLVER.RANGE_MARGIN": _unread(0.3),
        "SOLVER.RANGE_ALPHA": _unread(0.0),
        "SOLVER.RANGE_BETA": _unread(1.0),
        "SOLVER.RANGE_LOSS_WEIGHT": _unread(1.0),
        "SOLVER.COSINE_MARGIN": _unread(0.5),
        "SOLVER.COSINE_SCALE": _unread(30.0),
        # -- test and output -----------------------------------------------------------------------------------
        "TEST.IMS_PER_BATCH": UpstreamKey(256, "evaluate.batch_size"),
        "TEST.RE_RANKING": UpstreamKey(False, "evaluate.rerank"),
        "TEST.WEIGHT": UpstreamKey(""),
        "TEST.NECK_FEAT": _only("before", instead=_BEFORE),
        "TEST.FEAT_NORM": UpstreamKey(True, "evaluate.normalise"),
        "TEST.MISS": UpstreamKey("nothing"),
        "OUTPUT_DIR": UpstreamKey("./test"),
    }
)
