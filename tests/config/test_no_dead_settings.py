"""No dead settings: every setting of the schema is read somewhere outside config/.

The reads are found in the syntax trees, by following variables, parameters and attributes that hold a section: that a
name like `width` occurs somewhere is not enough.
"""

import ast
from pathlib import Path

import pytest

from trireid.config import schema
from trireid.config.load import setting_paths
from trireid.config.schema import Config, Section

SOURCE = Path(schema.__file__).parents[1]
SECTIONS = {name: kind for name, kind in vars(schema).items() if isinstance(kind, type) and issubclass(kind, Section)}
CHILDREN = {
    kind: {name: field.annotation for name, field in kind.model_fields.items() if field.annotation in SECTIONS.values()}
    for kind in SECTIONS.values()
}


class Reads(ast.NodeVisitor):
    """Collects (section, setting) pairs that one module reads."""

    def __init__(self, attributes):
        self.found = set()
        self.names = {}
        self.attributes = attributes  # attributes of any object that are known to hold a section

    def kind_of(self, node):
        if isinstance(node, ast.Name):
            return self.names.get(node.id, Config if node.id == "config" else None)
        if isinstance(node, ast.Attribute):
            owner = self.kind_of(node.value)
            if owner is None:
                return CHILDREN[Config].get(node.attr) or self.attributes.get(node.attr)
            return CHILDREN[owner].get(node.attr)
        return None

    def visit_FunctionDef(self, node):
        outer, self.names = self.names, dict(self.names)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            self.bind(argument.arg, named_section(argument.annotation))
        self.generic_visit(node)
        self.names = outer

    def visit_Assign(self, node):
        self.visit(node.value)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
            for left, right in pairs:
                if isinstance(left, ast.Name):
                    self.bind(left.id, self.kind_of(right))
                elif isinstance(left, ast.Attribute) and self.kind_of(right):
                    self.attributes[left.attr] = self.kind_of(right)

    def visit_AnnAssign(self, node):
        if isinstance(node.target, ast.Name) and named_section(node.annotation):
            self.attributes[node.target.id] = named_section(node.annotation)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        owner = self.kind_of(node.value)
        if owner is not None and node.attr in owner.model_fields:
            self.found.add((owner, node.attr))
        if owner is not None and owner is not Config and node.attr == "model_dump":  # handed on as keywords
            self.found |= {(owner, name) for name in owner.model_fields}
        self.generic_visit(node)

    def bind(self, name, kind):
        if kind is None:
            self.names.pop(name, None)
        else:
            self.names[name] = kind


def named_section(annotation):
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else []
    return next((SECTIONS[name] for name in names if name in SECTIONS), None)


def reads_of(texts):
    attributes = {}
    for _ in range(2):  # the second time with the attributes of all classes known
        found = set()
        for text in texts:
            reader = Reads(attributes)
            reader.visit(ast.parse(text))
            found |= reader.found
    return found


def owner_of(path):
    kind = Config
    for name in path.split(".")[:-1]:
        kind = CHILDREN[kind][name]
    return kind


@pytest.fixture(scope="module")
def reads():
    files = [path for path in SOURCE.rglob("*.py") if (SOURCE / "config") not in path.parents]
    return reads_of([path.read_text(encoding="utf-8") for path in sorted(files)])


@pytest.mark.parametrize("path", list(setting_paths()))
def test_every_setting_is_read_outside_config(reads, path):
    assert (owner_of(path), path.rpartition(".")[2]) in reads, f"{path} is never read: wire it or take it out"


def test_the_search_finds_reads_through_variables_parameters_and_attributes():
    text = """
class Keeper:
    def __init__(self, settings: TrainConfig): self.rule = settings
    def lr(self): return self.rule.lr
def one(config: Config):
    data, train = config.data, config.train
    return data.root, train.epochs
def two(settings: EvaluateConfig | None): return settings.rerank
def three(run): return run.config.model.backbone.name
def four(config): return dict(**config.data.augmentation.model_dump())
"""
    found = {f"{kind.__name__}.{name}" for kind, name in reads_of([text]) if name not in ("data", "train", "model")}
    assert found >= {"TrainConfig.lr", "DataConfig.root", "TrainConfig.epochs", "EvaluateConfig.rerank"}
    assert found >= {"BackboneConfig.name", "AugmentationConfig.flip", "AugmentationConfig.jitter"}
    assert "BackboneConfig.width" not in found


def test_the_search_is_not_fooled_by_equal_names_elsewhere():
    assert reads_of(["def f(image): return image.width, image.data.shape, image.seed"]) == set()
