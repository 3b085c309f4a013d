"""The figures of vividness: of answers that are right, grey, tinted or blotched."""

from __future__ import annotations

import cv2
import numpy as np

from gpenlib.images import Image, to_grey
from gpenlib.metrics import to_lab
from tests.test_docs import ROOT, load

quality = load(ROOT / "benchmarks/colour_quality.py")
SKIN, LIPS, WHITE, IRIS, HAIR = (200, 150, 125), (190, 80, 90), (225, 222, 220), (60, 45, 35), (50, 35, 30)
POINTS = np.array([[46, 56], [82, 56], [64, 74], [52, 92], [76, 92]], dtype=np.float32)


def face(skin: tuple[int, int, int] = SKIN) -> Image:
    """A drawn face at POINTS: eyes, nose, mouth."""
    image = np.full((128, 128, 3), HAIR, dtype=np.uint8)
    cv2.ellipse(image, (64, 70), (40, 52), 0, 0, 360, skin, -1)
    cv2.ellipse(image, (64, 93), (13, 5), 0, 0, 360, LIPS, -1)
    for x, y in POINTS[:2].astype(int).tolist():
        cv2.ellipse(image, (x, y), (8, 4), 0, 0, 360, WHITE, -1)
        cv2.circle(image, (x, y), 2, IRIS, -1)
    return image


def test_a_right_answer_a_grey_one_a_tinted_one_and_a_blotched_one() -> None:
    truth = face()
    tint = cv2.addWeighted(to_grey(truth), 0.6, np.full_like(truth, SKIN), 0.4, 0.0)
    blotched = truth.copy()
    blotched[60:80:2, 40:90, 0] -= 40
    scores = {
        name: quality.score([image], [truth], [to_lab(truth)], [POINTS])
        for name, image in {"right": truth, "grey": to_grey(truth), "tint": tint, "rough": blotched}.items()
    }
    right = scores["right"]
    assert right["distance"] == right["distance_by_lightness"] == 0
    assert right["colourfulness_percent"] == right["variation_percent"] == 100
    assert right["lips_percent"] == right["eyes_percent"] == 100
    assert scores["grey"]["colourfulness_percent"] == 0 < scores["grey"]["distance"]
    assert scores["tint"]["lips_percent"] == scores["tint"]["eyes_percent"] == 0, "one tint on everything"
    assert scores["rough"]["variation_percent"] > 150


def test_faces_are_sorted_by_their_skin_and_the_direction_of_the_error_is_told() -> None:
    truths = [face((235, 205, 190)), face((110, 75, 55))]
    redder = [cv2.add(truth, np.full_like(truth, (20, 0, 0))) for truth in truths]
    labs = [to_lab(truth) for truth in truths]
    rows = quality.by_tone("redder", redder, truths, labs, [POINTS, POINTS])
    assert [row["skin"] for row in rows] == ["dark", "very light"]
    assert all(row["faces"] == 1 and row["redder"] > 2 and row["cheeks_colour"] > 2 for row in rows)
    same = quality.by_tone("same", truths, truths, labs, [POINTS, None])
    assert len(same) == 1 and same[0]["cheeks_colour"] == same[0]["cheeks_lightness"] == 0
