"""The examples in docstrings run, and every public function and class has one or a reason why not."""

import ast
import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import trireid

ROOT = Path(trireid.__file__).parent
WITH_EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
NO_EXAMPLE = {
    "needs a trained run": {
        "Embedder",
        "evaluate_checkpoint",
        "export_onnx",
        "export_torch",
        "OnnxEmbedder",
        "load_checkpoint",
        "load_model",
        "write_report",
    },
    "needs a checkpoint of upstream": {"load_upstream", "read_upstream"},
    "needs a CUDA device": {"RecordedModel"},
    "needs loaders and a model; examples/ shows both": {"build_model", "evaluate_model"},
    "a type that other examples show": {"Batch", "Config", "ReIDOutput", "Selection"},
    "an error": {"TrireidError"},
}


def module_name(path):
    return ".".join(("trireid", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def test_examples_were_found():
    assert len(WITH_EXAMPLES) >= 10


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_the_examples_of_a_module_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = doctest.testmod(import_module(module_name(path)), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0
    assert done.failed == 0


def test_public_names_have_an_example_or_a_reason():
    names = {name for name in trireid.__all__ if callable(getattr(trireid, name))}
    without = {name for name in names if ">>> " not in (inspect.getdoc(getattr(trireid, name)) or "")}
    assert sorted(without) == sorted(name for reason in NO_EXAMPLE.values() for name in reason)


def test_public_functions_say_what_they_raise_or_return():
    for name in trireid.__all__:
        thing = getattr(trireid, name)
        if inspect.isfunction(thing):
            assert len(inspect.getdoc(thing).splitlines()) > 1, f"{name}: a docstring of one line says too little"


def test_docstrings_are_sentences():
    """Every public function of a public module starts with a sentence that ends."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text:
                    assert text.split("\n\n")[0].rstrip().endswith((".", ":", "?", "`")), f"{path.name}: {node.name}"
