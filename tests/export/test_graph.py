"""The form of a model that exporters trace: no batch size is frozen, and the numbers are those of the model."""

import pytest
import torch
from tiny_models import KINDS, inputs, tiny_model

from trireid.errors import InputError
from trireid.export.graph import ExportedModel, needs_two
from trireid.types import modality_subsets


def expected(model, images, present, camera):
    """What the model gives, under the names of the exported outputs."""
    with torch.no_grad():
        output = model(images, present, camera)
    features = {name: output.features[name] for name in ("global", "head") if name in output.features}
    patches = {f"patches/{name}": chosen.indices for name, chosen in output.selection.items()}
    return {**features, "joint": output.embedding, **patches}


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.startswith("patches/"):
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def exported(model, *, batch=3):
    """The graph of a model, traced at one batch size."""
    least = 2 if needs_two(model) else 1
    size = torch.export.Dim("batch", min=1, max=1024)
    given = inputs(batch, least=least)
    expected(model, *given)  # tables that the model keeps are made from numbers, not while it is traced
    with torch.no_grad():
        graph = ExportedModel(model, selections=True)
        return torch.export.export(graph, given, dynamic_shapes=({0: size},) * 3, strict=False).module()


def check_batch_sizes(model, *sizes):
    graph = exported(model)
    for batch in sizes:
        given = inputs(batch, least=2 if needs_two(model) else 1, seed=batch)
        with torch.no_grad():
            check(graph(*given), expected(model, *given))


@pytest.mark.slow
def test_a_graph_traced_at_one_batch_size_runs_at_others():
    check_batch_sizes(tiny_model("SDTPS sound", "model.backbone.depth=1"), 1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "SDTPS sound"])
def test_no_kind_of_model_freezes_a_batch_size(kind):
    check_batch_sizes(tiny_model(kind), 1, 8)


@pytest.mark.parametrize("kind", ["both", "SDTPS after cuts", "HDM + ATMoE", "distinct", "learned"])
def test_a_graph_of_some_modalities_equals_the_model_without_the_others(kind):
    model = tiny_model(kind)
    images, _, camera = inputs(2, least=3)
    for subset in modality_subsets():
        present = torch.zeros(2, 3, dtype=torch.bool)
        present[:, list(subset)] = True
        with torch.no_grad():
            found = ExportedModel(model, modalities=subset, selections=True)(images[:, list(subset)], camera=camera)
        check(found, expected(model, images, present, camera))


def test_a_cut_that_needs_a_guide_is_refused_for_one_modality():
    with pytest.raises(InputError, match="needs two modalities"):
        ExportedModel(tiny_model("cross"), modalities=(1,))
