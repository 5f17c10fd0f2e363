"""YAML of strangers: whatever it holds, plain values or one line, in little time and memory."""

import os

import pytest

from trireid.config.load import load_config
from trireid.config.read import MAX_DEPTH, MAX_NODES, parse_yaml, read_mapping
from trireid.errors import ConfigError, printable
from trireid.upstream.configuration import load_upstream_yaml

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(60))
MERGES = "b0: &b0 {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}\n" for n in range(1, 30))
REFUSED = {
    "aliases of aliases": (LAUGHS, f"more than {MAX_NODES} values"),
    "merges of merges": (MERGES, f"more than {MAX_NODES} values"),
    "a list within itself": ("a: &a [*a]", "*a refers to itself"),
    "a mapping within itself": ("&a\ndata: *a", "*a refers to itself"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(40_000)), f"more than {MAX_NODES} values"),
    "deep lists": ("a: " + "[" * 900 + "]" * 900, f"more than {MAX_DEPTH} lists or mappings"),
    "deep mappings": ("a: " + "{a: " * 5000, f"more than {MAX_DEPTH} lists or mappings"),
    "deep keys": ("? " * 5000 + "a", f"more than {MAX_DEPTH} lists or mappings"),
    "an empty int": ("a: !!int ''", "the tag !!int is not allowed"),
    "a bool of text": ("a: !!bool x", "the tag !!bool is not allowed"),
    "a tag of Python": ("a: !!python/object/apply:os.system ['true']", "is not allowed"),
    "a large hexadecimal number": ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
    "a long number": ("a: " + "9" * 5000, "a number of 5000 characters"),
    "a number to base 8": ("seed: 010", "010 would be read in base 8 or 60"),
    "a number to base 60": ("lr: 1:30", "1:30 would be read in base 8 or 60"),
    "digits of nothing": ("a: 0x_", "0x_ is not a number"),
    "the character 0": ('a: "b\\0c"', "a control character or surrogate, '\\x00'"),
    "half a character": ('a: "\\ud800"', "a control character or surrogate, '\\ud800'"),
    "a long text": ("#" + "x" * 1_000_001, "1000002 characters"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_what_no_settings_hold_is_one_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="run.yaml")
    line = str(caught.value)
    assert line.startswith("run.yaml")
    assert said in line
    assert line.isprintable()
    assert len(line) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("base: &b {lr: 1e-4, epochs: 3}\nother: {<<: *b, epochs: 5}", {"lr": 1e-4, "epochs": 5}),
        ("other: 2024-01-01", "2024-01-01"),  # a folder may have this name
        ("other: '010'", "010"),
        ("other: [0, -1, 0.5, 0x10, 1_000, .5, true]", [0, -1, 0.5, 16, 1000, 0.5, True]),
    ],
)
def test_plain_values_and_aliases_of_reasonable_size_are_read(text, value):
    assert parse_yaml(text, source="a")["other"] == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "output=~nobody_here/x",
            "output: given '~nobody_here/x', should be a path; no home folder is known for ~nobody_here",
        ),
        ('model.backbone.pretrained="a\\0b"', "a control character"),
        ("\x1b[31m=1", "unknown setting \\x1b[31m"),
        ("train.epochs=" + "x" * 100_000, "train.epochs: given"),
        ("x" * 100_000 + "=1", "unknown setting xxx"),
        ("train.epochs=" + "9" * 99, "less than or equal to 9223372036854775807"),
    ],
)
def test_overrides_of_strangers_are_one_short_line(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"), (tmp_path, "is a folder")):
        for read in (read_mapping, load_config, load_upstream_yaml):
            with pytest.raises(ConfigError, match=said):
                read(path if read is load_config else type(tmp_path)(path))


def test_text_for_messages_is_one_line_that_a_terminal_does_not_obey():
    assert printable("a\x1b[2J\nb\ud800 日本 é") == "a\\x1b[2J\\nb\\ud800 日本 é"
    assert len(printable("x" * 1000)) == 300
