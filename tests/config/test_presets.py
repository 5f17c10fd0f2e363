"""The `parity` preset: what it sets, what wins over it, and that nothing of it is left unresolved."""

from pathlib import Path

import pytest

from trireid.config.load import dump_config, load_config, override_config, setting_paths
from trireid.config.presets import PRESETS, UPSTREAM_CODE, preset_settings
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.models.sdtps import SPARSE_RATIOS
from trireid.upstream.configuration import load_upstream_yaml
from trireid.upstream.rules import ALWAYS

CONFIGS = Path(__file__).parents[2] / "configs"
PARITY = PRESETS["parity"]
OURS = ["rgbnt201/hdm_atmoe.yaml", "rgbnt201/sdtps.yaml", "rgbnt100/sdtps.yaml", "msvr310/sdtps.yaml"]
UPSTREAM = ["RGBNT201/DeMo.yml", "RGBNT201/DeMo_SDTPS.yml", "RGBNT100/DeMo.yml", "MSVR310/DeMo.yml"]
SWITCHES = {
    "data.sampler": ("identity", "uniform_identity"),
    "data.augmentation.shared_geometry": (True, False),
    "model.backbone.position_interpolation": ("bicubic", "bilinear"),
    "model.hdm_head_width": (None, 64),
    "model.hdm_query": ("unit", "scaled"),
    "train.backbone_bias_lr_factor": (None, 1.0),
    "train.warmup_from": ("own", "base"),
    "train.final_lr_from": ("own", "base"),
    "train.cosine_under_warmup": (False, True),
    "train.lr_noise": (False, True),
    "train.precision": ("auto", "fp16"),
    "evaluate.missing_as": ("absent", "zeros"),
}


def value_of(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_every_name_is_a_setting():
    assert set(PARITY) <= set(setting_paths())


def test_what_differs_from_the_defaults_is_this_and_nothing_else():
    found = {
        path: (value_of(Config(), path), value) for path, value in PARITY.items() if value_of(Config(), path) != value
    }
    assert found == SWITCHES


@pytest.mark.parametrize("file", OURS)
def test_every_shipped_file_can_be_run_as_upstream_does(file):
    plain, parity = load_config(CONFIGS / "trireid" / file), load_config(CONFIGS / "trireid" / file, ["preset=parity"])
    assert {path: value_of(parity, path) for path in PARITY} == PARITY
    assert {path for path in setting_paths() if value_of(plain, path) != value_of(parity, path)} == SWITCHES.keys()


@pytest.mark.parametrize("file", UPSTREAM)
def test_the_doors_take_it_too(file):
    plain = load_upstream_yaml(CONFIGS / file).config
    settings = load_upstream_yaml(CONFIGS / file, parity=True)
    assert {path: value_of(settings.config, path) for path in PARITY} == PARITY
    changed = {path for path in setting_paths() if value_of(plain, path) != value_of(settings.config, path)}
    assert changed == SWITCHES.keys() - set(ALWAYS)
    assert settings.notes[0].startswith("--parity, as upstream's code")
    assert "--parity" in load_upstream_yaml(CONFIGS / file).notes[0]


def test_the_doors_keep_what_upstreams_keys_say():
    overrides = ["DATALOADER.SAMPLER", "softmax", "MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", "0.001"]
    config = load_upstream_yaml(CONFIGS / UPSTREAM[0], overrides, parity=True).config
    assert (config.data.sampler, config.train.precision, config.train.lr) == ("random", "auto", 0.001)
    assert config.train.warmup_from == "base"


def test_both_ways_give_the_same_run():
    ours = load_config(CONFIGS / "trireid" / "rgbnt201/parity.yaml")
    theirs = load_upstream_yaml(CONFIGS / "RGBNT201/DeMo.yml", parity=True).config
    different = {path for path in setting_paths() if value_of(ours, path) != value_of(theirs, path)}
    # No ratio is the reference preset's, and that is upstream's default, which the doors write out.
    assert (ours.model.sdtps.sparse_ratio, theirs.model.sdtps.sparse_ratio) == (None, SPARSE_RATIOS["reference"])
    assert different == {"data.root", "data.workers", "output", "model.sdtps.sparse_ratio"}


def test_a_file_wins_over_its_preset_and_an_override_over_both(tmp_path):
    path = write(tmp_path, "preset: parity\ntrain:\n  lr_noise: false\n  optimizer: adamw\n")
    config = load_config(path, ["train.optimizer=sgd"])
    assert (config.train.lr_noise, config.train.optimizer, config.train.warmup_from) == (False, "sgd", "base")


def test_the_last_preset_wins(tmp_path):
    path = write(tmp_path, "preset: parity\n")
    assert load_config(path, ["preset=none"]) == Config()
    assert load_config(path, ["preset=none", "preset=parity"]) == load_config(path) != Config()


def test_a_section_without_settings_is_still_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: train is a section, given 3"):
        load_config(write(tmp_path, "preset: parity\ntrain: 3\n"))


def test_the_resolved_settings_name_every_switch_and_read_back_equal(tmp_path):
    config = load_config(CONFIGS / "trireid" / OURS[0], ["preset=parity"])
    text = dump_config(config)
    assert "preset: parity" not in text
    assert "lr_noise: true" in text
    assert load_config(write(tmp_path, text)) == config


@pytest.mark.parametrize(
    ("preset", "message"),
    [("parti", "the nearest is parity"), ("[a]", "allowed is none or parity"), ("true", "given True")],
)
def test_an_unknown_preset_is_one_line(tmp_path, preset, message):
    for arguments, place in (
        ((None, [f"preset={preset}"]), "override"),
        ((write(tmp_path, f"preset: {preset}"),), "run"),
    ):
        with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
            load_config(*arguments)
        assert place in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_empty_preset_is_none(tmp_path):
    assert load_config(write(tmp_path, "preset:\noutput: runs/run\n")) == Config()
    assert preset_settings("none") == {}


def test_a_resolved_configuration_takes_single_switches_only():
    with pytest.raises(ConfigError, match=r"preset=parity'.*here all are set; .*missing_as"):
        override_config(Config(), ["preset=parity"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.warmup_from=bas", "the nearest is base"),
        ("data.sampler=uniform", "data.sampler: given 'uniform'"),
        ("train.lr_noise=0.67", "should be true or false"),
        ("evaluate.missing_as=zero", "the nearest is zeros"),
        ("model.backbone.position_interpolation=nearest", "should be 'bilinear' or 'bicubic'"),
    ],
)
def test_a_wrong_value_of_a_switch_is_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rate", ["lr", "backbone_lr", "bias_lr_factor", "backbone_bias_lr_factor", "classifier_lr_factor"]
)
def test_a_rate_of_zero_cannot_warm_up_from_the_base_rate(rate):
    with pytest.raises(ConfigError, match=f"train.{rate}=0 freezes parameters, but train.warmup_from=base"):
        load_config(None, ["preset=parity", f"train.{rate}=0"])
    load_config(None, [f"train.{rate}=0"])


@pytest.mark.parametrize("path", ["data.batch_size=60", "data.num_instances=64", "data.num_instances=1"])
def test_the_sampler_of_upstream_has_the_bounds_of_ours(path):
    with pytest.raises(ConfigError):
        load_config(None, ["data.sampler=uniform_identity", path])


def test_upstreams_code_is_no_setting_of_upstream():
    assert "train.lr" not in UPSTREAM_CODE  # SOLVER.BASE_LR


def test_the_imagenet_tower_wants_its_own_rate_and_drop_path(tmp_path):
    tower, rate = "model.backbone.name=vit_b16", "train.backbone_lr=2.8e-4"
    for overrides in ([], [rate]):
        with pytest.raises(
            ConfigError, match=r"for vit_b16 also give (train.backbone_lr and )?model.backbone.drop_path"
        ):
            load_config(None, ["preset=parity", tower, *overrides])
    path = write(tmp_path, "preset: parity\nmodel:\n  backbone:\n    name: vit_b16\n    drop_path: 0.1\n")
    with pytest.raises(ConfigError, match=r"for vit_b16 also give train.backbone_lr \("):
        load_config(path)
    config = load_config(path, [rate])
    assert (config.train.backbone_lr, config.model.backbone.drop_path) == (2.8e-4, 0.1)
    assert (config.model.sie_tokens, config.train.camera_lr_from) == ("all", "backbone")
    own = load_config(path, [rate, "model.sie_tokens=cls"])
    assert (own.model.sie_tokens, own.train.camera_lr_from) == ("cls", "backbone")
    clip = load_config(None, ["preset=parity"])
    assert (clip.model.sie_tokens, clip.train.camera_lr_from) == ("cls", "base")
