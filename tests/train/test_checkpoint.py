"""Checkpoints: what goes in comes out, and every kind of wrong file has its own message."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tiny_run import tiny_config
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError, InputError, RunError
from trireid.models.build import build_model
from trireid.train import checkpoint as module
from trireid.train.checkpoint import (
    build_for,
    checkpoint_writer,
    config_here,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
)

LABELS = LabelMap(identities=("000001", "000002", "000003"), cameras=("1", "2"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "data", tmp_path / "run")


def tiny_model(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config.model, image_size=config.data.image_size, num_classes=3, num_cameras=2)


def save(path: Path, config: Config, **changes: Any) -> nn.Module:
    model = tiny_model(config)
    settings: dict[str, Any] = {"config": config, "label_map": LABELS, "epoch": 4} | changes
    save_checkpoint(path, model, **settings)
    return model


def test_what_was_saved_is_loaded(tmp_path: Path, config: Config) -> None:
    figures = {"joint": {"mAP": 0.1 + 0.2}}
    model = save(tmp_path / "a.safetensors", config, note="best on validation", figures=figures)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert (loaded.config, loaded.label_map, loaded.epoch) == (config, LABELS, 4)
    assert (loaded.note, loaded.figures) == ("best on validation", figures)
    assert loaded.model_state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model_state[name], value)


def test_what_is_written_later_is_the_model_of_the_moment_of_the_copy(tmp_path: Path, config: Config) -> None:
    model = tiny_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write = checkpoint_writer(tmp_path / "a.safetensors", model, config=config, label_map=LABELS, epoch=4)
    assert not (tmp_path / "a.safetensors").exists()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    write()
    loaded = load_checkpoint(tmp_path / "a.safetensors").model_state
    assert all(torch.equal(loaded[name], value) for name, value in before.items())


def test_a_loaded_model_gives_the_same_features(tmp_path: Path, config: Config) -> None:
    model = save(tmp_path / "last.safetensors", config).eval()
    images = torch.randn(2, 3, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    expected = model(images).embedding
    for path in (tmp_path, tmp_path / "last.safetensors"):
        loaded = load_model(path)
        assert not loaded.training
        assert torch.equal(loaded(images).embedding, expected)


def test_loading_downloads_nothing(tmp_path: Path, config: Config) -> None:
    # The start weights of the configuration are not there any more, and are not needed.
    with_weights = override_config(config, ["model.backbone.pretrained=/nowhere/weights.safetensors"])
    model = tiny_model(config)
    save_checkpoint(tmp_path / "a.safetensors", model, config=with_weights, label_map=LABELS, epoch=1)
    assert load_model(tmp_path / "a.safetensors").training is False


def test_metadata_are_strings_that_other_tools_can_read(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "a.safetensors", config)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["trireid_format"] == "1"
    assert metadata["epoch"] == "4"
    assert metadata["position_grid"] == "4x2"
    assert '"000002"' in metadata["label_map"]


def test_a_checkpoint_is_readable_by_others(tmp_path: Path, config: Config) -> None:
    (tmp_path / "plain").touch()
    save(tmp_path / "a.safetensors", config)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, config: Config, size: int) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"{path} is not a whole safetensors file"):
        load_checkpoint(path)


def test_text_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("not weights at all, but some lines of text\n" * 10)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_a_missing_file_or_empty_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no last\.safetensors"):
        load_checkpoint(tmp_path)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "DeMobest.pth")
    with pytest.raises(CheckpointError, match="is a pickle.*give the .safetensors checkpoint"):
        load_checkpoint(tmp_path / "DeMobest.pth")


def test_foreign_weights_are_told_apart_from_damage(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not written by trireid"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_another_format_version_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"trireid_format": "99"})
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("key", "value"), [("config", '{"train": {"magic": 1}}'), ("label_map", "[]"), ("epoch", "many"), ("note", None)]
)
def test_a_broken_description_is_named(tmp_path: Path, config: Config, key: str, value: str | None) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config)
    with safe_open(path, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != key}
    save_file({"a": torch.ones(1)}, path, metadata=metadata if value is None else metadata | {key: value})
    with pytest.raises(CheckpointError, match=f"description inside {path}"):
        load_checkpoint(path)


def rewrite(path: Path, *, state: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    """Write a checkpoint again with other texts beside its tensors, or other tensors."""
    with safe_open(path, framework="pt") as file:
        texts = file.metadata() | metadata
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | (state or {}), path, metadata=texts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", "[" * 100_000),
        ("epoch", "1" * 5000),
        ("epoch", "-1"),
        ("label_map", "[" * 100_000),
        ("label_map", '{"identities": "abc", "cameras": []}'),
        ("label_map", '{"identities": [1, 2, 3], "cameras": []}'),
        ("label_map", '{"identities": ["\\ud800"], "cameras": []}'),
        ("figures", '{"joint": [1]}'),
        ("figures", '{"joint": {"mAP": "much"}}'),
    ],
)
def test_a_hostile_description_is_one_line(tmp_path: Path, config: Config, key: str, value: str) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config)
    rewrite(path, **{key: value})
    with pytest.raises(CheckpointError, match=f"description inside {path}") as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_texts_of_a_file_are_shown_without_control_characters(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config)
    rewrite(path, note="\x1b]0;title\x07red\nerror: a forged line")
    assert load_checkpoint(path).note == r"\x1b]0;title\x07red\nerror: a forged line"
    rewrite(path, trireid_format="1\x1b[2J\r\nerror: all is well")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()


HUGE = (
    ["model.backbone.width=16384", "model.backbone.depth=50"],
    ["model.backbone.depth=1000000000"],
    ["data.image_size=[800000, 800000]"],
    ["data.image_size=[1000000000000, 1000000000000]"],
    ["model.backbone.name=vit_gigantic_patch14_224", "data.image_size=[224, 224]", "model.backbone.patch_size=null"]
    + [f"model.backbone.{name}=null" for name in ("width", "depth", "num_heads")],
)


@pytest.mark.parametrize("changes", HUGE, ids=lambda changes: changes[0])
def test_settings_of_a_file_take_no_memory_beyond_its_weights(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config)
    rewrite(path, config=override_config(config, changes).model_dump_json())
    devices: list[str] = []
    build = module.build_model

    def watched(*arguments: Any, **options: Any) -> nn.Module:
        devices.append(torch.empty(0).device.type)
        return build(*arguments, **options)

    monkeypatch.setattr(module, "build_model", watched)
    with pytest.raises((CheckpointError, InputError), match="does not fit the model|cannot be built") as caught:
        load_model(path)
    assert str(caught.value).isprintable()
    assert set(devices) <= {"meta"}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_are_real_numbers(tmp_path: Path, config: Config, dtype: torch.dtype) -> None:
    path, name = tmp_path / "a.safetensors", "backbone.vit.norm.weight"
    save(path, config)
    rewrite(path, state={name: torch.ones(16).to(dtype)})
    with pytest.raises(CheckpointError, match=rf"{name} is of {str(dtype)[6:]}"):
        load_model(path)
    rewrite(path, state={name: torch.full((16,), torch.nan)})
    with pytest.raises(CheckpointError, match=f"{name} has 16 of 16 values that are not finite"):
        load_model(path)


def test_where_files_go_and_how_many_workers_start_is_not_for_a_checkpoint_to_say(
    tmp_path: Path, config: Config
) -> None:
    own = ["data.cache=disk", f"data.cache_folder={tmp_path}/theirs", "data.workers=40", "train.trackers=[wandb]"]
    save(tmp_path / "a.safetensors", override_config(config, own))
    here, default = config_here(load_checkpoint(tmp_path / "a.safetensors")), Config()
    assert (here.data.cache, here.data.cache_folder) == (default.data.cache, None)
    assert (here.data.workers, here.output) == (default.data.workers, default.output)
    assert here.train.trackers == default.train.trackers
    assert (here.data.root, here.model) == (config.data.root, config.model)


def test_another_class_count_names_the_tensors_and_both_numbers(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "a.safetensors", config)
    other = build_model(config.model, image_size=config.data.image_size, num_classes=5, num_cameras=2)
    with pytest.raises(CheckpointError, match=r"classifiers\.\w+\..*\(3, \d+\), the model has \(5, .*3 identities"):
        load_weights(other, load_checkpoint(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.image_size=[64, 16]", "image size 32 x 16"),
        ("data.image_size=[16, 32]", "the model is for images of 16 x 32.* image size 32 x 16"),
        ("model.head=none", r"not in the model \(.*head"),
        ("model.head=hdm", r"not in the file \(.*head"),
        ("model.backbone.width=32", "have another shape"),
    ],
)
def test_another_model_names_what_differs(tmp_path: Path, config: Config, override: str, words: str) -> None:
    save(tmp_path / "a.safetensors", config)
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=words):
        build_for(checkpoint, override_config(config, [override]))


def test_a_full_disk_leaves_the_older_checkpoint(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, config, epoch=1)

    def fail(_: object, temporary: Path, *__: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(RunError, match="No space left"):
        save(path, config, epoch=2)
    assert load_checkpoint(path).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "", 5.0])
def test_a_device_that_is_not_there_is_named_before_anything_is_read(tmp_path, device):
    with pytest.raises(InputError, match=r"device is .*(allowed are cpu|torch sees .* CUDA device)"):
        load_model(tmp_path, device=device)
