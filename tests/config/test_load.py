"""Settings from YAML and overrides: what loads, and the one line for each thing that does not."""

import re
from pathlib import Path

import pytest
import yaml

from trireid.config.load import (
    advice,
    dump_changes,
    dump_config,
    load_config,
    nearest_setting,
    override_config,
    setting_paths,
)
from trireid.config.schema import Config
from trireid.errors import ConfigError

OURS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("trireid/*/*.yaml"))

CROSS = "model.slimming=[{after_block: 1, keep_ratio: 0.5}, {after_block: 2, keep_ratio: 0.5, guidance: cross}]"


def error_of(*overrides, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_defaults_are_given():
    assert load_config() == Config()


def test_a_file_and_overrides_are_put_together_and_the_last_one_wins(tmp_path):
    path = write(tmp_path, "train:\n  epochs: 7\n  lr: 1e-3\ndata:\n  image_size: [64, 32]\n")
    config = load_config(path, ["train.epochs=8", "train.epochs=9", "data.modalities=[rgb, tir]"])
    assert (config.train.epochs, config.train.lr) == (9, 1e-3)
    assert (config.data.image_size, config.data.modalities) == ((64, 32), ("rgb", "tir"))
    assert config.model == Config().model


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("train.lr=1e-4", "train", "lr", 1e-4),
        ("train.triplet_margin=0.3", "train", "triplet_margin", 0.3),
        ("train.triplet_margin=", "train", "triplet_margin", None),
        ("train.triplet_margin=null", "train", "triplet_margin", None),
        ("evaluate.rerank=true", "evaluate", "rerank", True),
        ("evaluate.missing=[rgb, nir]", "evaluate", "missing", ("rgb", "nir")),
        ("data.root=a=b", "data", "root", Path("a=b")),
        ("data.root=~/sets", "data", "root", Path.home() / "sets"),
    ],
)
def test_values_are_typed_as_yaml(override, section, name, value):
    assert getattr(getattr(load_config(None, [override]), section), name) == value


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("train.epoch", "train.epochs"),
        ("epochs", "train.epochs"),
        ("train.batch_size", "data.batch_size"),
        ("evaluate.batchsize", "evaluate.batch_size"),
        ("model.backbone.names", "model.backbone.name"),
        ("Train.Epochs", "train.epochs"),
        ("data.augmentation.erase", "data.augmentation.erasing"),
        ("model.sdtps.spec", "model.sdtps.spectrum_weight"),
    ],
)
def test_an_unknown_override_names_the_nearest_setting(given, nearest):
    assert error_of(f"{given}=1") == f"unknown setting {given}; the nearest is {nearest}"


def test_an_unknown_key_in_a_file_names_the_file_and_the_nearest_setting(tmp_path):
    path = write(tmp_path, "data:\n  augmentation:\n    flipp: 0.5\n")
    assert error_of(path=path) == (
        f"{path}: unknown setting data.augmentation.flipp; the nearest is data.augmentation.flip"
    )


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ("[{after_block: 1}]", "model.slimming.0.keep_ratio is not given, and has no default"),
        (
            "[{after_block: 1, keep_ratio: 1, x: 2}]",
            "the settings of a cut are after_block, keep_ratio, guidance, dropped",
        ),
        ("[{after_block: 1, keep_ratio: 1, guidance: cls}]", "; the nearest is cls_attention"),
        ("[{after_block: 1, keep_ratio: 1, keep: 1}]", "slimming.0.keep; the nearest is keep_ratio; the settings of a"),
        ("[3]", "given 3; give its settings, for example model.slimming.0.after_block"),
        ("{after_block: 1, keep_ratio: 1}", "should be a list such as [{after_block: 4, keep_ratio: 0.5}]"),
    ],
)
def test_a_mistake_in_a_cut_is_told_by_the_settings_of_a_cut(cuts, said):
    assert said in error_of(f"model.slimming={cuts}")


def test_an_unknown_key_of_a_cut_comes_before_what_is_missing_for_it():
    unknown, missing = error_of("model.slimming=[{block: 1, keep_ratio: 0.5}]").splitlines()
    assert "unknown setting model.slimming.0.block; the nearest is after_block; " in unknown
    assert missing.endswith("model.slimming.0.after_block is not given, and has no default")
    assert "give the whole list, such as model.slimming=[{" in error_of("model.slimming.0.keep_ratio=0.5")


def test_every_list_is_told_by_one_that_its_setting_may_hold():
    lists = 0
    for path in setting_paths():
        try:
            load_config(None, [f"{path}=0"])
        except ConfigError as error:
            if found := re.search(r"should be a list such as (\[.*\])$", str(error)):
                load_config(None, [f"{path}={found[1]}"])
                lists += 1
    assert lists == 10


def test_a_key_like_no_other_gets_the_sections():
    assert error_of("zzz=1") == "unknown setting zzz; the sections are data, model, train, evaluate, output"
    assert nearest_setting("qqqqqq", ["train.epochs"]) is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epochs=0", ("train.epochs", "0", "greater than 0")),
        ("train.epochs=many", ("train.epochs", "'many'", "whole number")),
        ("train.epochs=2.5", ("train.epochs", "2.5", "whole number")),
        ("train.epochs=true", ("train.epochs", "True", "number, not true or false")),
        ("train.lr=.nan", ("train.lr", "nan", "finite")),
        ("train.lr=.inf", ("train.lr", "inf", "finite")),
        ("data.format=rgbnt200", ("data.format", "'rgbnt200'", "msvr310", "the nearest is rgbnt201")),
        ("data.image_size=[256]", ("data.image_size", "too few")),
        ("data.image_size=[256, 128, 3]", ("data.image_size", "too many")),
        ("data.std=[0.5, 0, 0.5]", ("data.std: given 0 in place 2 of the list", "greater than 0")),
        ("model.sdtps.cells=[0, 2]", ("model.sdtps.cells: given 0 in place 1 of the list", "greater than 0")),
        ("model.sdtps.cells=[]", ("model.sdtps.cells: given []", "too few values for a list such as [4, 2]")),
        ("data.range.tir=[a, 1]", ("data.range.tir: given ['a', 1], should be auto, file or two values",)),
        ("evaluate.missing=rgb", ("evaluate.missing", "'rgb'", "list such as [rgb, nir]")),
        ("data.skip_bad=maybe", ("data.skip_bad", "'maybe'", "true or false")),
        ("model.backbone.pretrained=", ("model.backbone.pretrained", "None", "text")),
        ("train.lr", ("'train.lr'", "no value", "train.epochs=5")),
        ("train=5", ("train is a section", "train.epochs=")),
        ("data.image_size=[1", ("data.image_size=[1", "line 1")),
    ],
)
def test_a_wrong_value_names_setting_value_and_what_is_allowed_in_one_line(override, parts):
    message = error_of(override)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.batch_size=7"], ("data.batch_size=7", "multiple of data.num_instances=8")),
        (["data.batch_size=8"], ("1 identity in a batch", "at least 2")),
        (["data.batch_size=1", "data.sampler=random"], ("data.batch_size=1", "BatchNorm", "use 2 or more")),
        (["data.num_instances=1"], ("data.num_instances=1", "triplet loss")),
        (["data.modalities=[nir, rgb]"], ("data.modalities", "order rgb, nir, tir")),
        (["data.modalities=[rgb, rgb]"], ("data.modalities", "each once")),
        (["data.modalities=[]"], ("data.modalities is empty",)),
        (["evaluate.missing=[tir, nir]"], ("evaluate.missing", "order rgb, nir, tir")),
        (["evaluate.missing=[rgb, nir, tir]"], ("withholds all", "leave one")),
        (["data.modalities=[rgb, nir]", "evaluate.missing=[rgb, nir]"], ("withholds all", "leave one")),
        ([CROSS, "data.modalities=[rgb]"], ("model.slimming[1].guidance is cross", "data.modalities (rgb)", "both")),
        ([CROSS, "train.modality_dropout=0.2"], ("model.slimming[1].guidance", "train.modality_dropout=0.2")),
        ([CROSS, "evaluate.missing=[rgb, nir]"], ("model.slimming[1].guidance", "evaluate.missing (rgb, nir)")),
        (["data.modalities=[rgb]", "evaluate.missing=[tir]"], ("evaluate.missing withholds tir", "does not use")),
        (["evaluate.rerank_k2=30"], ("evaluate.rerank_k2=30", "evaluate.rerank_k1=20")),
        (["model.backbone.width=96", "model.backbone.num_heads=5"], ("model.backbone.width=96", "num_heads=5")),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(overrides, parts):
    message = error_of(*overrides)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_random_batches_need_no_whole_identities():
    config = load_config(None, ["data.sampler=random", "data.batch_size=7"])
    assert config.data.batch_size == 7


def test_every_fault_gets_its_own_line(tmp_path):
    path = write(tmp_path, "train: {epochs: 0, lr: x}\nmodle: {}\n")
    lines = error_of(path=path).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert {"train.epochs", "train.lr", "modle"} == {re.search(r"train\.\w+|modle", line)[0] for line in lines}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  epochs: 3\n  epochs: 4\n", ("line 3", "epochs is given twice")),
        ("data: {}\ndata: {}\n", ("line 2", "data is given twice")),
        ("train:\n  epochs: [3\n", ("line 3",)),
        ("train:\n\tepochs: 3\n", ("line 2",)),
        ("- train\n", ("holds a list",)),
        ("just words\n", ("holds a single value",)),
        ("# nothing\n", ("holds no settings",)),
        ("train: 5\n", ("train is a section, given 5",)),
        ("train:\n", ("train is a section, given nothing", "train.epochs")),
        ("MODEL:\n  HDM: True\n", ("upstream's section MODEL", "train_net.py --config_file")),
        ("a: !!python/object:os.system {}\n", ("line 1",)),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_name(tmp_path, text, parts):
    path = write(tmp_path, text)
    message = error_of(path=path)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message


def test_a_section_that_is_a_value_is_not_replaced_by_an_override(tmp_path):
    path = write(tmp_path, "train: 5\n")
    assert "train is a section, given 5" in error_of("train.epochs=3", path=path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    binary = tmp_path / "image.yaml"
    binary.write_bytes(b"\xff\xd8\xff\x00")
    assert "does not exist" in error_of(path=tmp_path / "absent.yaml")
    assert "is a folder" in error_of(path=tmp_path)
    assert "not a text file" in error_of(path=binary)


@pytest.mark.parametrize("overrides", [[], ["train.triplet_margin=0.3", "data.root=/a b", "evaluate.missing=[nir]"]])
def test_dumped_settings_load_back_equal(tmp_path, overrides):
    config = load_config(None, overrides)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_dumped_settings_name_every_setting():
    content = yaml.safe_load(dump_config(Config()))

    def leaves(tree, prefix=""):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    assert list(leaves(content)) == list(setting_paths())


def test_overrides_of_a_loaded_configuration_leave_it_as_it_was():
    config = Config()
    changed = override_config(config, ["train.epochs=3"])
    assert (changed.train.epochs, config.train.epochs) == (3, 50)
    assert changed.data == config.data


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_our_run_files_load_and_say_where_they_come_from(path):
    load_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Command:", "Hardware:", "Expected"):
        assert any(word in line for line in header), f"{path} does not say {word}"


def test_there_is_a_run_file_for_every_published_set():
    assert {path.parent.name for path in OURS} >= {"rgbnt201", "rgbnt100", "msvr310", "wmveid863"}


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.batch_size=8", "data.num_instances=4"], "only 2 identities"),
        (["train.epochs=3", "train.warmup_epochs=3"], "whole run is warm-up"),
        (["train.evaluate_every=60"], "only the last epoch is evaluated"),
    ],
)
def test_advice_is_given_on_settings_that_are_probably_not_meant(overrides, part):
    lines = advice(load_config(None, overrides))
    assert len(lines) == 1
    assert part in lines[0]


def test_no_advice_on_the_defaults():
    assert advice(Config()) == ()


def test_a_wrong_override_is_blamed_and_not_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {epochs: 3}\nmodel: {head: none}\n")

    def message(*overrides):
        with pytest.raises(ConfigError) as caught:
            load_config(file, overrides)
        return str(caught.value)

    assert message("train.epochs=0").startswith("override 'train.epochs=0': train.epochs: given 0")
    assert message("model.slimming=[{after_block: 2, keep_ratio: 7}]").startswith("override 'model.slimming=[{")
    assert message("evaluate.rerank_k1=2").startswith(f"{file} with evaluate.rerank_k1=2: evaluate.rerank_k2=6 is")
    file.write_text("train: {epochs: 0}\n")
    assert message("train.lr=0.1").startswith(f"{file}: train.epochs: given 0")
    with pytest.raises(ConfigError, match=r"^override 'train.epochs=0': train.epochs"):
        override_config(Config(), ["train.epochs=0"])


def test_the_changes_of_a_configuration_give_it_back(tmp_path: Path) -> None:
    config = override_config(Config(), ["train.epochs=3", "model.slimming=[{after_block: 1, keep_ratio: 0.5}]"])
    text = dump_changes(config)
    assert text.splitlines()[-1] == "train: {epochs: 3}"
    assert "batch_size" not in text
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(tmp_path / "run.yaml") == config
