"""The values that named options can take, each list written once. Settings and modules share them; torch is not needed.

An option that a user sets by name is a `Literal` here: the settings (`config/schema.py`) check against it, the modules
annotate their arguments with it, and `typing.get_args` lists its values in error messages.
"""

from __future__ import annotations

from typing import Literal

# Modalities and missing ones
ModalityName = Literal["rgb", "nir", "tir"]
MODALITIES: tuple[str, ...] = ("rgb", "nir", "tir")
"""All modalities in the one order that is used everywhere."""
UNKNOWN = -1
"""Camera or scene index of an item whose camera or scene is not known."""
Centring = Literal["none", "train", "camera"]
"""What is subtracted from features before they are compared: the mean of the training features, or of each camera."""
LARGEST_POWER = 64.0
"""The largest power of adaptive fusion; the best spectrum decides alone long before."""
MissingAs = Literal["absent", "zeros"]
"""A withheld modality is left out by the model, or is seen by it as an image of zeros."""

# Data
DataFormat = Literal["rgbnt201", "rgbnt100", "msvr310", "wmveid863", "tno_scenes", "csv"]
Exclusion = Literal["camera", "scene", "cross_camera", "none"]
"""Which gallery items a query must not see (`types.Protocol`)."""
ExclusionSetting = Literal["auto", Exclusion]
"""`auto` is the rule that the data set's publication uses."""
SamplerName = Literal["identity", "uniform_identity", "random"]
CacheName = Literal["auto", "none", "memory", "device", "disk"]
PaddingMode = Literal["zeros", "reflect"]
Interpolation = Literal["bilinear", "bicubic"]
"""Of images, and of the position table of start weights."""

# Model
HeadName = Literal["none", "hdm", "hdm_atmoe", "sdtps"]
SieTokens = Literal["cls", "all"]
"""Tokens that the camera embedding is added to."""
HDMQuery = Literal["unit", "scaled"]
"""The standard deviation of the first query tokens: 1, or 1 / sqrt(width)."""
ClassifierName = Literal["joint", "separate"]
"""One global classifier for all modalities, or one per modality."""

# SDTPS head
PresetName = Literal["reference", "sound"]
Relaxation = Literal["none", "softmax", "k_hot"]
Noise = Literal["none", "relaxation", "shared"]
Mask = Literal["log", "masked_softmax"]
Normalisation = Literal["min_max", "quantile"]
GuideName = Literal["reduced", "cls", "mean_patch"]
SlotPoolingName = Literal["mean", "max", "attention", "project", "concat", "hdm", "hdm_atmoe"]
Scoring = Literal["guided", "random", "cut"]
"""Scores of the head: its own, random ones, or those of the last cut inside the ViT."""
ScoreName = Literal["predicted", "own", "rgb", "nir", "tir"]
"""Terms of a score: the predictor, a modality's own guide, and each modality's guide for the two others."""
Choice = Literal["hard", "soft"]
"""A patch is kept or dropped, or has a weight between 0 and 1."""
SpectrumWeightName = Literal["none", "spread", "agreement", "learned"]
"""What a whole modality of an item is weighted by."""
ContrastName = Literal["none", "centred", "weighted"]
"""What slots are made of: patches, or what they show beyond the mean of their image."""

# Slimming inside the ViT
Guidance = Literal[
    "self", "cross", "both", "distinct", "learned", "consensus", "cls_attention", "matching", "random", "none"
]
Dropped = Literal["fuse", "merge"]

# Training
OptimizerName = Literal["adam", "adamw", "sgd"]
RateReference = Literal["own", "base"]
"""The learning rate that a share refers to: each group's own, or `train.lr`."""
CameraRate = Literal["base", "backbone"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionSetting = Literal["auto", Precision]
InferencePrecision = Literal[Precision, "fp8"]
DeviceName = Literal["auto", "cpu", "cuda"]
Automatic = Literal["auto", True, False]
"""A setting that `auto` leaves to the program, which chooses by the machine and the work that is left."""
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
