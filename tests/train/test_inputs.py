"""What a split says of itself before it is ranked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_run import untrained_run, write_tree
from trireid.config.load import override_config
from trireid.train.checkpoint import load_checkpoint
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint

UNKNOWN = "24 of 24 items are of cameras that the model was not trained with"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), identities=6)


@pytest.mark.slow
@pytest.mark.parametrize(("coefficient", "strange", "said"), [(1, True, True), (1, False, False), (0, True, False)])
def test_cameras_that_a_model_does_not_know_are_said(
    tree: Path, tmp_path: Path, coefficient: int, strange: bool, said: bool
) -> None:
    run = untrained_run(tree, tmp_path / "run", f"model.sie_coefficient={coefficient}")
    other = write_tree(tmp_path / "other", identities=6)
    if strange:
        for path in (other / "test").rglob("*_cam*"):
            path.rename(path.with_name(path.name.replace("_cam1", "_cam7").replace("_cam2", "_cam8")))
    config = override_config(load_checkpoint(run).config, [f"data.root={other}"])
    messages = evaluate_checkpoint(run, config=config, progress=False)["messages"]
    found = [message for message in messages if message.startswith(UNKNOWN)]
    assert bool(found) == said
    if said:
        assert "(7, 8; it knows 1, 2): they get the mean of those it knows" in found[0]
