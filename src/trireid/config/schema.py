"""Every setting of a run, as frozen pydantic models. Unknown keys are errors; there are no hidden defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0)]
ModalityName = Literal["rgb", "nir", "tir"]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AugmentationConfig(Section):
    """Training augmentation. Probabilities in [0, 1]; 0 switches a step off.

    `shared_geometry` draws flip and crop once a triplet, so that the patches of the three modalities show the same
    place; False draws them independently a modality, as upstream does. Erasing is always drawn a modality.
    """

    flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    padding: NonNegative = 10  # zero-padding in pixels before the random crop back to image_size
    erasing: Probability = 0.5
    jitter: Rate = 0.0  # gain and offset a modality drawn from +-jitter, in units of the pixel range
    shared_geometry: bool = True
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class DataConfig(Section):
    """Where the images are and how they are read."""

    format: Literal["rgbnt201", "rgbnt100", "msvr310", "wmveid863", "csv"] = "rgbnt201"
    root: Path = Path("data")  # folder of the data set, or the CSV file for format csv
    image_size: tuple[Positive, Positive] = (256, 128)  # (height, width)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    modalities: tuple[ModalityName, ...] = ("rgb", "nir", "tir")  # the others are treated as absent everywhere
    exclude: Literal["auto", "camera", "scene", "none"] = "auto"  # gallery items a query must not see
    val_ids: NonNegative = 0  # training identities held out to choose `best` by
    skip_bad: bool = False  # leave out (and list) faulty triplets instead of stopping
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of the test images
    batch_size: Positive = 64
    num_instances: Positive = 8  # images of one identity in a batch
    sampler: Literal["identity", "random"] = "identity"
    workers: NonNegative = 2
    augmentation: AugmentationConfig = AugmentationConfig()


class BackboneConfig(Section):
    """The shared ViT. `name` is `tiny`, an alias of models/backbone.py or any timm ViT name.

    `pretrained`: `timm` downloads the weights of that name, `none` starts from scratch, anything else is a local file.
    The four sizes are for `tiny` and other scratch models; None keeps what the name says.
    """

    name: str = "clip_vit_b16"
    pretrained: str = "timm"
    patch_size: Positive | None = None
    width: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    drop_path: Probability = 0.0


class SDTPSConfig(Section):
    """The SDTPS head (models/sdtps.py). `preset` fills every setting that is None."""

    preset: Literal["reference", "sound"] = "reference"
    sparse_ratio: Ratio = 0.5
    aggr_ratio: Ratio = 0.4
    beta: Annotated[float, Field(ge=0.0, le=0.5)] = 0.25
    use_gumbel: bool = False
    gumbel_tau: Annotated[float, Field(gt=0.0)] = 1.0


class ModelConfig(Section):
    """Backbone, PIFE, head and classifiers."""

    backbone: BackboneConfig = BackboneConfig()
    sie_coefficient: Rate = 1.0  # scale of the camera embedding; 0 switches it off
    pife: bool = True
    head: Literal["none", "hdm", "hdm_atmoe", "sdtps"] = "sdtps"
    sdtps: SDTPSConfig = SDTPSConfig()
    atmoe_heads: Positive = 4
    global_classifier: Literal["joint", "separate"] = "joint"  # upstream DIRECT 1 / 0


class TrainConfig(Section):
    """Losses, optimiser, schedule and where it runs."""

    epochs: Positive = 50
    seed: int = 1111
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Rate = 3.5e-4
    backbone_lr: Rate = 5e-6
    momentum: Probability = 0.9  # sgd only
    weight_decay: Rate = 1e-4
    bias_lr_factor: Rate = 2.0
    classifier_lr_factor: Rate = 1.0
    warmup_epochs: NonNegative = 10
    warmup_factor: Ratio = 0.1  # every group warms up from this share of its own lr
    final_lr_factor: Probability = 1e-3  # cosine ends at this share of each group's lr
    clip_grad_norm: Rate = 0.0  # 0 switches clipping off
    id_weight: Rate = 0.25
    triplet_weight: Rate = 1.0
    triplet_margin: Rate | None = None  # None is the soft margin
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    evaluate_every: Positive = 1  # epochs
    checkpoint_every: Positive = 10  # epochs between states to resume from
    log_every: Positive = 10  # steps


class EvaluateConfig(Section):
    """Evaluation of a model on query and gallery."""

    batch_size: Positive = 128
    normalise: bool = True  # L2-normalise features before the Euclidean distance
    missing: tuple[ModalityName, ...] = ()  # modalities withheld at test
    rerank: bool = False
    rerank_k1: Positive = 20
    rerank_k2: Positive = 6
    rerank_lambda: Probability = 0.3


class Config(Section):
    """One run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    output: Path = Path("runs/run")
