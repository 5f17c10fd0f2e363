"""TorchScript archives: tensors are read, code is not; CLIP's file as start weights in both forms."""

import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

from trireid.errors import CheckpointError
from trireid.models.backbone import create_vit
from trireid.models.torchscript import is_torchscript, read_torchscript
from trireid.models.weights import load_backbone_weights, read_state

from reference_upstream import clip_tower
from upstream_states import DIM, IMAGE, PATCH, WIDTH, Draw, clip_visual


class Holder(nn.Module):
    """Nested modules that hold tensors under dotted names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def hold(state):
    root = Holder()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Holder())
            module = module._modules[part]
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    return root


def clip_state():
    draw = Draw(3)
    clip_visual(draw, "visual.")
    draw.normal("token_embedding.weight", 11, 6)
    draw.normal("logit_scale", 1)
    return draw.state


def archive(tmp_path, state):
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.script(hold(state)).save(path)
    return path


def small_vit():
    sizes = {"patch_size": PATCH, "width": WIDTH, "depth": 2, "num_heads": 3, "projection": DIM}
    return create_vit("clip_vit_b16", image_size=IMAGE, **sizes)


def test_every_tensor_of_an_archive_is_read(tmp_path):
    state = clip_state()
    state["visual.proj"] = state["visual.proj"].half()
    path = archive(tmp_path, state)
    assert is_torchscript(path)
    read = read_state(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in state.items())


def test_views_and_shared_storages_are_rebuilt(tmp_path):
    module = Holder()
    base = torch.arange(12.0).view(3, 4)
    module.register_buffer("turned", base.T)
    module.register_buffer("row", base[1])
    torch.jit.script(module).save(tmp_path / "m.pt")
    read = read_torchscript(tmp_path / "m.pt")
    assert torch.equal(read["turned"], base.T)
    assert torch.equal(read["row"], base[1])


@pytest.mark.parametrize("form", ["archive", "state_dict", "visual_only"])
def test_clips_own_file_starts_the_backbone(tmp_path, form):
    state = clip_state()
    if form == "archive":
        path = archive(tmp_path, state)
    else:
        kept = state if form == "state_dict" else {k[7:]: v for k, v in state.items() if k.startswith("visual.")}
        path = tmp_path / "clip.pt"
        torch.save(kept, path)
    vit = small_vit()
    note = load_backbone_weights(vit, name="clip_vit_b16", pretrained=str(path), image_size=(16, 8))
    assert ("2 tensors outside CLIP's visual tower not used" in note) == (form != "visual_only")
    image = torch.randn(1, 3, *IMAGE, generator=torch.Generator().manual_seed(1))
    renamed = {key.replace("visual.", "BACKBONE.base."): value.double() for key, value in state.items()}
    renamed["BACKBONE.cv_embed"] = torch.zeros(1, 1, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        tokens = vit.head(vit.forward_features(image))[0]
    torch.testing.assert_close(tokens.double(), clip_tower(renamed, image[0].double(), 0, 1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_post.bias"), r"lacks 1 tensors of CLIP's visual tower \(visual.ln_post.bias\)"),
        (lambda s: s.update({"visual.more": torch.zeros(1)}), r"has unknown 1 tensors .*\(visual.more\)"),
        (lambda s: s.pop("visual.proj"), "no projection visual.proj"),
    ],
)
def test_clips_keys_must_fit_exactly(tmp_path, change, message):
    state = clip_state()
    change(state)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(small_vit(), name="clip_vit_b16", pretrained=str(tmp_path / "clip.pt"))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rewrite(path, *, description=None, storage=None, compression=zipfile.ZIP_STORED):
    """The archive with another description, or another first storage."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in content.items():
            if description is not None and name.endswith("/data.pkl"):
                data = description
            if storage is not None and name.endswith("/data/0"):
                data = storage
            new.writestr(name, data)


def spoil(path, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "hostile":
        rewrite(path, description=pickle.dumps({"visual": Hostile(open, "hostile_was_here", "w")}, protocol=2))
    elif kind == "hostile_getattr":
        rewrite(path, description=pickle.dumps(Hostile(getattr, "", "upper"), protocol=2))
    elif kind == "short_storage":
        rewrite(path, storage=b"\0\0")
    elif kind == "compressed":
        rewrite(path, compression=zipfile.ZIP_DEFLATED)
    elif kind == "garbage":
        rewrite(path, description=b"no pickle")
    elif kind == "endless":
        rewrite(path, description=b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00aq\x01h\x00sb.")
    elif kind == "huge":  # 2 ** 40 values in a storage of one, by a stride of 0
        rebuild = (
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        )
        rest = b"X\x03\x00\x00\x00cpuK\x01tQK\x00(\x8a\x06\x00\x00\x00\x00\x00\x01t(K\x00t\x89}tR"
        module = b"\x80\x02c__torch__\nA\n)\x81}X\x01\x00\x00\x00a" + rebuild + rest + b"sb."
        rewrite(path, description=module, storage=b"\0\0\0\0")


KINDS = ("truncated", "hostile", "hostile_getattr", "short_storage", "compressed", "garbage", "endless", "huge")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_hostile_archives_give_one_clear_error(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path, {"visual.a.weight": torch.zeros(5, 3)})
    spoil(path, kind)
    with pytest.raises(CheckpointError, match=path.name) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_file_cannot_spoil_the_next_one(tmp_path):
    """Attributes set on a stand-in class or function stay with the file that set them."""
    path = archive(tmp_path, {"visual.a": torch.ones(2)})
    rewrite(path, description=b"\x80\x02c__torch__\nA\nN}X\x09\x00\x00\x00__slots__K\x01s\x86b.")
    with pytest.raises(CheckpointError):
        read_torchscript(path)
    assert torch.equal(read_state(archive(tmp_path, {"visual.a": torch.ones(2)}))["visual.a"], torch.ones(2))


def test_flipped_bytes_give_tensors_or_the_one_error(tmp_path):
    path = archive(tmp_path, {"visual.a.weight": torch.ones(4, 3), "visual.b": torch.ones(2)})
    whole = path.read_bytes()
    generator = random.Random(0)
    failures = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.choice((1, 3, 20))):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read_state(path)
        except CheckpointError:
            failures += 1
    assert failures > 50


def test_an_empty_tensor_is_read(tmp_path):
    assert read_state(archive(tmp_path, {"a": torch.zeros(0, 3), "b": torch.ones(1)}))["a"].shape == (0, 3)
