"""Figures of notebook 06: what is shown, and where."""

import numpy as np
import pytest

from gpenlib.plots.train import interpolation_figure, losses_figure, mixing_figure, samples_figure


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_visible()]


def test_only_logged_terms_have_panels_and_evaluations_are_dots():
    rows = [{"step": s, "real_logit": 0.5, "fake_logit": -0.5, "r1": 0.1 * s**2} for s in range(1, 21)]
    rows[9]["held_out_logit"] = 0.2
    figure = losses_figure(rows, "prior")
    assert titles(figure) == ["what the discriminator says", "R1: slope of D at real faces"]
    said, slope = (axis for axis in figure.axes if axis.get_visible())
    assert [text.get_text() for text in said.get_legend().get_texts()] == [
        "training faces",
        "generated",
        "held-out faces",
    ]
    assert said.lines[-1].get_marker() == "o" and said.lines[-1].get_xdata().tolist() == [10]
    assert (said.get_yscale(), slope.get_yscale()) == ("linear", "log")
    raw, smoothed = slope.lines
    assert raw.get_alpha() < 1 and len(smoothed.get_ydata()) == 20


def test_samples_stand_in_the_order_of_steps():
    pictures = {step: np.full((30, 40, 3), step, np.uint8) for step in (20, 40)}
    figure = samples_figure(pictures, ("given", "output", "truth"))
    assert titles(figure) == ["step 20", "step 40"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["given", "output", "truth"]
    assert figure.axes[1].images[0].get_array()[0, 0, 0] == 40


@pytest.mark.parametrize("rows", [1, 3])
def test_walks_say_how_far_they_are(rows):
    figure = interpolation_figure(np.zeros((rows, 3, 8, 8, 3), np.uint8))
    assert titles(figure)[:3] == ["0.00", "0.50", "1.00"]
    assert sum(len(axis.images) for axis in figure.axes) == rows * 3


def test_mixtures_stand_between_their_sources():
    left, top = np.full((2, 4, 4, 3), 1, np.uint8), np.full((3, 4, 4, 3), 2, np.uint8)
    mixed = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(4, 2).repeat(4, 3).repeat(3, 4)
    figure = mixing_figure(left, top, mixed + 10, "(4 px)")
    shown = [
        [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes[i : i + 4] if axis.images]
        for i in (0, 4, 8)
    ]
    assert shown == [[2, 2, 2], [1, 10, 11, 12], [1, 13, 14, 15]]
    assert figure.get_supylabel() == "coarse styles (4 px) from the left"
