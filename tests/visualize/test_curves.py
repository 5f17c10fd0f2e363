from __future__ import annotations

import torch

from trireid.evaluation.metrics import rank_metrics
from trireid.types import Labels, Protocol
from trireid.visualize.curves import cmc_curves, history_series, training_curves

HISTORY = [
    {"epoch": 1, "loss": {"total": 3.0, "id": 2.0}, "lr": {"backbone": 1e-5, "other": 1e-4}},
    {"epoch": 2, "loss": {"total": 2.0, "id": 1.5}, "lr": {"backbone": 5e-5, "other": 5e-4},
     "metrics": {"test": {"joint": {"mAP": 0.5, "rank1": 0.75}}}},
]  # fmt: skip


def test_series_join_nested_names_and_keep_epochs():
    assert history_series(HISTORY, "loss") == {"total": ([1.0, 2.0], [3.0, 2.0]), "id": ([1.0, 2.0], [2.0, 1.5])}
    assert history_series(HISTORY, "metrics")["test joint mAP"] == ([2.0], [0.5])
    assert history_series([{"epoch": 1, "loss": 2}], "loss") == {"": ([1.0], [2.0])}
    assert history_series(HISTORY, "nothing") == {}


def test_training_curves_draw_what_was_recorded():
    losses, rates, figures = training_curves(HISTORY).axes
    assert [line.get_label() for line in losses.lines] == ["total", "id"]
    assert list(losses.lines[0].get_ydata()) == [3.0, 2.0]
    assert rates.get_yscale() == "log"
    assert [line.get_label() for line in figures.lines] == ["test joint"]
    assert list(figures.lines[0].get_ydata()) == [50.0]
    styles = {(line.get_color(), line.get_linestyle()) for line in losses.lines}
    assert len(styles) == 2


def test_nothing_recorded_is_said_and_zero_rates_stay_linear():
    losses, rates, _ = training_curves([{"epoch": 1, "lr": {"backbone": 0.0}}]).axes
    assert losses.texts[0].get_text() == "nothing recorded"
    assert rates.get_yscale() == "linear"


def test_cmc_curve_is_that_of_the_metrics():
    labels = Labels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.full((4,), -1), torch.arange(4))
    distance = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    ranking = rank_metrics(distance, labels, labels, Protocol("p"))
    line = cmc_curves({"joint": ranking}, max_rank=3).axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
    assert list(line.get_ydata()) == [100 * ranking.rank(r) for r in (1, 2, 3)]
