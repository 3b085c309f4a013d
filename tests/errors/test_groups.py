"""Groups of faces: skin tone from known colours, thirds, losses per group, trends."""

import math

import numpy as np
import pytest
from skimage.color import lab2rgb

from gpenlib.data.faces import open_folder
from gpenlib.data.pairs import Pairs, read_pack, write_pack
from gpenlib.errors.compare import (
    GROUP_SCORES,
    NOT_MEASURED,
    SKIN_PLACES,
    THIRDS,
    TRAITS,
    face_traits,
    group_losses,
    ita_group,
    trends,
    typology_angle,
)
from gpenlib.images import write_image
from gpenlib.metrics import to_lab


def skin(lightness, a, b, side=64):
    lab = np.broadcast_to(np.float64((lightness, a, b)), (side, side, 3))
    return np.rint(255 * lab2rgb(lab)).astype(np.uint8)


@pytest.mark.parametrize(
    ("lightness", "b", "group"),
    [
        (75, 12, "very light"), (67, 16, "light"), (62, 18, "intermediate"), (56, 18, "tan"),
        (46, 16, "brown"), (30, 12, "dark"),
    ],
)  # fmt: skip
def test_skin_of_known_colour(lightness, b, group):
    angle = typology_angle(to_lab(skin(lightness, 12, b)))
    assert angle == pytest.approx(math.degrees(math.atan((lightness - 50) / b)), abs=2)
    assert ita_group(angle) == group


@pytest.mark.parametrize(
    ("angle", "group"),
    [
        (55.1, "very light"), (55, "light"), (41.1, "light"), (41, "intermediate"), (28, "tan"),
        (10, "brown"), (-29.9, "brown"), (-30, "dark"), (-90, "dark"), (None, NOT_MEASURED),
    ],
)  # fmt: skip
def test_limits_of_the_groups(angle, group):
    assert ita_group(angle) == group


def test_grey_pictures_have_no_skin_tone():
    assert typology_angle(to_lab(skin(60, 0, 0))) is None


@pytest.mark.parametrize("side", [64, 256])
def test_only_cheeks_and_forehead_count_and_a_covered_forehead_does_not(side):
    picture = skin(25, 2, 5, side)  # dark hair everywhere
    for x, y in SKIN_PLACES[:2]:
        rows = slice(int((y - 0.06) * side), int((y + 0.06) * side))
        columns = slice(int((x - 0.06) * side), int((x + 0.06) * side))
        picture[rows, columns] = skin(70, 12, 14, 1)[0, 0]
    assert typology_angle(to_lab(picture)) == pytest.approx(math.degrees(math.atan(20 / 14)), abs=2)


def test_traits_of_a_pack(tmp_path):
    colours = [(40, 5, 8), (60, 12, 18), (75, 10, 14)]
    for index, colour in enumerate(colours):
        write_image(tmp_path / f"pictures/{index}.png", skin(*colour))
    write_pack(tmp_path / "pack", Pairs(open_folder(tmp_path / "pictures"), "color", 64))
    traits = face_traits(read_pack(tmp_path / "pack"))
    assert [row["name"] for row in traits] == ["0", "1", "2"]
    assert [row["lightness"] for row in traits] == pytest.approx([40, 60, 75], abs=0.5)
    assert traits[0]["ita"] < 0 < traits[1]["ita"] < traits[2]["ita"]
    assert traits[0]["colourfulness"] < traits[1]["colourfulness"]


def make_traits(count=12):
    return [
        {"name": f"f{i}", "ita": -50.0 if i < 6 else 60.0, "lightness": float(i), "colourfulness": 20.0}
        for i in range(count)
    ]


def make_rows(traits, drop):
    scores = {"psnr": 24.0, "ssim": 0.9, "delta_e2000": 8.0}
    return [
        {"dtype": dtype, "name": row["name"], **scores}
        | {f"{score}_drop": drop(row) if dtype == "int8" else 0.0 for score in scores}
        for dtype in ("fp32", "int8")
        for row in traits
    ]


def only(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_loss_on_one_skin_tone_is_found_there_and_only_there():
    traits = make_traits()
    rows = make_rows(traits, lambda row: 0.5 + 0.001 * row["lightness"] if row["ita"] < 0 else 0.0)
    found = group_losses(rows, traits)
    light, dark = only(found, trait="ita", score="psnr")
    assert (light["group"], light["faces"], light["verdict"]) == ("very light", 6, "no difference shown")
    assert (dark["group"], dark["faces"], dark["verdict"]) == ("dark", 6, "drop")
    assert 0.5 < dark["drop_low"] < dark["drop"] < dark["drop_high"] < 0.51
    assert dark["fp32"] == 24.0
    assert {row["dtype"] for row in found} == {"int8"}


def test_thirds_hold_every_face_once_and_few_faces_are_marked():
    traits = make_traits()
    found = only(group_losses(make_rows(traits, lambda row: 0.1), traits), score="ssim")
    thirds = only(found, trait="lightness")
    assert [row["group"] for row in thirds] == list(THIRDS)
    assert [row["faces"] for row in thirds] == [4, 4, 4]
    assert all(row["verdict"] == "too few images" and row["drop_low"] is None for row in thirds)
    (same,) = only(found, trait="colourfulness")  # all alike: no thirds to be told apart
    assert same["faces"] == 12


def test_trends_follow_what_the_loss_follows():
    traits = make_traits(20)
    rows = make_rows(traits, lambda row: row["lightness"] ** 2)
    found = trends(rows, traits)
    assert len(found) == len(TRAITS) * len(GROUP_SCORES)
    (rising,) = only(found, trait="lightness", score="psnr")
    assert rising["correlation"] == pytest.approx(1.0) and rising["shown"] and rising["low"] > 0.9
    (flat,) = only(found, trait="colourfulness", score="psnr")
    assert flat["correlation"] == 0 and not flat["shown"]


def test_faces_without_skin_tone_are_left_out_of_its_trend():
    traits = make_traits()
    traits[0]["ita"] = None
    rows = make_rows(traits, lambda row: row["lightness"])
    (row,) = only(trends(rows, traits), trait="ita", score="psnr")
    assert row["faces"] == 11
    groups = only(group_losses(rows, traits), trait="ita", score="psnr")
    assert {row["group"]: row["faces"] for row in groups} == {"very light": 6, "dark": 5, NOT_MEASURED: 1}
    for row in traits:
        row["ita"] = None
    assert only(trends(rows, traits), trait="ita") == []


def test_scores_of_other_faces_are_refused():
    traits = make_traits()
    with pytest.raises(ValueError, match="fp32: scores and traits are of different faces: f11"):
        group_losses(make_rows(traits[:-1], lambda row: 0.0), traits)
