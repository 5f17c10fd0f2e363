"""Checkpoints: our own, upstream's through `trireid import`, and start weights; bytes, descriptions and tensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import trireid
from fuzz.mutations import ODD_TEXT, changed_data, damaged, odd_place, odd_value
from fuzz.package import command, settings_text, tiny_tree
from fuzz.runner import Case, Kind
from tiny_run import untrained_run

from upstream_states import IMAGE, upstream_state

SIZE = ("--image-size", f"{IMAGE[0]}x{IMAGE[1]}")
State = dict[str, Tensor]
TOWER = "BACKBONE.base."
# Settings inside a checkpoint that would take all memory, read or write elsewhere, or cannot be.
LARGE_SETTINGS: tuple[tuple[str, Any], ...] = (
    ("data.image_size", [800_000, 800_000]), ("data.image_size", [10**30, 8]), ("data.image_size", [80_000, 1600]),
    ("model.backbone.width", 10**6), ("model.backbone.width", 16_384), ("model.backbone.depth", 10**9),
    ("model.backbone.depth", 3000), ("model.backbone.name", "vit_gigantic_patch14_224"), ("model.atmoe_heads", 10**9),
    ("model.backbone.name", "hf-hub:someone/x"), ("model.backbone.name", "local-dir:/tmp"), ("model.head", "hdm_atmoe"),
    ("model.backbone.pretrained", "/etc/passwd"), ("model.backbone.pretrained", "timm"), ("output", "/etc/elsewhere"),
    ("data.root", "/dev/zero"), ("data.root", "a\0b"), ("data.root", "\ud800"), ("data.root", "x\nerror: y\x1b[31m"),
    ("data.cache_folder", "/etc/x"), ("data.cache", "disk"), ("evaluate.batch_size", 10**12), ("train.device", "cuda"),
    ("evaluate.rerank_k1", 10**12), ("data.mean", [1e308] * 3), ("data.std", [1e-308] * 3), ("data.workers", 5000),
    ("model.sdtps.aggr_ratio", 1e-9), ("model.slimming", [{"after_block": 1, "keep_ratio": 1e-9}]), ("data.format",
    "csv"),
)  # fmt: skip


class Runs:
    """Would run a command if it were unpickled; the watch of the child sees it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def prepare(folder: Path) -> None:
    """A run of ours that never trained, a tree, and upstream's two heads as torch and safetensors files."""
    root = tiny_tree(folder / "data")
    untrained_run(root, folder / "run")
    for head in ("sdtps", "hdm_atmoe"):
        torch.save(upstream_state(head), folder / f"{head}.pth")
    torch.save(upstream_state("sdtps"), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "base.yaml").write_text(settings_text(root, "run"), encoding="utf-8")


def read_own(base: Path) -> tuple[State, dict[str, str]]:
    """The tensors and the description of our own checkpoint."""
    with safe_open(base / "run" / "last.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def _use_own(case: Case, path: Path) -> None:
    way = case.random.random()
    if way < 0.4:
        trireid.load_model(path)
    elif way < 0.8:
        command("test", path, f"data.root={case.base / 'data'}", "data.cache=memory")
    elif way < 0.9:
        command("report", path)
    else:
        command("train", "--config", case.base / "base.yaml", f"model.backbone.pretrained={path}")


def own_bytes(case: Case) -> None:
    """Bytes of our file changed, in its header or anywhere."""
    data = (case.base / "run" / "last.safetensors").read_bytes()
    size = 8 + struct.unpack("<Q", data[:8])[0]
    path = case.folder / "m.safetensors"
    if case.random.random() < 0.6:
        path.write_bytes(damaged(case.random, data[:size]) + data[size:])
    else:
        path.write_bytes(damaged(case.random, data))
    _use_own(case, path)


def own_header(case: Case) -> None:
    """The header of our file changed as JSON, or something else in its place."""
    data = (case.base / "run" / "last.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(changed_data(case.random, header)).encode()
    if case.random.random() < 0.3:
        text = case.random.choice(
            (b"{" * 1000, b"[" * 100_000, b"", b"[]", b"null", b'{"__metadata__": {"trireid_format": "1"}}')
        )
    claimed = case.random.choice((len(text),) * 6 + (2**63, 99_000_000, 0))
    path = case.folder / "m.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + text + data[8 + size :])
    _use_own(case, path)


def own_description(case: Case) -> None:
    """The description inside our file: settings, label map, figures and the rest."""
    state, metadata = read_own(case.base)
    key = case.random.choice(sorted(metadata))
    way = case.random.random()
    if way < 0.35:
        config = json.loads(metadata["config"])
        for path, value in case.random.sample(LARGE_SETTINGS, case.random.choice((1, 1, 2))):
            case.describe(path, value)
            *sections, leaf = path.split(".")
            node = config
            for section in sections:
                node = node[section]
            node[leaf] = value
        metadata["config"] = json.dumps(config)
    elif way < 0.75 and metadata[key].startswith(("{", "[")):
        metadata[key] = json.dumps(changed_data(case.random, json.loads(metadata[key])))
        case.describe(key, metadata[key])
    elif way < 0.85:
        del metadata[key]
    else:
        metadata[key] = case.random.choice(
            (*ODD_TEXT, "[" * 100_000, "[" * 900 + "]" * 900, "NaN", "1" * 5000, "{}", "null")
        )
        metadata[key] = metadata[key].encode("utf-8", "replace").decode()
        case.describe(key, repr(metadata[key][:100]))
    path = case.folder / "m.safetensors"
    safetensors.torch.save_file(state, path, metadata=metadata)
    _use_own(case, path)


def changed_tensors(random: Random, state: State, describe: Callable[..., None]) -> dict[Any, Any]:
    """Another type, value, shape, name or number of tensors."""
    result: dict[Any, Any] = dict(state)
    floats = [name for name, value in state.items() if value.is_floating_point()]
    name, way = random.choice(sorted(state)), random.randrange(9)
    value = state[name]
    if way == 0:
        kind = random.choice((torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool,
        torch.complex64,
                              torch.float8_e4m3fn))  # fmt: skip
        for each in floats if random.random() < 0.5 else random.sample(floats, 1):
            result[each] = state[each].to(kind)
        describe("type", kind)
    elif way == 1:
        filling = random.choice((float("nan"), float("inf"), 1e38, -1e38, 0.0, 1e-45, -1.0))
        for each in floats if random.random() < 0.5 else random.sample(floats, 1):
            result[each] = torch.full_like(state[each], filling)
        describe("values", filling)
    elif way == 2:
        result[name] = random.choice(
            (torch.tensor(0.5), torch.zeros(0), torch.zeros(1, 1, 1, 1, 1), value[None], value.flatten()[:-1])
        )
        describe(name, "of shape", tuple(result[name].shape))
    elif way == 3:
        del result[name]
        describe("without", name)
    elif way == 4:
        extra = random.choice((*ODD_TEXT, "x", f"{TOWER}transformer.resblocks.{10**18}.ln_1.weight", f"module.{name}"))
        result[extra.encode("utf-8", "replace").decode()] = torch.zeros(3)
        describe("and", repr(extra))
    elif way == 5:
        result |= {f"x{number}": torch.zeros(1) for number in range(random.choice((3, 3000)))}
        describe("many more")
    elif way == 6:
        result[name] = value.T.contiguous() if value.dim() == 2 else value.flatten()
        describe(name, "transposed")
    elif way == 7:
        for each in state:
            if "running_var" in each:
                result[each] = -state[each]
        describe("negative variances")
    else:
        result = {}
        describe("nothing")
    return result


def own_tensors(case: Case) -> None:
    """The tensors of our file."""
    state, metadata = read_own(case.base)
    path = case.folder / "m.safetensors"
    safetensors.torch.save_file(changed_tensors(case.random, state, case.describe), path, metadata=metadata)
    _use_own(case, path)


def _import(case: Case, path: Path, *options: object) -> None:
    """Import, or start a training from it."""
    if case.random.random() < 0.8:
        command("import", path, "imported.safetensors", *(options or SIZE))
    else:
        command("train", "--config", case.base / "base.yaml", f"model.backbone.pretrained={path}")


def upstream_tensors(case: Case) -> None:
    """The tensors of upstream's file, or something else than tensors under its keys."""
    state = torch.load(case.base / f"{case.random.choice(('sdtps', 'hdm_atmoe'))}.pth", weights_only=True)
    way = case.random.randrange(4)
    if way < 2:
        changed: Any = changed_tensors(case.random, state, case.describe)
    elif way == 2:
        changed = _odd_state(case.random, state)
    else:
        changed = case.random.choice((
            list(state.values()), {"state_dict": {"state_dict": state}}, {"state_dict": 5}, {"model": [1]}, None, 5,
            "x", {"module." + name: value for name, value in state.items()}, {**state, 5: torch.zeros(1)}, {**state,
            "x": None}, {"state_dict": state, "epoch": 5}, {"model": {**state, "a": odd_value(case.random)}},
        ))  # fmt: skip
    path = case.folder / "m.pth"
    torch.save(changed, path, _use_new_zipfile_serialization=case.random.random() < 0.8)
    _import(case, path)


def _odd_state(random: Random, state: State) -> dict[Any, Any]:
    """Shapes and layouts that upstream's code cannot have written."""
    block = f"{TOWER}transformer.resblocks."
    return random.choice((
        {**state, "x": torch.zeros(3, 3).to_sparse()}, {**state, "x": torch.zeros(3, device="meta")},
        {**state, f"{TOWER}proj": torch.zeros(1).expand(10**6, 10**6)},
        {name: torch.tensor(0.0).expand(value.shape) for name, value in state.items()},
        {name: value.T if value.dim() == 2 else value for name, value in state.items()},
        {**state, f"{TOWER}conv1.weight": torch.zeros(128, 3, 0, 0)}, {**state,
        f"{TOWER}conv1.weight": torch.zeros(128, 3, 1, 2)}, {**state, f"{TOWER}conv1.weight": torch.zeros(0, 3, 4, 4)},
        {**state, f"{TOWER}positional_embedding": torch.zeros(0, 128)}, {**state,
        f"{TOWER}positional_embedding": torch.zeros(1, 128)}, {**state, "classifier.weight": torch.zeros(0, 96)},
        {**state, "classifier.weight": torch.zeros(10**6, 1).expand(10**6, 96)}, {**state,
        "BACKBONE.cv_embed": torch.zeros(0, 1, 128)}, {**state, "BACKBONE.cv_embed": torch.zeros(10**5, 1, 128)},
        {**state, **{f"{block}{number}.ln_1.weight": torch.zeros(128) for number in range(3000)}}, {**state,
        f"{block}-1.ln_1.weight": torch.zeros(128)}, {**state, f"{block}\u0663.ln_1.weight": torch.zeros(128)},
        {**state, "generalFusion.moe.experts.99999999.expertHead.0.mlp.0.weight": torch.zeros(1)}, {**state,
        "sdtps.rgb_aggr.weight.3.weight": torch.zeros(0, 6)}, {**state,
        "sdtps.rgb_aggr.weight.3.weight": torch.zeros(10**6, 6)},
    ))  # fmt: skip


PICKLES = (
    b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02X\xff\xff\xff\xff.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", b"\x80\x02]" + b"](" * 50_000 + b".",
    b"\x80\x02]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b".", b"\x80\x02I" + b"9" * 1_000_000 + b"\n.", b"\x80\x02}", b".",
    b"\x80\x02L" + b"9" * 200_000 + b"L\n.", b"\x80\xff.", b"", b"\x80\x02Pabc\n.", b"\x80\x02\x82\x01.",
    b"(S'true'\nios\nsystem\n.", b"(cos\nsystem\nS'true'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00(J\xff\xff\xff\x7ft(K\x01t\x89ccollections\nOrderedDict\n)RtR.",
    b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01\x89}tR.", b"\x80\x02ctorch\nfrombuffer\n(tR.",
    b"\x80\x02ctorch\nempty\n(J\xff\xff\xff\x7ftR.", b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
    b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", b"\x80\x02ccollections\nCounter\n)R.",
    pickle.dumps(Runs(), 2), pickle.dumps({"state_dict": Runs()}, 4),
)  # fmt: skip


def rezipped(data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int) -> bytes:
    """A zip archive whose members are changed one by one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w", compression) as target:
        for info in source.infolist():
            for name, content in change(info.filename, source.read(info)):
                target.writestr(name, content)
    return stream.getvalue()


def upstream_archive(case: Case) -> None:
    """A torch file whose pickle is another, or whose archive lacks, doubles or changes members."""
    random, data = case.random, (case.base / "sdtps.pth").read_bytes()
    program = random.choice(PICKLES)

    def other_pickle(name: str, content: bytes) -> list[tuple[str, bytes]]:
        return [(name, program if name.endswith("data.pkl") else content)]

    def torchscript(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith("data.pkl"):
            return [(name, content)]
        folder = name.split("/")[0]
        code = (f"{folder}/code/__torch__.py", b"import os")
        return [
            (name, random.choice((content, program))),
            (f"{folder}/constants.pkl", random.choice((b"", program))),
            code,
        ]

    def escaping(name: str, content: bytes) -> list[tuple[str, bytes]]:
        return [(name, content), *([("../../../x", b"x")] if name.endswith("data.pkl") else [])]

    def members(name: str, content: bytes) -> list[tuple[str, bytes]]:
        way = random.random()
        if way < 0.03:
            return []
        if way < 0.06:
            return [(name, content[: len(content) // 2])]
        if way < 0.08:
            return [(name, content * 3)]
        return [(name, random.choice((b"", b"big", b"9" * 20)) if name.endswith(("byteorder", "version")) else content)]

    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    path = case.folder / "m.pth"
    if random.random() < 0.25:
        case.describe("pickle alone", program[:80])
        path.write_bytes(program)
    else:
        change = random.choice((other_pickle, torchscript, members, members, escaping))
        case.describe(change.__name__, compression, program[:80])
        path.write_bytes(rezipped(data, change, compression))
    _import(case, path)


def upstream_bytes(case: Case) -> None:
    """Bytes of upstream's file changed."""
    data = (case.base / case.random.choice(("sdtps.pth", "hdm_atmoe.pth", "legacy.pth"))).read_bytes()
    path = case.folder / "m.pth"
    start = case.random.choice((0, 0, len(data) - 12_000))
    path.write_bytes(data[:start] + damaged(case.random, data[start : start + 12_000]) + data[start + 12_000 :])
    _import(case, path)


def import_option(case: Case) -> None:
    """Options of `trireid import` out of range."""
    numbers = ("nan", "inf", "9", "-0.0", "0", "1e-300", "x")
    sizes = ("0x0", "1000000000x4", "40000x40000", "x", "-4x4", "9" * 400 + "x4", "17x8", "8x16", "32x16")
    options = {
        "--image-size": sizes, "--checkpoint-image-size": sizes, "--cameras": ("100000000", "1", "0", "x"),
        "--sie-coefficient": numbers, "--beta": numbers, "--sparse-ratio": numbers, "--ignore": ("*", "[", "",
        "classifier.*"), "--format": ("x", "csv", ""), "--backbone": ("x", "vit_base_patch16_224", "resnet50", ""),
    }  # fmt: skip
    given = {"--image-size": SIZE[1]}
    for option in case.random.sample(sorted(options), case.random.choice((1, 1, 2))):
        given[option] = case.random.choice(options[option])
    case.describe(given)
    source = case.base / f"{case.random.choice(('sdtps', 'hdm_atmoe'))}.pth"
    command("import", source, "imported.safetensors", *(word for pair in given.items() for word in pair))


def odd_file(case: Case) -> None:
    """A path that is no ordinary file, as checkpoint, run, source or start weights."""
    name, path = odd_place(case.random, case.folder)
    case.describe(name)
    if case.random.random() < 0.5:
        _use_own(case, path)
    else:
        _import(case, path)


KIND = Kind(
    "checkpoints",
    1200,
    prepare,
    {own_bytes: 18, own_header: 12, own_description: 20, own_tensors: 12, upstream_tensors: 14, upstream_archive: 10,
     upstream_bytes: 7, import_option: 4, odd_file: 3},
)  # fmt: skip
