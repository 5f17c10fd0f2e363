"""Start weights: strict local files, resized position tables, harmless treatment of damaged or hostile files."""

import pickle
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from trireid.errors import CheckpointError
from trireid.models.backbone import create_vit
from trireid.models.weights import fetch_timm_weights, load_backbone_weights, read_state
from trireid.upstream.importing import import_file
from trireid.upstream.state_dict import resize_positions

SHARED_WEIGHTS = Path(__file__).resolve().parents[2].parent / "shared/weights/dinov2_vits14_fp16.safetensors"


def tiny(size=(16, 16)):
    torch.manual_seed(0)
    return create_vit("tiny", image_size=size, width=16, depth=1, num_heads=2)


def test_local_file_is_loaded_and_the_position_table_resized(tmp_path):
    source, target = tiny(), tiny((32, 16))
    torch.nn.init.normal_(source.blocks[0].mlp.fc1.weight)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    note = load_backbone_weights(target, name="tiny", pretrained=str(tmp_path / "w.safetensors"), image_size=(16, 16))
    assert torch.equal(target.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert target.pos_embed.shape == (1, 9, 16)
    assert "every key" in note


def test_rotary_frequencies_of_the_first_blocks_are_kept(tmp_path):
    name, sizes = "vit_small_patch16_rope_mixed_224", {"patch_size": 8, "width": 16, "num_heads": 2}
    source, target = (create_vit(name, image_size=(16, 16), depth=depth, **sizes) for depth in (3, 2))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_backbone_weights(target, name=name, pretrained=str(tmp_path / "w.safetensors"), first_blocks=True)
    assert torch.equal(target.rope.freqs, source.rope.freqs[:, :2])


def test_a_smaller_depth_keeps_the_first_blocks_of_the_file_and_says_so(tmp_path):
    source = create_vit("tiny", image_size=(16, 16), width=16, depth=3, num_heads=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    made = {"name": "tiny", "pretrained": str(tmp_path / "w.safetensors"), "image_size": (16, 16)}
    target = tiny()
    with pytest.raises(CheckpointError, match="not in the model"):
        load_backbone_weights(target, **made)
    note = load_backbone_weights(target, **made, first_blocks=True)
    assert torch.equal(target.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert "its last 2 blocks left out" in note
    deeper = create_vit("tiny", image_size=(16, 16), width=16, depth=4, num_heads=2)
    with pytest.raises(CheckpointError, match="missing"):
        load_backbone_weights(deeper, **made, first_blocks=True)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_position_table_is_resized_as_asked(tmp_path, interpolation):
    source, target = tiny((32, 32)), tiny((32, 16))
    torch.nn.init.normal_(source.pos_embed)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    made_for = {"image_size": (32, 32)}
    load_backbone_weights(target, name="tiny", pretrained=path, interpolation=interpolation, **made_for)
    upstream = resize_positions(source.pos_embed, source.patch_embed.grid_size, target.patch_embed.grid_size)
    assert torch.allclose(target.pos_embed, upstream, atol=1e-6) == (interpolation == "bilinear")
    by_default = tiny((32, 16))
    load_backbone_weights(by_default, name="tiny", pretrained=path, **made_for)
    assert torch.equal(by_default.pos_embed, target.pos_embed) == (interpolation == "bicubic")


def test_torch_file_with_classifier_is_loaded_without_it_and_says_so(tmp_path):
    state = {**tiny().state_dict(), "head.weight": torch.zeros(10, 16), "head.bias": torch.zeros(10)}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert "2 classifier tensors not used" in load_backbone_weights(
        tiny(), name="tiny", pretrained=str(tmp_path / "w.pth"), image_size=(16, 16)
    )


def test_a_last_norm_that_follows_the_pooling_is_loaded_too(tmp_path):
    name, sizes = "eva_large_patch14_196", {"patch_size": 8, "width": 16, "depth": 1, "num_heads": 2}
    source, target = (create_vit(name, image_size=(16, 16), **sizes) for _ in range(2))
    torch.nn.init.normal_(source.fc_norm.weight)
    save_file({**source.state_dict(), "head.weight": torch.zeros(10, 16)}, tmp_path / "w.safetensors")
    note = load_backbone_weights(target, name=name, pretrained=str(tmp_path / "w.safetensors"), image_size=(16, 16))
    assert torch.equal(target.fc_norm.weight, source.fc_norm.weight)
    assert "1 classifier tensors not used" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"1 missing \(norm.weight\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 not in the model \(extra\)"),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), r"1 of another shape \(norm.weight\)"),
    ],
)
def test_keys_must_fit_exactly(tmp_path, change, message):
    state = tiny().state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(tiny(), name="tiny", pretrained=str(tmp_path / "w.safetensors"), image_size=(16, 16))


class Hostile:
    def __reduce__(self):
        return (open, ("hostile_was_here", "w"))


@pytest.mark.parametrize("kind", ["truncated", "garbage", "opcodes", "hostile", "table_of_numbers"])
def test_damaged_and_hostile_files_give_one_clear_error(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if kind == "truncated":
        path = tmp_path / "w.safetensors"
        save_file(tiny().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "garbage":
        path.write_bytes(b"not a checkpoint at all")
    elif kind == "opcodes":
        path.write_bytes(b"junk")  # begins as a pickle that wants four more bytes
    elif kind == "hostile":
        path.write_bytes(pickle.dumps(Hostile()))
    else:
        torch.save({"a": 1.0}, path)
    with pytest.raises(CheckpointError, match=path.name) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_missing_file_says_what_is_allowed(tmp_path):
    path = tmp_path / "absent.safetensors"
    with pytest.raises(CheckpointError, match="does not exist: give the path of a local file"):
        read_state(path)
    with pytest.raises(
        CheckpointError, match="set model.backbone.pretrained to a local file .*ViT-B-16.pt.*, or to none"
    ):
        load_backbone_weights(tiny(), name="tiny", pretrained=str(path))


def test_tiny_has_no_pretrained_weights():
    with pytest.raises(CheckpointError, match="set model.backbone.pretrained to none"):
        load_backbone_weights(tiny(), name="tiny", pretrained="timm")


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch14_reg4_dinov2",  # a table of patches alone
        "vit_base_patch16_siglip_224",
        "vit_small_plus_patch16_dinov3",  # no table
        "eva02_base_patch16_clip_224",
    ],
)
def test_start_weights_for_another_image_size_are_what_timm_makes_of_them(tmp_path, name):
    sizes = {"patch_size": 14, "width": 16, "depth": 2, "num_heads": 2}
    source, target = (create_vit(name, image_size=size, **sizes) for size in ((56, 28), (28, 84)))
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    note = load_backbone_weights(target, name=name, pretrained=str(tmp_path / "w.safetensors"), image_size=(56, 28))
    assert ("position table resized from 4 x 2 to 2 x 6" in note) == (source.pos_embed is not None)
    images = torch.randn(1, 3, 28, 84)
    source.set_input_size((28, 84))  # also of rotary positions
    assert torch.equal(target.eval().forward_features(images), source.eval().forward_features(images))
    imported = tmp_path / "o.safetensors"
    if name == "vit_base_patch14_reg4_dinov2":
        with pytest.raises(CheckpointError, match="position table of 8 patches"):
            import_file(tmp_path / "w.safetensors", imported, backbone=name)
    elif source.pos_embed is None:
        with pytest.raises(CheckpointError, match=r"without a table \(DINOv3\) need no import"):
            import_file(tmp_path / "w.safetensors", imported, backbone=name)


def test_without_network_or_cache_the_error_says_what_to_do(monkeypatch, tmp_path):
    def no_network(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(CheckpointError, match="not cached and cannot be downloaded .*set model.backbone.pretrained"):
        fetch_timm_weights("vit_base_patch16_224.augreg_in21k")


@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason=f"no weight file at {SHARED_WEIGHTS}")
def test_the_small_pretrained_vit_loads_strictly():
    vit = create_vit("dinov2_vit_s14", image_size=(56, 28))
    load_backbone_weights(vit, name="dinov2_vit_s14", pretrained=str(SHARED_WEIGHTS))  # 37 x 37, as published
    assert vit.pos_embed.shape == (1, 9, 384)
    state = read_state(SHARED_WEIGHTS)
    assert torch.equal(vit.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"].float())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_mutilation_of_a_file_escapes_the_one_error(tmp_path):
    path, random = tmp_path / "w.pth", Random(0)
    torch.save(tiny().state_dict(), path)
    whole = path.read_bytes()
    for round_number in range(60):
        content = bytearray(whole[: random.randrange(len(whole))] if round_number % 2 else whole)
        for _ in range(random.randrange(1, 8)):
            if content:
                content[random.randrange(min(len(content), 3000))] = random.randrange(256)
        path.write_bytes(bytes(content))
        # Where it still is a table of tensors, reading it is right.
        with suppress(CheckpointError):
            assert all(isinstance(value, torch.Tensor) for value in read_state(path).values())
