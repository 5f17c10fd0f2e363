"""Upstream's checkpoints: the same numbers as a literal re-derivation, and a report of every key."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import trireid
from trireid.errors import CheckpointError, TrireidError
from trireid.losses import reid_loss
from trireid.upstream.checkpoint import read_upstream
from trireid.upstream.state_dict import UpstreamMismatchError

from reference_upstream import first_loss, forward
from upstream_states import CAMERAS, CLASSES, IMAGE, upstream_state

KINDS = {
    "hdm_atmoe_direct_1": {"head": "hdm_atmoe", "direct": 1, "heads": 4},
    "hdm_atmoe_direct_0": {"head": "hdm_atmoe", "direct": 0, "heads": 8},
    "sdtps": {"head": "sdtps", "direct": 1},
    "hdm": {"head": "hdm", "direct": 0},
    "imagenet": {"head": "hdm_atmoe", "direct": 1, "tower": "imagenet", "heads": 2},
    "imagenet_hdm": {"head": "hdm", "direct": 0, "tower": "imagenet"},
    "imagenet_sdtps": {"head": "sdtps", "direct": 1, "tower": "imagenet"},
    "imagenet_none": {"head": "none", "direct": 0, "tower": "imagenet"},
}
MISSING = ("", "r", "n", "t", "rn", "rt", "nt")
LABELS = [0, 0, 3, 3]


def saved(tmp_path, state, name="DeMobest.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def batch(missing=""):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 3, 3, *IMAGE, generator=generator)
    for letter in missing:
        images[:, "rnt".index(letter)] = 0
    return images, torch.tensor([0, 1, 2, 1])


def close(ours, literal):
    return float((ours.double() - literal).norm() / literal.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_patterns_equal_the_literal_forward(tmp_path, kind):
    state = upstream_state(**KINDS[kind])
    model = trireid.load_upstream(saved(tmp_path, state), image_size=IMAGE)
    for missing in MISSING:  # loading takes the time
        images, camera = batch(missing)
        with torch.no_grad():
            out = model(images, camera=camera)
            pattern1, pattern2, _ = forward(state, images, camera)
        assert close(out.features["global"], pattern1), missing
        pattern3 = pattern1 if pattern2 is None else torch.cat([pattern1, pattern2], dim=1)
        assert pattern2 is None or close(out.features["head"], pattern2), missing
        torch.testing.assert_close(out.embedding.double(), pattern3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_training_loss_is_the_literal_one(tmp_path, kind):
    """The dropout of HDM is random in both; it is 0 here."""
    state = upstream_state(**KINDS[kind])
    model = trireid.load_upstream(saved(tmp_path, state), image_size=IMAGE).train()
    if hasattr(model.head, "hdm"):
        model.head.hdm.dropout = 0.0
    images, camera = batch()
    with torch.no_grad():
        loss = reid_loss(model(images, camera=camera), torch.tensor(LABELS))["total"]
        _, _, scored = forward(state, images, camera, training=True)
    assert float(loss) == pytest.approx(first_loss(scored, LABELS), rel=1e-4)


def test_every_key_is_accounted_for(tmp_path):
    state = upstream_state("sdtps")
    imported = read_upstream(saved(tmp_path, state), image_size=IMAGE)
    report = imported.report
    assert set(report.used) | set(report.ignored) == set(state)
    assert sorted(report.ignored) == [f"sdtps.{name}_aggr.weight.3.bias" for name in ("nir", "rgb", "tir")]
    assert all("softmax over the patches cancels it" in why for why in report.ignored.values())
    assert report.is_complete
    notes = "; ".join(report.notes)
    assert "8 patches, taken as 4 x 2 and not resized; a checkpoint of 2 x 4 would look the same" in notes
    assert "3 cameras, scale 1 assumed (SIE_COE), added to the CLS token" in notes
    assert "2 slots, so aggr_ratio 0.5, with sparse_ratio 0.5 and beta 0.25 assumed" in notes
    assert "SDTPS: its variants cannot be told apart" in notes
    assert (len(imported.label_map.identities), len(imported.label_map.cameras)) == (CLASSES, CAMERAS)
    model = imported.config.model
    assert (model.head, model.sdtps.preset, model.global_classifier) == ("sdtps", "reference", "joint")


@pytest.mark.parametrize(("direct", "name"), [(1, "joint"), (0, "separate")])
def test_facts_are_read_off_the_shapes(tmp_path, direct, name):
    imported = read_upstream(saved(tmp_path, upstream_state(direct=direct, heads=8)), image_size=IMAGE)
    model = imported.config.model
    assert (model.head, model.atmoe_heads, model.global_classifier) == ("hdm_atmoe", 8, name)
    assert (imported.facts.num_classes, imported.facts.num_cameras, imported.facts.joint) == (5, 3, direct == 1)
    said = "; ".join(imported.report.notes)
    assert "read from the file: 5 identities, 3 cameras, CLIP ViT of 2 blocks" in said
    assert f"HDM and ATMoE with 8 heads, one classifier {'of the joined globals' if direct else 'per modality'}" in said
    assert f"(DIRECT {direct})" in said
    assert "query and key divided by sqrt(8), the width of a head, assumed" in said
    assert "ViT: 3 heads assumed, 64 channels each; " in said
    assert "HDM: 1 heads assumed, 64 channels each; " in said
    assert (model.backbone.depth, model.backbone.num_heads, model.backbone.projection) == (2, 3, 64)


def test_half_precision_parallel_and_safetensors_files_are_read(tmp_path):
    state = upstream_state()
    images, camera = batch()
    half = {f"module.{key}": value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    model = trireid.load_upstream(tmp_path / "half.safetensors", image_size=IMAGE)
    assert model.backbone.vit.pos_embed.dtype == torch.float32
    with torch.no_grad():
        pattern1, _, _ = forward(state, images, camera)
        assert (model(images, camera=camera).features["global"] - pattern1).norm() < 1e-2 * pattern1.norm()


def test_another_image_size_resizes_the_position_table_and_says_so(tmp_path):
    path = saved(tmp_path, upstream_state("sdtps"))
    imported = read_upstream(path, image_size=(32, 16), checkpoint_image_size=IMAGE)
    assert "8 patches, 4 x 2 (as given), resized (bilinear) to 8 x 4" in imported.report.notes[1]
    assert imported.model.backbone.num_patches == 32
    assert imported.model.head.num_slots == 2
    assert imported.model(torch.zeros(1, 3, 3, 32, 16)).embedding.shape == (1, 6 * 64)
    wide = read_upstream(path, image_size=(8, 24), checkpoint_image_size=(8, 16))
    assert "2 x 4 (as given), resized (bilinear) to 2 x 6" in wide.report.notes[1]
    with pytest.raises(CheckpointError, match="has 8 patches, checkpoint_image_size .* has 4 x 4"):
        read_upstream(path, image_size=(8, 24), checkpoint_image_size=(16, 16))


def test_a_resized_table_keeps_a_linear_slope(tmp_path):
    state = upstream_state()
    rows = torch.arange(4.0).repeat_interleave(2)  # 4 x 2 patches, value = row
    state["BACKBONE.base.positional_embedding"] = torch.cat([torch.tensor([9.0]), rows])[:, None].repeat(1, 192)
    model = trireid.load_upstream(saved(tmp_path, state), image_size=(32, 8), checkpoint_image_size=IMAGE)
    table = model.backbone.vit.pos_embed[0, :, 0]
    assert table[0] == 9
    torch.testing.assert_close(table[1::2], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


@pytest.mark.parametrize(("positions", "image_size"), [(15, IMAGE), (8, (16, 16)), (16, (32, 16))])
def test_a_table_of_another_count_asks_for_the_size_of_the_checkpoint(tmp_path, positions, image_size):
    path = saved(tmp_path, upstream_state(positions=positions))
    with pytest.raises(CheckpointError, match=f"has {positions} patches, the images .*: give checkpoint_image_size"):
        read_upstream(path, image_size=image_size)


def test_the_size_of_an_odd_table_can_be_given_and_overlapping_patches_are_named(tmp_path):
    path = saved(tmp_path, upstream_state(positions=15))
    assert read_upstream(path, image_size=IMAGE, checkpoint_image_size=(20, 12)).model is not None
    with pytest.raises(CheckpointError, match=r"overlap \(7 x 3, one every 2 pixels of 16 x 8\)"):
        read_upstream(saved(tmp_path, upstream_state(positions=21)), image_size=IMAGE)


def test_further_cameras_get_the_mean_of_the_known(tmp_path):
    state = upstream_state()
    table = state["BACKBONE.cv_embed"][:, 0]
    imported = read_upstream(saved(tmp_path, state), image_size=IMAGE, num_cameras=5)
    weight = imported.model.backbone.camera_embedding.weight
    assert torch.equal(weight[:3], table)
    torch.testing.assert_close(weight[3:], table.mean(0).expand(2, -1))
    assert any("3 rows extended to 5: 2 more, each the mean of the 3" in note for note in imported.report.notes)
    model = trireid.load_upstream(tmp_path / "DeMobest.pth", image_size=IMAGE)
    images, _ = batch()
    unknown = model(images, camera=torch.full((4,), -1)).embedding
    torch.testing.assert_close(unknown, imported.model(images, camera=torch.full((4,), 4)).embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unknown \(extra\)"),
        (lambda s: s.pop("generalFusion.rn.in_proj_bias"), r"1 missing \(generalFusion.rn.in_proj_bias\)"),
        (lambda s: s.pop("BACKBONE.base.transformer.resblocks.0.ln_1.bias"), r"1 missing \(BACKBONE.*ln_1.bias\)"),
        (lambda s: s.pop("BACKBONE.base.proj"), r"BACKBONE.base.proj \(2 axes\) is missing"),
        (
            lambda s: s.update({"rgb_reduce.1.bias": torch.zeros(7)}),
            r"1 of another shape \(pife.reduce.bias: rgb_reduce.1.bias, nir.* cannot be joined",
        ),
        (
            lambda s: s.update({"bottleneck.weight": torch.zeros(7)}),
            r"bottleneck.weight give \(7,\), not \(192,\)",
        ),
    ],
)
def test_keys_must_fit_exactly(tmp_path, change, message):
    state = upstream_state()
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        trireid.load_upstream(saved(tmp_path, state), image_size=IMAGE)
    assert "DeMobest.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_alone_says_how_to_leave_it_out(tmp_path):
    state = {**upstream_state(), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"without these keys, name them with --ignore \(ignore=\)"):
        read_upstream(saved(tmp_path, state), image_size=IMAGE)
    state["renamed"] = state.pop("classifier_moe.weight")
    with pytest.raises(CheckpointError) as caught:
        read_upstream(saved(tmp_path, state), image_size=IMAGE)
    assert "--ignore" not in str(caught.value)


def test_a_failed_import_carries_its_report(tmp_path):
    state = upstream_state()
    state["surprise"] = state.pop("classifier_moe.weight")
    with pytest.raises(UpstreamMismatchError) as caught:
        read_upstream(saved(tmp_path, state), image_size=IMAGE)
    report = caught.value.report
    assert report.unknown == ("surprise",)
    assert report.missing == {"classifiers.head.classifier.weight": ("classifier_moe.weight",)}
    assert len(report.used) == len(state) - 1


def test_keys_are_left_out_only_when_asked(tmp_path):
    path = saved(tmp_path, {**upstream_state(), "extra.a": torch.zeros(1)})
    report = read_upstream(path, image_size=IMAGE, ignore=("extra.*",)).report
    assert report.ignored == {"extra.a": "left out by --ignore"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": "extr.*"}, r"ignore is 'extr.\*': give a tuple of patterns"),
        ({"ignore": (3,)}, "give a tuple of patterns"),
        ({"image_size": 256}, r"image_size is 256: give \(height, width\) in pixels"),
        ({"image_size": "16x8"}, "image_size is '16x8': give"),
        ({"image_size": (3, 16, 8)}, r"image_size is \(3, 16, 8\): give"),
        ({"image_size": None}, "image_size is None: give"),
        ({"image_size": (0, 8)}, "each 1 to 4096"),
        ({"image_size": (16, 10**6)}, "each 1 to 4096"),
        ({"image_size": (18, 8)}, r"image_size 18 x 8 is not a multiple of the patch size 4.*\(--image-size\)"),
        ({"checkpoint_image_size": (18, 8)}, r"not a multiple of the patch size 4.*\(--checkpoint-image-size\)"),
        ({"checkpoint_image_size": 16}, "checkpoint_image_size is 16: give"),
        ({"num_cameras": "4"}, "num_cameras is '4': give a whole number, 1 to 10000"),
        ({"num_cameras": 10**9}, "num_cameras is 1000000000: give"),
        ({"num_cameras": 0}, "num_cameras is 0: give"),
        ({"sparse_ratio": 0}, "sparse_ratio is 0: give a number above 0, 1 at most"),
        ({"sparse_ratio": "0.5"}, "sparse_ratio is '0.5': give"),
        ({"sparse_ratio": 1.0}, "keeps all 8 patches: upstream then averages a token of zeros"),
        ({"sparse_ratio": 0.9}, "keeps all 8 patches"),  # rounded up
        ({"beta": 0.6}, r"beta is 0.6: give a number in \[0, 0.5\]"),
        ({"sie_coefficient": float("nan")}, "sie_coefficient is nan: give a number above 0"),
    ],
)
def test_wrong_arguments_give_one_clear_error(tmp_path, options, message):
    path = saved(tmp_path, {**upstream_state("sdtps"), "extra.a": torch.zeros(1)})
    arguments = {"image_size": IMAGE, "ignore": ("extra.*",), **options}
    with pytest.raises(TrireidError, match=message) as caught:
        trireid.load_upstream(path, **arguments)
    assert "\n" not in str(caught.value)


def test_numbers_for_parts_that_the_file_lacks_are_refused(tmp_path):
    state = upstream_state()
    path = saved(tmp_path, state)
    for option in ({"sparse_ratio": 0.4}, {"beta": 0.1}):
        with pytest.raises(TrireidError, match="belong to SDTPS, which the file does not have"):
            read_upstream(path, image_size=IMAGE, **option)
    del state["BACKBONE.cv_embed"]
    path = saved(tmp_path, state)
    with pytest.raises(TrireidError, match="sie_coefficient is 3, but the file has no camera embedding"):
        read_upstream(path, image_size=IMAGE, sie_coefficient=3.0)
    with pytest.raises(TrireidError, match=r"num_cameras \(--cameras\) is 4, but the file has no camera embedding"):
        read_upstream(path, image_size=IMAGE, num_cameras=4)


def test_fewer_cameras_keep_the_first_and_say_so(tmp_path):
    state = upstream_state()
    imported = trireid.read_upstream(saved(tmp_path, state), image_size=IMAGE, num_cameras=2)
    assert torch.equal(imported.model.backbone.camera_embedding.weight, state["BACKBONE.cv_embed"][:2, 0])
    assert "camera embedding: 3 rows reduced to 2: the first 2 are kept" in imported.report.notes


def test_one_key_with_and_without_the_prefix_of_parallel_runs_is_refused(tmp_path):
    state = upstream_state()
    state["module.classifier.weight"] = state["classifier.weight"] + 1
    with pytest.raises(CheckpointError, match="with and without the prefix module"):
        read_upstream(saved(tmp_path, state), image_size=IMAGE)


class Hostile:
    def __reduce__(self):
        return (open, ("hostile_was_here", "w"))


@pytest.mark.parametrize("kind", ["hostile", "truncated", "garbage", "other_model", "absent"])
def test_files_that_are_no_upstream_checkpoint_give_one_clear_error(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if kind == "hostile":
        path.write_bytes(pickle.dumps({"BACKBONE.cv_embed": Hostile()}))
    elif kind == "truncated":
        saved(tmp_path, upstream_state(), "w.pth")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "garbage":
        path.write_bytes(b"nothing of the kind")
    elif kind == "other_model":
        torch.save({"layer1.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"w\.pth") as caught:
        trireid.load_upstream(path, image_size=IMAGE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile_was_here").exists()
