"""Items embedded without torch: the pixels of torchvision, the vectors of `Embedder`, refusals in one line."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from trireid.data.transforms import resize
from trireid.embedding.items import Item
from trireid.embedding.onnx import OnnxEmbedder
from trireid.embedding.onnx_metadata import METADATA_KEY, FeatureDescription, OnnxDescription
from trireid.embedding.resizing import resize_pixels
from trireid.errors import CheckpointError, InputError

SIZE = (8, 4)
DESCRIPTION = OnnxDescription(
    version="0", fingerprint="0" * 64, description="means of the channels",
    features={"global": FeatureDescription(blocks=((0,), (1,), (2,)), width=9)}, modalities=("rgb", "nir", "tir"),
    has_present=True, reads=("rgb", "nir", "tir"), cameras=("1", "2"), image_size=SIZE, mean=(0.5, 0.25, 0.0),
    std=(0.5, 1.0, 2.0), interpolation="bicubic", ranges={"rgb": None, "nir": None, "tir": (0.0, 1000.0)}, opset=18,
    precision="fp32",
)  # fmt: skip


def write_means(path, **changes):
    """A file whose feature is the mean of each channel, plus the index of the camera."""
    about = DESCRIPTION.model_copy(update=changes)
    count = len(about.modalities)
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", count, 3, *SIZE])]
    if about.has_present:
        inputs.append(helper.make_tensor_value_info("present", TensorProto.BOOL, ["B", 3]))
    inputs.append(helper.make_tensor_value_info("camera", TensorProto.INT64, ["B"]))
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "shape"], ["flat"]),
        helper.make_node("Cast", ["camera"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "last"], ["column"]),
        helper.make_node("Add", ["flat", "column"], ["global"]),
    ]
    constants = {"axes": [3, 4], "shape": [-1, 3 * count], "last": [1]}
    stored = [helper.make_tensor(name, TensorProto.INT64, [len(each)], each) for name, each in constants.items()]
    output = [helper.make_tensor_value_info("global", TensorProto.FLOAT, ["B", 3 * count])]
    model = helper.make_model(
        helper.make_graph(nodes, "means", inputs, output, stored), opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )  # fmt: skip
    helper.set_model_props(model, {METADATA_KEY: about.model_dump_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_means(tmp_path_factory.mktemp("onnx") / "means.onnx")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_gives_the_pixels_of_torchvision(interpolation):
    random = np.random.default_rng(0)
    for shape in ((5, 300, 3), (411, 97, 3), (32, 16, 3), (1, 1, 3), (7, 200, 3)):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        expected = resize([torch.from_numpy(pixels).permute(2, 0, 1)], (32, 16), interpolation)[0].permute(1, 2, 0)
        np.testing.assert_array_equal(resize_pixels(pixels, (32, 16), interpolation), expected.numpy())
        grey = np.ascontiguousarray(pixels[:, :, 0])
        np.testing.assert_array_equal(resize_pixels(grey, (32, 16), interpolation), expected.numpy()[:, :, 0])


def test_images_are_prepared_as_the_file_says(file, tmp_path):
    grey = np.full((16, 8), 51, dtype=np.uint8)
    deep = np.full((3, 3), 400, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "nir.png")
    items = [
        Item({"rgb": np.full((9, 9, 3), 255, np.uint8), "tir": deep}, key="a", camera="2"),
        {"nir": str(tmp_path / "nir.png")},
    ]
    embedder = OnnxEmbedder(file, feature="global", batch_size=1)
    found = embedder.embed(items)
    first, second = 1.0, -1.0  # the index of camera 2, and of an unknown one
    levels = [1.0, 0.75, 0.5, 0, 0, 0, (0.4 - 0.5) / 0.5, 0.4 - 0.25, 0.2]
    np.testing.assert_allclose(found.vectors[0], np.array(levels) + first, rtol=1e-6)
    np.testing.assert_allclose(found.vectors[1, 3:6], np.array([-0.6, -0.05, 0.1]) + second, rtol=1e-5)
    assert found.present.tolist() == [[True, False, True], [False, True, False]]
    assert [item.key for item in found.items] == ["a", "1"]
    assert (found.model, embedder.modalities) == (embedder.model, ("rgb", "nir", "tir"))
    assert (found.model.fingerprint, found.model.width) == ("0" * 64, 9)


def test_a_file_for_some_modalities_takes_them_alone_and_needs_all_of_them(tmp_path):
    fixed = {"modalities": ("rgb", "tir"), "reads": ("rgb", "tir"), "has_present": False,
             "features": {"global": FeatureDescription(blocks=((0,), (2,)), width=6)}}  # fmt: skip
    embedder = OnnxEmbedder(write_means(tmp_path / "two.onnx", **fixed), feature="global")
    image = np.zeros((8, 4, 3), np.uint8)
    found = embedder.embed([{"rgb": image, "nir": "never opened", "tir": image}])
    assert found.present.tolist() == [[True, False, True]]
    with pytest.raises(InputError, match=r"item 0: it has only rgb; the model needs 2 of rgb, tir"):
        embedder.embed([{"rgb": image}])


def test_a_model_with_a_cut_of_guidance_cross_needs_two_modalities(tmp_path):
    embedder = OnnxEmbedder(write_means(tmp_path / "cross.onnx", fewest=2), feature="global")
    with pytest.raises(InputError, match="needs 2 of rgb, nir, tir"):
        embedder.embed([{"rgb": np.zeros((8, 4, 3), np.uint8)}])


def test_an_item_that_cannot_be_read_is_named_or_left_out_with_a_warning(file, tmp_path, caplog):
    good = {"rgb": np.zeros((8, 4, 3), np.uint8)}
    embedder = OnnxEmbedder(file, feature="global", batch_size=2)
    items = [good, {"rgb": tmp_path / "no.jpg"}, Item({"rgb": np.zeros((2, 2), np.uint16)}, key="deep"), good]
    with pytest.raises(InputError, match=r"item 1: .*no\.jpg: cannot be read \(No such file"):
        embedder.embed(items)
    found = embedder.embed(items, skip_bad=True)
    assert [item.key for item in found.items] == ["0", "3"]
    assert "item 'deep': the rgb image holds uint16 values, and the model was trained on" in caplog.text
    assert len(embedder.embed([])) == 0


def test_wrong_files_and_arguments_are_one_line(file, tmp_path):
    wrong = tmp_path / "wrong.onnx"
    with pytest.raises(InputError, match="does not exist"):
        OnnxEmbedder(wrong)
    wrong.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="cannot be opened by ONNX Runtime"):
        OnnxEmbedder(wrong)
    wrong.write_bytes(file.read_bytes()[:-700])
    with pytest.raises(CheckpointError):
        OnnxEmbedder(wrong)
    with pytest.raises(InputError, match="has no feature 'joint': choose global"):
        OnnxEmbedder(file)
    with pytest.raises(InputError, match="no provider Fast here: choose from"):
        OnnxEmbedder(file, feature="global", providers=["Fast"])
    with pytest.raises(InputError, match="batch_size is 0"):
        OnnxEmbedder(file, feature="global", batch_size=0)


def test_no_torch_is_imported(file):
    lines = (
        "import sys, numpy",
        "from trireid.embedding.onnx import OnnxEmbedder",
        f"found = OnnxEmbedder({str(file)!r}, feature='global').embed([{{'rgb': numpy.zeros((8, 4, 3), 'uint8')}}])",
        "assert found.vectors.shape == (1, 9)",
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision', 'timm')])",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
