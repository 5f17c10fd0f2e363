from __future__ import annotations

import torch

from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.verification import EqualError
from trireid.types import Labels, Protocol
from trireid.visualize.curves import (
    cmc_curves,
    compared_figures,
    distance_histogram,
    history_figures,
    history_series,
)

HISTORY = [
    {"epoch": 1, "loss": {"total": 3.0, "id": 2.0}, "lr": {"backbone": 1e-5, "other": 1e-4}},
    {"epoch": 2, "loss": {"total": 2.0, "id": 1.5}, "lr": {"backbone": 5e-5, "other": 5e-4},
     "metrics": {"test": {"joint": {"mAP": 0.5, "rank1": 0.75}}}},
]  # fmt: skip


def panel(figure):
    (axis,) = figure.axes
    return axis


def test_series_join_nested_names_and_keep_epochs():
    assert history_series(HISTORY, "loss") == {"total": ([1.0, 2.0], [3.0, 2.0]), "id": ([1.0, 2.0], [2.0, 1.5])}
    assert history_series(HISTORY, "metrics")["test joint mAP"] == ([2.0], [0.5])
    assert history_series([{"epoch": 1, "loss": 2}], "loss") == {"": ([1.0], [2.0])}
    assert history_series(HISTORY, "nothing") == {}


def test_training_curves_draw_what_was_recorded():
    losses, rates, precision, first = map(panel, history_figures(HISTORY).values())
    assert [line.get_label() for line in losses.lines] == ["total", "id"]
    assert list(losses.lines[0].get_ydata()) == [3.0, 2.0]
    assert rates.get_yscale() == "log"
    assert [line.get_label() for line in precision.lines] == ["test joint"]
    assert list(precision.lines[0].get_ydata()) == [50.0]
    assert list(first.lines[0].get_ydata()) == [75.0]
    styles = {(line.get_color(), line.get_linestyle()) for line in losses.lines}
    assert len(styles) == 2


def test_nothing_recorded_is_said_and_zero_rates_stay_linear():
    figures = history_figures([{"epoch": 1, "lr": {"backbone": 0.0}}])
    assert panel(figures["Loss"]).texts[0].get_text() == "nothing recorded"
    assert panel(figures["Learning rate"]).get_yscale() == "linear"


def test_runs_are_drawn_over_each_other_under_their_names():
    losses, precision = map(panel, compared_figures({"a": HISTORY, "b": HISTORY[:1]}).values())
    assert [line.get_label() for line in losses.lines] == ["a", "b"]
    assert [line.get_label() for line in precision.lines] == ["a: test joint"]


def test_cmc_curve_is_that_of_the_metrics():
    labels = Labels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.full((4,), -1), torch.arange(4))
    distance = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    ranking = rank_metrics(distance, labels, labels, Protocol("p"))
    line = panel(cmc_curves({"joint": ranking}, max_rank=3)).lines[0]
    assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
    assert list(line.get_ydata()) == [100 * ranking.rank(r) for r in (1, 2, 3)]


def test_the_histogram_counts_both_kinds_and_draws_the_threshold():
    same, different = torch.tensor([0.0, 0.1, 0.1]), torch.tensor([0.9, 1.0])
    axis = panel(distance_histogram(same, different, EqualError(0.0, 0.5), num_bins=10))
    first, _, second, _ = (patch.get_data() for patch in axis.patches)
    assert first.values.nonzero()[0].tolist() == [0, 1]
    assert second.values.nonzero()[0].tolist() == [9]
    assert list(axis.lines[0].get_xdata()) == [0.5, 0.5]
    assert [text.get_text() for text in axis.figure.legends[0].get_texts()] == [
        "same identity (3 pairs)",
        "different (2 pairs)",
        "threshold 0.500",
    ]


def test_one_kind_of_pairs_alone_is_drawn_without_a_threshold():
    axis = panel(distance_histogram(torch.tensor([0.3, 0.3]), torch.tensor([]), None))
    assert len(axis.patches) == 2
    assert not axis.lines
