"""Upstream's files and keys: every key is mapped, accepted at what is done anyway, or refused with what to use."""

from pathlib import Path

import pytest
import yaml

from trireid.config.load import setting_paths
from trireid.errors import ConfigError
from trireid.upstream.configuration import load_upstream_yaml
from trireid.upstream.keys import KEYS
from trireid.upstream.wording import UPSTREAM_NAMES, in_upstream_names, in_upstream_words

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = ["RGBNT201/DeMo.yml", "RGBNT201/DeMo_SDTPS.yml", "RGBNT100/DeMo.yml", "MSVR310/DeMo.yml"]

# The settings of the fact sheet as its author lists them, to be sure that none is forgotten.
SPEC_KEYS = """
MODEL: DEVICE DEVICE_ID NAME PRETRAIN_PATH_T NECK IF_WITH_CENTER ID_LOSS_TYPE ID_LOSS_WEIGHT TRIPLET_LOSS_WEIGHT
 METRIC_LOSS_TYPE DIST_TRAIN PROMPT ADAPTER FROZEN HDM ATM USE_SDTPS SDTPS_SPARSE_RATIO SDTPS_AGGR_RATIO SDTPS_BETA
 SDTPS_USE_GUMBEL SDTPS_GUMBEL_TAU IF_LABELSMOOTH NO_MARGIN DIRECT DROP_PATH DROP_OUT ATT_DROP_RATE TRANSFORMER_TYPE
 STRIDE_SIZE GLOBAL_LOCAL HEAD SIE_COE SIE_CAMERA SIE_VIEW
INPUT: SIZE_TRAIN SIZE_TEST PROB RE_PROB PIXEL_MEAN PIXEL_STD PADDING
DATASETS: NAMES ROOT_DIR
DATALOADER: NUM_WORKERS SAMPLER NUM_INSTANCE
SOLVER: OPTIMIZER_NAME MAX_EPOCHS BASE_LR LARGE_FC_LR BIAS_LR_FACTOR MOMENTUM MARGIN WEIGHT_DECAY WEIGHT_DECAY_BIAS
 GAMMA STEPS WARMUP_FACTOR WARMUP_ITERS WARMUP_METHOD SEED CHECKPOINT_PERIOD LOG_PERIOD EVAL_PERIOD IMS_PER_BATCH
TEST: IMS_PER_BATCH RE_RANKING WEIGHT NECK_FEAT FEAT_NORM MISS
"""


def spec_keys():
    for block in SPEC_KEYS.replace("\n ", " ").strip().splitlines():
        section, _, names = block.partition(":")
        yield from (f"{section}.{name}" for name in names.split())
    yield "OUTPUT_DIR"


def load(*overrides, file="RGBNT201/DeMo.yml"):
    return load_upstream_yaml(CONFIGS / file, overrides)


def setting(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def error_of(*overrides, file="RGBNT201/DeMo.yml"):
    with pytest.raises(ConfigError) as caught:
        load(*overrides, file=file)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def bare(tmp_path):
    """A file that sets one harmless key, so that all others have upstream's defaults."""
    path = tmp_path / "bare.yml"
    path.write_text("MODEL:\n  NAME: 'DeMo'\n")
    return path


def test_every_setting_of_the_fact_sheet_is_known():
    assert set(spec_keys()) <= set(KEYS)


# key, value on the command line, our setting, our value
MAPPED = [
    ("MODEL.DEVICE", "cpu", "train.device", "cpu"),
    ("MODEL.DEVICE", "cuda", "train.device", "cuda"),
    ("MODEL.PRETRAIN_PATH_T", "/w/clip.safetensors", "model.backbone.pretrained", "/w/clip.safetensors"),
    ("MODEL.PRETRAIN_PATH_T", "none", "model.backbone.pretrained", "none"),
    ("MODEL.ID_LOSS_WEIGHT", "0.5", "train.id_weight", 0.5),
    ("MODEL.TRIPLET_LOSS_WEIGHT", "2", "train.triplet_weight", 2.0),
    ("MODEL.ATM", "False", "model.head", "hdm"),
    ("MODEL.IF_LABELSMOOTH", "off", "train.label_smoothing", 0.0),
    ("MODEL.IF_LABELSMOOTH", "'on'", "train.label_smoothing", 0.1),
    ("MODEL.DIRECT", "0", "model.global_classifier", "separate"),
    ("MODEL.GLOBAL_LOCAL", "False", "model.pife", False),
    ("MODEL.GLOBAL_LOCAL", "no", "model.pife", False),
    ("MODEL.GLOBAL_LOCAL", "yes", "model.pife", True),
    ("MODEL.HEAD", "16", "model.atmoe_heads", 16),
    ("MODEL.SIE_COE", "2.5", "model.sie_coefficient", 2.5),
    ("MODEL.SIE_CAMERA", "False", "model.sie_coefficient", 0.0),
    ("MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224", "model.backbone.name", "vit_b16"),
    ("MODEL.SDTPS_SPARSE_RATIO", "0.7", "model.sdtps.sparse_ratio", 0.7),
    ("MODEL.SDTPS_AGGR_RATIO", "0.3", "model.sdtps.aggr_ratio", 0.3),
    ("MODEL.SDTPS_BETA", "0.1", "model.sdtps.beta", 0.1),
    ("MODEL.SDTPS_USE_GUMBEL", "True", "model.sdtps.use_gumbel", True),
    ("MODEL.SDTPS_GUMBEL_TAU", "5", "model.sdtps.gumbel_tau", 5.0),
    ("INPUT.PROB", "0", "data.augmentation.flip", 0.0),
    ("INPUT.RE_PROB", "0.25", "data.augmentation.erasing", 0.25),
    ("INPUT.PADDING", "4", "data.augmentation.padding", 4),
    ("INPUT.PIXEL_MEAN", "[0.4, 0.5, 0.6]", "data.mean", (0.4, 0.5, 0.6)),
    ("INPUT.PIXEL_STD", "(0.2, 0.2, 0.3)", "data.std", (0.2, 0.2, 0.3)),
    ("DATASETS.NAMES", "('MSVR310')", "data.format", "msvr310"),
    ("DATASETS.NAMES", "('RGBNT100',)", "data.format", "rgbnt100"),
    ("DATASETS.NAMES", "WMVeID863", "data.root", Path("../WMVeID863")),
    ("DATASETS.ROOT_DIR", "/sets", "data.root", Path("/sets/RGBNT201")),
    ("DATALOADER.NUM_WORKERS", "0", "data.workers", 0),
    ("DATALOADER.SAMPLER", "softmax", "data.sampler", "random"),
    ("DATALOADER.SAMPLER", "softmax", "train.triplet_weight", 0.0),
    ("DATALOADER.NUM_INSTANCE", "4", "data.num_instances", 4),
    ("SOLVER.OPTIMIZER_NAME", "SGD", "train.optimizer", "sgd"),
    ("SOLVER.OPTIMIZER_NAME", "AdamW", "train.optimizer", "adamw"),
    ("SOLVER.MAX_EPOCHS", "60", "train.epochs", 60),
    ("SOLVER.BASE_LR", "1e-3", "train.lr", 1e-3),
    ("SOLVER.LARGE_FC_LR", "True", "train.classifier_lr_factor", 2.0),
    ("SOLVER.BIAS_LR_FACTOR", "1", "train.bias_lr_factor", 1.0),
    ("SOLVER.MOMENTUM", "0.8", "train.momentum", 0.8),
    ("SOLVER.WARMUP_ITERS", "5", "train.warmup_epochs", 5),
    ("SOLVER.SEED", "7", "train.seed", 7),
    ("SOLVER.CHECKPOINT_PERIOD", "3", "train.checkpoint_every", 3),
    ("SOLVER.LOG_PERIOD", "20", "train.log_every", 20),
    ("SOLVER.EVAL_PERIOD", "2", "train.evaluate_every", 2),
    ("SOLVER.IMS_PER_BATCH", "32", "data.batch_size", 32),
    ("TEST.IMS_PER_BATCH", "32", "evaluate.batch_size", 32),
    ("TEST.RE_RANKING", "yes", "evaluate.rerank", True),
    ("TEST.FEAT_NORM", "no", "evaluate.normalise", False),
    ("TEST.MISS", "nothing", "evaluate.missing", ()),
    ("TEST.MISS", "None", "evaluate.missing", ()),
    ("TEST.MISS", "r", "evaluate.missing", ("rgb",)),
    ("TEST.MISS", "rt", "evaluate.missing", ("rgb", "tir")),
    ("TEST.MISS", "tn", "evaluate.missing", ("nir", "tir")),
    ("OUTPUT_DIR", "/runs/a", "output", Path("/runs/a")),
]


@pytest.mark.parametrize(("key", "value", "target", "ours"), MAPPED)
def test_a_key_with_a_meaning_here_is_mapped(key, value, target, ours):
    assert setting(load(key, value).config, target) == ours


# values that change several keys at once, or need company: overrides -> our settings
TOGETHER = [
    (["MODEL.HDM", "False", "MODEL.ATM", "False"], {"model.head": "none"}),
    (["MODEL.HDM", "False", "MODEL.ATM", "False", "MODEL.USE_SDTPS", "True"], {"model.head": "sdtps"}),
    (["MODEL.NO_MARGIN", "False"], {"train.triplet_margin": 0.3}),
    (["MODEL.NO_MARGIN", "False", "SOLVER.MARGIN", "0.5"], {"train.triplet_margin": 0.5}),
    (["SOLVER.WEIGHT_DECAY", "0.01", "SOLVER.WEIGHT_DECAY_BIAS", "0.01"], {"train.weight_decay": 0.01}),
    (
        ["INPUT.SIZE_TRAIN", "[128, 64]", "INPUT.SIZE_TEST", "(128, 64)"],
        {"data.image_size": (128, 64)},
    ),
    (
        ["MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224", "MODEL.DROP_PATH", "0.2"],
        {
            "model.backbone.drop_path": 0.2,
            "train.backbone_lr": pytest.approx(0.8 * 3.5e-4),
            "train.backbone_bias_lr_factor": 1.0,
            "train.camera_lr_from": "backbone",
            "model.sie_tokens": "all",
            "model.hdm_head_width": 64,
        },
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), TOGETHER)
def test_keys_that_mean_something_together(overrides, expected):
    config = load(*overrides).config
    assert {path: setting(config, path) for path in expected} == expected


# key, the only value that is accepted, another one, a word of what to use instead
FIXED = [
    ("MODEL.DEVICE_ID", "('0')", "('1')", "CUDA_VISIBLE_DEVICES"),
    ("MODEL.NAME", "DeMo", "TOPReID", "USE_SDTPS"),
    ("MODEL.NECK", "bnneck", "no", "BNNeck is always used"),
    ("MODEL.IF_WITH_CENTER", "no", "yes", "no centre loss"),
    ("MODEL.ID_LOSS_TYPE", "softmax", "arcface", "cross-entropy"),
    ("MODEL.METRIC_LOSS_TYPE", "triplet", "center", "triplet"),
    ("MODEL.DIST_TRAIN", "False", "True", "accelerate launch"),
    ("MODEL.PROMPT", "False", "True", "not supported"),
    ("MODEL.ADAPTER", "False", "True", "not supported"),
    ("MODEL.FROZEN", "False", "True", "train.backbone_lr=0"),
    ("MODEL.DROP_OUT", "0.0", "0.1", "no dropout"),
    ("MODEL.ATT_DROP_RATE", "0.0", "0.1", "no attention dropout"),
    ("MODEL.DROP_PATH", "0.1", "0.3", "model.backbone.drop_path"),
    ("MODEL.STRIDE_SIZE", "[16, 16]", "[12, 12]", "stride is the patch size"),
    ("MODEL.SIE_VIEW", "False", "True", "SIE_CAMERA"),
    ("SOLVER.GAMMA", "0.1", "0.5", "never reads it"),
    ("SOLVER.STEPS", "(40, 70)", "(10, 20)", "never reads it"),
    ("SOLVER.WARMUP_FACTOR", "0.01", "0.2", "train.warmup_factor"),
    ("SOLVER.WARMUP_METHOD", "linear", "constant", "never reads it"),
    ("SOLVER.CENTER_LR", "0.5", "1.0", "never reads it"),
    ("SOLVER.CENTER_LOSS_WEIGHT", "0.0005", "1.0", "never reads it"),
    ("SOLVER.CLUSTER_MARGIN", "0.3", "1.0", "never reads it"),
    ("SOLVER.RANGE_K", "2", "3", "never reads it"),
    ("SOLVER.RANGE_MARGIN", "0.3", "1.0", "never reads it"),
    ("SOLVER.RANGE_ALPHA", "0", "1", "never reads it"),
    ("SOLVER.RANGE_BETA", "1", "2", "never reads it"),
    ("SOLVER.RANGE_LOSS_WEIGHT", "1", "2", "never reads it"),
    ("SOLVER.COSINE_MARGIN", "0.5", "1.0", "never reads it"),
    ("SOLVER.COSINE_SCALE", "30", "20", "never reads it"),
    ("SOLVER.WEIGHT_DECAY_BIAS", "0.0001", "0.01", "set both"),
    ("SOLVER.MARGIN", "0.3", "0.5", "MODEL.NO_MARGIN False"),
    ("INPUT.SIZE_TEST", "[256, 128]", "[128, 64]", "set both"),
    ("TEST.NECK_FEAT", "before", "after", "before BNNeck"),
    ("MODEL.HDM", "True", "False", "MODEL.HDM True as well"),
    ("MODEL.USE_SDTPS", "False", "True", "use either"),
    ("MODEL.TRANSFORMER_TYPE", "ViT-B-16", "t2t_vit", "model.backbone.name"),
    ("MODEL.DEVICE", "cuda", "mps", "cuda or cpu"),
    ("MODEL.DIRECT", "1", "2", "1 or 0"),
    ("DATASETS.NAMES", "RGBNT201", "market1501", "data.format=csv"),
    ("DATALOADER.SAMPLER", "softmax_triplet", "triplet", "softmax_triplet or softmax"),
    ("SOLVER.OPTIMIZER_NAME", "Adam", "RMSprop", "Adam, AdamW or SGD"),
    ("TEST.MISS", "nt", "rnt", "r, n, t, rn, rt, nt"),
]


@pytest.mark.parametrize(("key", "accepted", "refused", "advice"), FIXED)
def test_a_value_without_a_meaning_here_is_refused_with_what_to_use(key, accepted, refused, advice):
    load(key, accepted)
    message = error_of(key, refused)
    assert key in message
    assert advice in message


def test_every_known_key_is_in_one_of_the_tables_above():
    tested = {key for key, *_ in MAPPED} | {key for key, *_ in FIXED} | {"TEST.WEIGHT"}
    tested |= {name for overrides, _ in TOGETHER for name in overrides[::2]}
    assert tested == set(KEYS)


def test_the_weight_to_test_is_handed_on():
    assert load("TEST.WEIGHT", "runs/a/best.safetensors").weight == "runs/a/best.safetensors"
    assert load().weight == ""


@pytest.mark.parametrize("file", FILES)
def test_upstreams_files_load(file):
    load(file=file)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("RGBNT201/DeMo.yml", ("rgbnt201", (256, 128), "joint", 4, 64, 8, 128, 50, 10, "hdm_atmoe")),
        ("RGBNT201/DeMo_SDTPS.yml", ("rgbnt201", (256, 128), "joint", 4, 8, 4, 16, 50, 10, "sdtps")),
        ("RGBNT100/DeMo.yml", ("rgbnt100", (128, 256), "separate", 8, 128, 16, 128, 30, 5, "hdm_atmoe")),
        ("MSVR310/DeMo.yml", ("msvr310", (128, 256), "separate", 8, 64, 4, 64, 50, 10, "hdm_atmoe")),
    ],
)
def test_upstreams_files_say_what_the_fact_sheet_says(file, expected):
    config = load(file=file).config
    data, model, train = config.data, config.model, config.train
    found = (data.format, data.image_size, model.global_classifier, model.atmoe_heads, data.batch_size)
    found += (data.num_instances, config.evaluate.batch_size, train.epochs, train.warmup_epochs, model.head)
    assert found == expected
    assert (train.optimizer, train.lr, train.backbone_lr, train.id_weight) == ("adam", 3.5e-4, 5e-6, 0.25)
    assert (model.backbone.name, model.backbone.pretrained, model.sie_coefficient) == ("clip_vit_b16", "timm", 1.0)
    assert (train.triplet_margin, train.label_smoothing, train.warmup_factor) == (None, 0.1, 0.1)
    assert model.pife


def test_the_sdtps_file_is_the_reference_preset_with_gumbel():
    settings = load(file="RGBNT201/DeMo_SDTPS.yml").config.model.sdtps
    found = (settings.preset, settings.sparse_ratio, settings.aggr_ratio, settings.beta)
    assert (*found, settings.use_gumbel, settings.gumbel_tau) == ("reference", 0.5, 0.4, 0.25, True, 1.0)


@pytest.mark.parametrize(
    ("line", "names", "words"),
    [
        ("give data.root=x, or output=runs/a.", "give DATASETS.ROOT_DIR=x, or OUTPUT_DIR=runs/a.", None),
        ("see runs/data.root and metrics.json", "see runs/data.root and metrics.json", None),
        ("train.precision=fp32", "train.precision=fp32", "train.precision fp32"),
        ("data.image_size=[8, 4];", "INPUT.SIZE_TRAIN=[8, 4];", None),
        ("use model.head=hdm_atmoe", "use MODEL.HDM=hdm_atmoe", "use MODEL.HDM True MODEL.ATM True"),
        ("(model.global_classifier=separate)", "(MODEL.DIRECT=separate)", "(MODEL.DIRECT 0)"),
    ],
)
def test_messages_are_put_into_upstreams_words(line, names, words):
    assert in_upstream_names(line) == names
    assert in_upstream_words(line) == (names.replace("=", " ") if words is None else words)


@pytest.mark.parametrize(("given", "meant"), [("none", "none"), ("None", "none"), ("timm", "timm"), ("a.pt", "a.pt")])
def test_no_start_weights_are_asked_for_in_any_case(given, meant):
    assert load("MODEL.PRETRAIN_PATH_T", given).config.model.backbone.pretrained == meant


@pytest.mark.parametrize(("path", "key"), sorted(UPSTREAM_NAMES.items()))
def test_a_setting_that_a_key_sets_is_refused_by_the_name_of_the_key(path, key):
    """One that no key sets can be given itself."""
    assert path in setting_paths()
    with pytest.raises(ConfigError, match=f"{path} is one of trireid's own settings; upstream's key for it is {key}"):
        load(path, "1")


def test_absent_keys_have_upstreams_defaults_not_ours(bare):
    config = load_upstream_yaml(bare).config
    assert (config.model.sie_coefficient, config.model.atmoe_heads, config.model.pife) == (3.0, 12, False)
    assert (config.model.backbone.name, config.model.head) == ("vit_b16", "none")
    assert config.model.backbone.drop_path == 0.1
    assert (config.train.optimizer, config.train.lr, config.train.epochs) == ("sgd", 0.009, 120)
    assert (config.train.id_weight, config.train.triplet_weight) == (1.0, 1.0)
    assert (config.data.batch_size, config.data.num_instances, config.data.workers) == (128, 16, 14)
    assert (config.evaluate.batch_size, config.train.device) == (256, "auto")
    assert (config.data.root, config.output) == (Path("data/RGBNT201"), Path("test"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SDTPS_GUMBEL", "True"], "the nearest is MODEL.SDTPS_USE_GUMBEL"),
        (["SOLVER.BATCH_SIZE", "8"], "unknown upstream setting SOLVER.BATCH_SIZE"),
        (["MAX_EPOCHS", "8"], "the nearest is SOLVER.MAX_EPOCHS"),
        (["model.hdm", "True"], "the nearest is MODEL.HDM"),
        (["train.epochs", "3"], "trireid's own settings"),
        (["train.epochs=3", "x"], "trireid's own settings"),
        (["SOLVER", "3"], "SOLVER is a section"),
        (["MODEL.HDM"], "left over"),
        (["MODEL.HDM", "perhaps"], "MODEL.HDM: given 'perhaps', should be True or False"),
        (["SOLVER.MAX_EPOCHS", "ten"], "SOLVER.MAX_EPOCHS: given 'ten', should be a whole number"),
        (["SOLVER.MAX_EPOCHS", "1e999"], "SOLVER.MAX_EPOCHS"),
        (["SOLVER.BASE_LR", "True"], "SOLVER.BASE_LR: given True, should be a number"),
        (["INPUT.SIZE_TRAIN", "256"], "INPUT.SIZE_TRAIN: given 256, should be 2 numbers"),
        (["DATASETS.NAMES", "('RGBNT201', 'MSVR310')"], "should be a single text"),
        (["SOLVER.MAX_EPOCHS", "0"], "SOLVER.MAX_EPOCHS: given 0, should be greater than 0"),
        (["SOLVER.IMS_PER_BATCH", "7"], "SOLVER.IMS_PER_BATCH=7 is not a multiple of DATALOADER.NUM_INSTANCE=8"),
        (["MODEL.SDTPS_BETA", "0.9"], "MODEL.SDTPS_BETA: given 0.9"),
    ],
)
def test_mistakes_are_one_line_in_the_users_own_words(overrides, message):
    assert message in error_of(*overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  HMD: True\n", "the nearest is MODEL.HDM"),
        ("MODELS:\n  HDM: True\nMODEL:\n  HDM: True\n", "unknown upstream setting MODELS.HDM"),
        ("MODEL: 3\n", "MODEL is a section"),
        ("data:\n  format: csv\n", "trireid train --config"),
        ("MODEL:\n  HDM: True\n  HDM: False\n", "HDM is given twice"),
    ],
)
def test_files_with_mistakes_are_refused_with_their_name(tmp_path, text, message):
    path = tmp_path / "run.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="run.yml") as caught:
        load_upstream_yaml(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("word", ["no", "'no'", "off", "False", '"False"'])
def test_string_switches_are_truth_values(tmp_path, word):
    path = tmp_path / "run.yml"
    path.write_text(f"TEST:\n  RE_RANKING: {word}\n  FEAT_NORM: {word}\nMODEL:\n  IF_LABELSMOOTH: {word}\n")
    config = load_upstream_yaml(path).config
    assert (config.evaluate.rerank, config.evaluate.normalise, config.train.label_smoothing) == (False, False, 0.0)


def test_a_root_that_is_the_data_set_itself_is_read_and_said(tmp_path):
    (tmp_path / "train_171").mkdir()
    settings = load("DATASETS.ROOT_DIR", str(tmp_path))
    assert settings.config.data.root == tmp_path
    assert any(str(tmp_path) in note for note in settings.notes)
    (tmp_path / "RGBNT201").mkdir()
    assert load("DATASETS.ROOT_DIR", str(tmp_path)).config.data.root == tmp_path / "RGBNT201"


@pytest.mark.parametrize("folder", ["..", ".", "../.."])
def test_an_output_folder_that_is_no_run_folder_gets_one_inside_and_it_is_said(folder):
    settings = load("OUTPUT_DIR", folder, file="RGBNT201/DeMo_SDTPS.yml")
    assert settings.config.output == Path(folder) / "RGBNT201-DeMo_SDTPS"
    assert any("RGBNT201-DeMo_SDTPS" in note for note in settings.notes)


def test_what_differs_from_upstream_on_purpose_is_said_in_one_line():
    first = load().notes[0]
    assert "\n" not in first
    assert "flip and crop are drawn once per triplet" in first
    assert load().config.data.augmentation.shared_geometry


def test_reranking_is_said_because_upstream_never_reads_it():
    assert any("RE_RANKING" in note for note in load("TEST.RE_RANKING", "yes").notes)
    assert not any("RE_RANKING" in note for note in load().notes)


@pytest.mark.parametrize("file", FILES)
def test_the_files_hold_upstreams_keys_only(file):
    tree = yaml.safe_load((CONFIGS / file).read_text())
    names = {f"{section}.{key}" for section, keys in tree.items() if isinstance(keys, dict) for key in keys}
    assert names | {"OUTPUT_DIR"} <= set(spec_keys())
