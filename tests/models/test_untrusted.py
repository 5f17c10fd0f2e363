"""Weight files of strangers: whatever they hold, usable tensors or one clear line, and no memory for mere claims."""

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import trireid
from trireid.cli.app import app
from trireid.errors import CheckpointError
from trireid.models.backbone import create_vit
from trireid.models.untrusted import check_memo, one_line, value_fault
from trireid.models.weights import load_backbone_weights, read_state
from trireid.upstream.importing import import_file
from trireid.upstream.state_dict import UpstreamMismatchError

from upstream_states import DIM, IMAGE, PATCH, WIDTH, Draw, clip_visual, upstream_state

NAME = "classifier.weight"
TABLES = {
    "int_key": (lambda: {3: torch.ones(2)}, "a key of type int"),
    "escape_code": (lambda: {"evil\x1b[31m\nkey": torch.ones(1)}, r"the key 'evil\\x1b\[31m\\nkey'"),
    "long_key": (lambda: {"x" * 100_000: torch.ones(1)}, "1000 at most"),
    "sparse": (lambda: {NAME: torch.ones(5, 192).to_sparse()}, "classifier.weight is sparse_coo, not dense"),
    "quantised": (lambda: {NAME: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "weight is of qint8"),
    "meta": (lambda: {NAME: torch.zeros(5, 192, device="meta")}, r"no values in memory \(device meta\)"),
    "complex": (lambda: {NAME: torch.zeros(5, 192, dtype=torch.complex64)}, "classifier.weight is of complex64"),
    "many_classes": (lambda: {NAME: torch.zeros(1).expand(200_000_000, 192)}, "more values than its storage holds"),
    "many_cameras": (lambda: {"BACKBONE.cv_embed": torch.zeros(1).expand(10**9, 1, 8)}, "more values than its storage"),
    "many_views": (lambda: dict.fromkeys(map(str, range(100)), torch.ones(10**6)), "claims tensors of 40.,"),
}


@pytest.fixture
def hostile(request, tmp_path):
    make, message = TABLES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of making it
        torch.save({**upstream_state(), **make()}, tmp_path / "w.pth")
    return tmp_path / "w.pth", message


@pytest.mark.slow
@pytest.mark.parametrize("hostile", TABLES, indirect=True)
def test_what_is_no_plain_table_is_refused_by_every_way_in(hostile):
    path, message = hostile
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a remark of torch would be a second line
        with pytest.raises(CheckpointError, match=message) as caught:
            read_state(path)
        result = CliRunner().invoke(app, ["import", str(path), str(path.with_suffix(".safetensors"))])
    assert str(caught.value).isprintable()
    assert (result.exit_code, result.stderr) == (2, f"error: {caught.value}\n")
    vit = create_vit("tiny", image_size=(16, 16), width=16, depth=1, num_heads=2)
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(vit, name="tiny", pretrained=str(path))


def test_a_raw_pickle_gives_no_remark_of_torch(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": open}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            read_state(tmp_path / "w.pth")


def test_ordinary_files_pass(tmp_path):
    tied = torch.ones(4, 3, dtype=torch.bfloat16)
    state = {"a.weight": tied, "b.weight": tied, "c": nn.Parameter(torch.ones(2)), "ids": torch.arange(3).expand(1, -1)}
    state |= {"turned": torch.ones(2, 3).T, "empty": torch.zeros(0, 3), "n": torch.tensor(3)}
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "legacy.pth"):
        read = read_state(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in state.items())


def test_an_archive_that_unpacks_to_many_times_its_size_is_not_opened(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="unpacks to .* more than 10 times as many"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("number", [3, 2**28, 2**31 - 1])
def test_memo_numbers_beyond_the_steps_of_a_pickle_are_refused(number):
    with pytest.raises(ValueError, match=f"a part of number {number} after 2 steps"):
        check_memo(b"\x80\x02]r" + number.to_bytes(4, "little") + b".")


def test_memo_numbers_of_true_pickles_pass():
    shared = ["a"] * 3
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check_memo(pickle.dumps([{str(n): (shared, n / 3) for n in range(400)}], protocol=protocol))


def test_an_error_that_quotes_a_file_is_printable_and_short():
    assert one_line(ValueError("no \x1b[31mred\nsecond")) == "no \\x1b[31mred"
    assert len(one_line(ValueError("x" * 5000))) == 300
    assert one_line(KeyError(101)) == "KeyError 101"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("a.weight", torch.tensor([1.0, torch.nan, torch.inf]), "has 2 of 3 values that are not finite"),
        ("a.weight", torch.ones(2, dtype=torch.int64), "is of int64, not of real numbers"),
        ("a.running_var", torch.tensor([0.0, -1.0]), "has negative values, which a variance cannot have"),
        ("a.running_mean", torch.tensor([0.0, -1.0]), None),
        ("a.weight", torch.zeros(0), None),
        ("a.num_batches_tracked", torch.tensor(7), None),
        ("a.num_batches_tracked", torch.tensor(7.0), None),
        ("a.num_batches_tracked", torch.tensor(7.5), "is no count"),
        ("a.num_batches_tracked", torch.tensor(-1), "is no count"),
        ("a.num_batches_tracked", torch.tensor(torch.nan), "is no count"),
    ],
)
def test_values_without_use_are_told(name, value, fault):
    assert value_fault(name, value) == fault


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("bottleneck.weight", lambda t: t * torch.nan, "bottleneck.weight has 192 of 192 values that are not finite"),
        ("bottleneck.running_var", lambda t: -t, "bottleneck.running_var has negative values"),
        ("BACKBONE.base.conv1.weight", lambda t: t.long(), "BACKBONE.base.conv1.weight is of int64"),
        ("rgb_reduce.1.weight", lambda t: t.double() * 1e300, "rgb_reduce.1.weight has .* not finite"),  # in float32
    ],
)
def test_a_checkpoint_of_upstream_with_such_values_is_refused(tmp_path, key, change, message):
    state = upstream_state()
    state[key] = change(state[key])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UpstreamMismatchError, match=message) as caught:
        trireid.load_upstream(tmp_path / "w.pth", image_size=IMAGE)
    assert list(caught.value.report.unusable) == [key]
    result = CliRunner().invoke(
        app, ["import", str(tmp_path / "w.pth"), str(tmp_path / "o.safetensors"), "--image-size", "16x8"]
    )
    assert "no weights" in result.stdout
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("form", ["clip", "timm"])
@pytest.mark.parametrize(("spoil", "fault"), [(lambda t: t * torch.inf, "not finite"), (lambda t: t.int(), "of int32")])
def test_start_weights_with_such_values_are_refused(tmp_path, form, spoil, fault):
    sizes = {"patch_size": PATCH, "width": WIDTH, "depth": 2, "num_heads": 2, "projection": DIM}
    vit = create_vit("clip_vit_b16", image_size=IMAGE, **sizes)
    if form == "clip":
        draw = Draw(1)
        clip_visual(draw, "visual.")
        state, key = draw.state, "visual.transformer.resblocks.1.mlp.c_fc.bias"
    else:
        state, key = vit.state_dict(), "blocks.1.mlp.fc1.bias"
    state[key] = spoil(state[key] + 1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=f"no weights: {key} .*{fault}"):
        load_backbone_weights(vit, name="clip_vit_b16", pretrained=str(tmp_path / "w.safetensors"), image_size=IMAGE)


def test_shapes_that_would_ask_for_memory_are_refused_before_it_is_taken(tmp_path):
    """The file holds all that it says; the model of such shapes would be of petabytes."""
    state = upstream_state()
    state["classifier.weight"] = torch.zeros(3_000_000, 1, dtype=torch.bfloat16)
    state["BACKBONE.cv_embed"] = torch.zeros(3_000_000, 1, 1, dtype=torch.bfloat16)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UpstreamMismatchError, match="classifier.weight give"):
        trireid.load_upstream(tmp_path / "w.pth", image_size=IMAGE)
    draw = Draw(1)
    clip_visual(draw, "visual.", positions=16)
    draw.state["visual.conv1.weight"] = torch.zeros(1_000_000, 3, 1, 1, dtype=torch.bfloat16)
    torch.save(draw.state, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="of another shape"):
        import_file(tmp_path / "clip.pt", tmp_path / "o.safetensors")


def test_names_like_markup_are_shown_as_they_are(tmp_path):
    (tmp_path / "we[").mkdir()
    torch.save({**upstream_state(), "[bold]k[/bold][/x]": torch.ones(1)}, tmp_path / "we[/x]ird.pth")
    arguments = [str(tmp_path / "we[/x]ird.pth"), str(tmp_path / "o.safetensors"), "--image-size", "16x8"]
    result = CliRunner().invoke(app, ["import", *arguments])
    assert result.exit_code == 2
    assert "[bold]k[/bold][/x]" in result.stdout
    assert "[bold]k[/bold][/x]" in result.stderr


def test_a_pickle_that_makes_bytes_of_any_size_is_not_opened(tmp_path):
    path = tmp_path / "m.pth"
    for content in (bytearray(10), {"a": torch.zeros(1), "b": bytearray(10)}):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(CheckpointError, match="more than tensors"):
                read_state(path)


def test_a_name_that_no_system_takes_is_no_file():
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state(Path("x" * 5000))
