"""Every setting of a run, as frozen pydantic models. Unknown keys are errors; every default is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trireid import names


def _not_a_truth_value(value: object) -> object:
    """Keep `true` from being read as the number 1."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _expanded(path: Path) -> Path:
    """The path with `~` replaced by the home folder; invalid paths are refused."""
    _as_a_path_may_be(str(path))
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"should be a path; no home folder is known for {path.parts[0]}") from None


def _as_a_path_may_be(text: str) -> str:
    """Refuse characters that no file name holds; also for text settings that may name a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("should be text of whole characters") from None
    if "\0" in text:
        raise ValueError("should be text without the character of code 0")
    return text


LARGEST = 2**63 - 1  # the largest integer of torch
Number = BeforeValidator(_not_a_truth_value)
Positive = Annotated[int, Number, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[int, Number, Field(ge=0, le=LARGEST)]
Text = Annotated[str, AfterValidator(_as_a_path_may_be)]
Real = Annotated[float, Number]
Spread = Annotated[float, Number, Field(gt=0.0)]
Probability = Annotated[float, Number, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Number, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Number, Field(ge=0.0)]
Power = Annotated[float, Number, Field(ge=0.0, le=names.LARGEST_POWER)]
ValueRange = Literal["auto", "file"] | tuple[Real, Real]
Folder = Annotated[Path, AfterValidator(_expanded)]


class Section(BaseModel):
    """Base of all sections: immutable, an unknown key is an error, and so are nan and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_modalities(path: str, given: tuple[str, ...]) -> None:
    """Refuse repeated names, and any order other than rgb, nir, tir."""
    if list(given) != [name for name in names.MODALITIES if name in given]:
        raise ValueError(f"{path} is ({', '.join(given)}): name each once, in the order rgb, nir, tir")


class AugmentationConfig(Section):
    """Training augmentation. Probabilities in [0, 1]; 0 switches a step off.

    `shared_geometry` draws flip and crop once per triplet, so that the patches of the three modalities show the same
    place; False draws them per modality, as upstream does. Erasing is always drawn per modality.
    `dihedral_identities` is for images seen from above: each of the eight rotations and mirror images of a training
    identity becomes an identity of its own (validation and test are not changed).
    """

    flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    padding: NonNegative = 10  # pixels added on each side before the random crop back to image_size
    padding_mode: names.PaddingMode = "zeros"
    erasing: Probability = 0.5
    jitter: Rate = 0.0  # gain and offset per modality are drawn from [-jitter, jitter], in units of the pixel range
    shared_geometry: bool = True
    blinding: Probability = 0.0  # some modalities of a training item show almost nothing, and the model is not told
    dihedral_identities: bool = False
    interpolation: names.Interpolation = "bicubic"


class RangeConfig(Section):
    """Which values of images of more than 8 bits become black and white; 8-bit images are used as they are.

    For each modality: `auto` takes the 0.1 and 99.9 percentiles of the training images (the checkpoint stores the two
    numbers), `file` those of each file, `[low, high]` two values of the sensor, such as `[28315, 31315]` for 10 to
    40 degrees Celsius in centikelvin.
    """

    rgb: ValueRange = "auto"
    nir: ValueRange = "auto"
    tir: ValueRange = "auto"

    @model_validator(mode="after")
    def _check_order(self) -> RangeConfig:
        for name, value in self:
            if isinstance(value, tuple) and not value[0] < value[1]:
                raise ValueError(
                    f"data.range.{name}=[{value[0]:g}, {value[1]:g}]: the first number must be smaller than the second"
                )
        return self


class DataConfig(Section):
    """Where the images are and how they are read."""

    format: names.DataFormat = "rgbnt201"
    root: Folder = Path("data")  # folder of the data set, or the CSV file for format csv
    image_size: tuple[Positive, Positive] = (256, 128)  # (height, width)
    mean: tuple[Real, Real, Real] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)
    modalities: tuple[names.ModalityName, ...] = ("rgb", "nir", "tir")  # all others are treated as absent
    range: RangeConfig = RangeConfig()  # value range of images of more than 8 bits
    exclude: names.ExclusionSetting = "auto"  # which gallery items are hidden from a query
    val_ids: NonNegative = 0  # training identities held out for model selection
    skip_bad: bool = False  # leave out (and list) faulty triplets instead of stopping
    interpolation: names.Interpolation = "bilinear"  # of test images
    batch_size: Positive = 64  # triplets per batch, over all processes
    num_instances: Positive = 8  # triplets of one identity in a batch
    sampler: names.SamplerName = "identity"  # see data/sampler.py
    cache: names.CacheName = "auto"  # where decoded pixels are kept, see data/pixels.py
    cache_folder: Folder | None = None  # of data.cache=disk; None: the user's cache folder
    workers: NonNegative | None = None  # threads or processes that decode; None: as many as cores, at most 16
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _check_together(self) -> DataConfig:
        _check_modalities("data.modalities", self.modalities)
        if not self.modalities:
            raise ValueError("data.modalities is empty: name at least one of rgb, nir, tir")
        self._check_augmentation()
        if self.batch_size < 2:
            raise ValueError(
                "data.batch_size=1 gives BatchNorm no statistics and the triplet loss no pair: use 2 or "
                "more (32 to 128 learn better; evaluate.batch_size may be 1)"
            )
        identities, rest = divmod(self.batch_size, self.num_instances)
        if self.sampler != "random" and rest:
            raise ValueError(
                f"data.batch_size={self.batch_size} is not a multiple of data.num_instances={self.num_instances}: "
                "a batch holds whole identities"
            )
        if self.sampler != "random" and identities < 2:
            raise ValueError(
                f"data.batch_size={self.batch_size} with data.num_instances={self.num_instances} puts {identities} "
                "identity in a batch: at least 2 are needed to learn to tell them apart"
            )
        return self

    def _check_augmentation(self) -> None:
        """Refuse augmentation that does not fit the image size."""
        height, width = self.image_size
        chosen = self.augmentation
        if chosen.padding_mode == "reflect" and chosen.padding >= min(height, width):
            raise ValueError(
                f"data.augmentation.padding={chosen.padding} with padding_mode=reflect must be less than the smaller "
                f"side of data.image_size, {min(height, width)}: lower it, or use padding_mode=zeros"
            )
        if chosen.dihedral_identities and height != width:
            raise ValueError(
                f"data.augmentation.dihedral_identities rotates by quarter turns, but data.image_size is {height} x "
                f"{width}: make it square, or switch dihedral_identities off"
            )


class BackboneConfig(Section):
    """The shared ViT. `name` is `tiny`, an alias in models/backbone.py, or any name of a timm ViT.

    `pretrained`: `timm` downloads the weights of that name, `none` starts from random weights, anything else is a file
    or a run folder. `pretrained_image_size` is the image size that its position table was made for. The five sizes
    from `patch_size` on are for `tiny` and other models without start weights; None: as the name says. With start
    weights, `depth` keeps their first blocks. `projection` is the width of the last linear map of CLIP's ViT.
    `position_interpolation` resizes the position table.
    """

    name: Text = "clip_vit_b16"
    pretrained: Text = "timm"
    pretrained_image_size: tuple[Positive, Positive] | None = None  # (height, width); None: as recorded or published
    patch_size: Positive | None = None
    width: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    projection: Positive | None = None
    drop_path: Probability = 0.0
    standardise: bool = False  # bring every image to mean 0 and variance 1, so that gain and offset do not matter
    position_interpolation: names.Interpolation = "bicubic"  # bicubic with antialiasing, as timm; bilinear, as upstream

    @model_validator(mode="after")
    def _check_together(self) -> BackboneConfig:
        if not self.name or not self.pretrained:
            raise ValueError("model.backbone.name and model.backbone.pretrained may not be empty (pretrained: none)")
        if self.width is not None and self.num_heads is not None and self.width % self.num_heads:
            raise ValueError(
                f"model.backbone.width={self.width} is not a multiple of model.backbone.num_heads={self.num_heads}"
            )
        return self


class SDTPSConfig(Section):
    """The SDTPS head (models/sdtps.py). `preset` fills every setting that is None."""

    preset: names.PresetName = "reference"
    sparse_ratio: Ratio | None = None
    aggr_ratio: Ratio = 0.4
    beta: Annotated[float, Number, Field(ge=0.0, le=0.5)] = 0.25
    use_gumbel: bool = False
    gumbel_tau: Spread = 1.0
    relaxation: names.Relaxation | None = None
    noise: names.Noise | None = None
    mask: names.Mask | None = None
    normalisation: names.Normalisation | None = None
    guide: names.GuideName = "reduced"
    learned_guides: bool | None = None
    reader: names.SlotPoolingName | None = None
    scoring: names.Scoring | None = None
    scores: tuple[names.ScoreName, ...] = ("predicted", "own", "rgb", "nir", "tir")  # terms of a guided score
    choice: names.Choice | None = None  # soft: keep all patches, weighted
    keep_all_in_test: bool = False  # choose in training only
    guide_gradient: bool = False  # cosines pass gradient to patches and guides
    spectrum_weight: names.SpectrumWeightName | None = None  # weight of a whole modality of an item
    contrast: names.ContrastName = "none"  # what slots are made of: patches, or what they show beyond their image
    cells: tuple[Positive, Positive] | None = None  # slots are cells of the image, rows x columns; None: learned


class SlimmingConfig(Section):
    """One cut inside the ViT (models/slimming.py): after this many blocks, this share of the patches is kept."""

    after_block: Positive
    keep_ratio: Ratio
    guidance: names.Guidance = "consensus"
    dropped: names.Dropped = "fuse"


class ModelConfig(Section):
    """Backbone, PIFE, head and classifiers."""

    backbone: BackboneConfig = BackboneConfig()
    sie_coefficient: Rate = 1.0  # scale of the camera embedding; 0 switches it off
    sie_tokens: names.SieTokens = "cls"  # tokens that it is added to
    pife: bool = True
    head: names.HeadName = "sdtps"
    sdtps: SDTPSConfig = SDTPSConfig()
    slimming: tuple[SlimmingConfig, ...] = ()
    hdm_head_width: Positive | None = None  # channels per head; None: 8 heads (fewer if 8 does not divide the width)
    hdm_query: names.HDMQuery = "unit"  # standard deviation of the initial queries: 1 or 1 / sqrt(width)
    hdm_batch_norm: bool = False  # normalise the feature of head hdm by the batch; a control
    atmoe_heads: Positive = 4
    global_classifier: names.ClassifierName = "joint"  # upstream's DIRECT 1 or 0


class TrainConfig(Section):
    """Losses, optimiser, schedule, device and logging."""

    epochs: Positive = 50
    dense_epochs: NonNegative = 0  # first epochs, in which model.slimming drops no patch but is trained
    seed: NonNegative = 1111
    optimizer: names.OptimizerName = "adam"
    lr: Rate = 3.5e-4
    backbone_lr: Rate = 5e-6
    layer_decay: Ratio = 1.0  # rate of each layer of the ViT, relative to the next one's; the last has backbone_lr
    momentum: Probability = 0.9  # sgd only
    weight_decay: Rate = 1e-4
    bias_lr_factor: Rate = 2.0  # learning rate of biases, relative to that of weights
    backbone_bias_lr_factor: Rate | None = None  # the same for the backbone; None: bias_lr_factor
    camera_lr_from: names.CameraRate = "base"  # learning rate of the camera embedding: lr or backbone_lr
    classifier_lr_factor: Rate = 1.0
    warmup_epochs: NonNegative = 10
    warmup_factor: Ratio = 0.1  # warm-up starts at this share of the learning rate
    warmup_from: names.RateReference = "own"  # share of each group's own lr, or of train.lr
    final_lr_factor: Probability = 1e-3  # the cosine schedule ends at this share
    final_lr_from: names.RateReference = "own"  # share of each group's own lr, or of train.lr
    cosine_under_warmup: bool = False  # the cosine starts at epoch 0, not after the warm-up
    lr_noise: bool = False  # upstream's random factor on the learning rates of each epoch, see train/optim.py
    clip_grad_norm: Rate = 0.0  # 0 switches clipping off
    id_weight: Rate = 0.25
    triplet_weight: Rate = 1.0
    triplet_margin: Rate | None = None  # None: soft margin
    label_smoothing: Annotated[float, Number, Field(ge=0.0, lt=1.0)] = 0.1
    modality_dropout: Probability = 0.0  # that a training item loses some (never all) of its modalities
    precision: names.PrecisionSetting = "auto"
    device: names.DeviceName = "auto"
    compile: names.Automatic = "auto"  # torch.compile the blocks of the ViT; auto: on a GPU, where it saves time
    cuda_graph: names.Automatic = "auto"  # record a step as a CUDA graph and replay it; auto: where it saves time
    recompute_blocks: bool = False  # compute the ViT's blocks again in the backward pass: less memory, more time
    evaluate_every: Positive = 1  # evaluate every so many epochs
    checkpoint_every: Positive = 10  # save a state to resume from every so many epochs
    log_every: Positive = 10  # log every so many steps
    maps_every: NonNegative = 5  # log pictures of the selection every so many epochs and at the end; 0: never
    trackers: tuple[names.TrackerName, ...] = ("tensorboard",)  # in addition to metrics.jsonl

    @model_validator(mode="after")
    def _check_together(self) -> TrainConfig:
        rates = ("lr", "backbone_lr", "bias_lr_factor", "backbone_bias_lr_factor", "classifier_lr_factor")
        still = next((name for name in rates if getattr(self, name) == 0), None)
        absolute = next((name for name in ("warmup_from", "final_lr_from") if getattr(self, name) == "base"), None)
        if still and absolute:
            raise ValueError(
                f"train.{still}=0 freezes parameters, but train.{absolute}=base would train them at a share "
                f"of train.lr: use train.{absolute}=own, or a rate above 0"
            )
        return self


class EvaluateConfig(Section):
    """Evaluation of a model on query and gallery."""

    batch_size: Positive = 128
    normalise: bool = True  # L2-normalise features before the Euclidean distance
    centring: names.Centring = "none"  # first subtract the mean training feature, or that of each gallery camera
    adaptive_fusion: Power = 0.0  # of the weights that each query gives its spectra; 0: off
    missing: tuple[names.ModalityName, ...] = ()  # modalities withheld in the test
    missing_as: names.MissingAs = "absent"  # left out by the model, or replaced by an image of zeros
    rerank: bool = False  # also report re-ranked metrics at the end
    rerank_k1: Positive = 20
    rerank_k2: Positive = 6
    rerank_lambda: Probability = 0.3

    @model_validator(mode="after")
    def _check_together(self) -> EvaluateConfig:
        _check_modalities("evaluate.missing", self.missing)
        if self.rerank_k2 > self.rerank_k1:
            raise ValueError(
                f"evaluate.rerank_k2={self.rerank_k2} is larger than evaluate.rerank_k1={self.rerank_k1}: "
                "k2 may not be larger than k1"
            )
        if self.adaptive_fusion and (self.rerank or not self.normalise):
            other = "evaluate.rerank=true" if self.rerank else "evaluate.normalise=false"
            given = f"evaluate.adaptive_fusion={self.adaptive_fusion:g} weighs the cosines of the spectra"
            raise ValueError(f"{given}, and {other} ranks by other distances: use one of them")
        return self


class Config(Section):
    """One run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    output: Folder = Path("runs/run")

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        self._check_dense_epochs()
        used, withheld = self.data.modalities, self.evaluate.missing
        unused = [name for name in withheld if name not in used]
        if unused:
            raise ValueError(
                f"evaluate.missing withholds {unused[0]}, which data.modalities ({', '.join(used)}) does not use"
            )
        if len(withheld) == len(used):
            raise ValueError(f"evaluate.missing withholds all of data.modalities ({', '.join(used)}): leave one")
        self._check_cross_guidance()
        if self.train.triplet_weight > 0 and self.data.sampler != "random" and self.data.num_instances < 2:
            raise ValueError(
                "data.num_instances=1 leaves the triplet loss without positives: use 2 or more, "
                "or train.triplet_weight=0"
            )
        return self

    def _check_cross_guidance(self) -> None:
        """Refuse guidance by another modality if items may have only one."""
        index = next((place for place, cut in enumerate(self.model.slimming) if cut.guidance == "cross"), None)
        if index is None:
            return
        used, withheld = self.data.modalities, self.evaluate.missing
        alone = None
        if len(used) < 2:
            alone = f"data.modalities ({used[0]})"
        elif self.train.modality_dropout > 0:
            alone = f"train.modality_dropout={self.train.modality_dropout}"
        elif len(used) - len(withheld) < 2 and self.evaluate.missing_as == "absent":
            alone = f"evaluate.missing ({', '.join(withheld)})"
        if alone is not None:
            raise ValueError(
                f"model.slimming[{index}].guidance is cross, and {alone} leaves items with one modality, so no other "
                "can guide it: use guidance both, self or consensus"
            )

    def _check_dense_epochs(self) -> None:
        """Refuse dense epochs that fill the whole training, or in which the head lacks its scores."""
        dense = self.train.dense_epochs
        if dense and dense >= self.train.epochs:
            raise ValueError(
                f"train.dense_epochs={dense} leaves no epoch of train.epochs={self.train.epochs} with the cuts of "
                "model.slimming: lower it"
            )
        if dense and self.model.slimming and self.model.head == "sdtps" and self.model.sdtps.scoring == "cut":
            raise ValueError(
                f"train.dense_epochs={dense} makes no cut at first, but model.sdtps.scoring=cut needs its scores: use "
                "train.dense_epochs=0, or scoring=guided"
            )
