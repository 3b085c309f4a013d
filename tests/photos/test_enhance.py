"""What enhance_photo promises of every pixel: outside, along the border, luma, grey, depth, alpha, size."""

import resource
from contextlib import nullcontext
from dataclasses import astuple, replace

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpenlib.images import ImageError, to_grey, write_image
from gpenlib.photos import enhance_photo, find_faces
from gpenlib.photos.enhance import is_monochrome, square_mask
from gpenlib.photos.find import square_corners
from gpenlib.photos.upscale import TiledUpscaler


@pytest.fixture(scope="module")
def faces(astronaut, detector):
    return find_faces(astronaut, detector)


def inside(face, shape, grown=1.0):
    mask = np.zeros(shape[:2], np.uint8)
    corners = np.rint(square_corners(face.landmarks, grown)).astype(np.int32)
    return cv2.dilate(cv2.fillConvexPoly(mask, corners, 1), np.ones((5, 5))) > 0


@pytest.mark.parametrize("reach", [1.0, 2.4])
@pytest.mark.parametrize("kind", ["colourer", "restorer"])
def test_outside_no_bit_changes_and_no_border_shows(request, kind, reach, astronaut, faces):
    made = enhance_photo(astronaut, request.getfixturevalue(kind), faces=faces, reach=reach)
    (face,) = made.faces
    grown = reach if kind == "colourer" else 1.0
    changed = made.image.astype(int) - astronaut
    assert not changed[~inside(face, astronaut.shape, grown)].any()
    assert np.abs(changed).max() > 20  # the face itself was changed
    border = np.rint(square_corners(face.landmarks, grown)).astype(np.int32)
    line = cv2.polylines(np.zeros(astronaut.shape[:2], np.uint8), [border], isClosed=True, color=1) > 0
    assert np.abs(changed[line]).max() <= 1  # no step along the border


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("coloured", [True, False])
def test_colouring_keeps_the_luma_of_every_pixel(colourer, astronaut, faces, depth, coloured):
    photo = astronaut if coloured else to_grey(astronaut)
    photo = photo if depth == np.uint8 else photo.astype(np.uint16) * 257 - (photo > 0)
    made = enhance_photo(photo, colourer, faces=faces)
    assert made.image.dtype == depth and made.image.shape == photo.shape
    luma = [image @ np.array([0.299, 0.587, 0.114]) for image in (photo, made.image)]
    assert np.abs(luma[0] - luma[1]).max() <= 1 * (257 if depth == np.uint16 else 1)
    assert (made.image != photo).any()


def test_without_keeping_the_luma_the_network_decides_it(colourer, astronaut, faces):
    brighter = type(colourer)(lambda batch: batch + 0.3, "color")
    photo = to_grey(astronaut)
    assert (enhance_photo(photo, brighter, faces=faces).image == photo).all()  # it has no chroma to give
    lighter = enhance_photo(photo, brighter, faces=faces, keep_luminance=False).image
    assert lighter.mean() > photo.mean() + 1


@pytest.mark.parametrize("tone", [(0, 0, 0), (18, 4, -22)], ids=["grey", "sepia"])
def test_a_black_and_white_photo_stays_so_when_it_is_restored(astronaut, faces, tone, colourer):
    grey = to_grey(astronaut).astype(int) // 2 + 50
    photo = (grey + np.array(tone)).astype(np.uint8)
    assert is_monochrome(photo) and not is_monochrome(astronaut)
    restorer = type(colourer)(colourer.answer, "restore")  # its answer is tinted
    made = enhance_photo(photo, restorer, faces=faces).image.astype(int)
    assert (made != photo).any()
    chroma = made - made[:, :, :1]
    assert np.abs(chroma - (photo.astype(int) - photo[:, :, :1].astype(int))).max() <= 1


def test_strength_mixes_with_the_photograph(restorer, astronaut, faces):
    none, half, whole = (
        enhance_photo(astronaut, restorer, faces=faces, strength=s).image for s in (0, 0.5, 1)
    )
    assert (none == astronaut).all()
    between = (astronaut.astype(int) + whole) / 2
    assert np.abs(half - between).mean() < 0.3 and np.abs(half - between).max() <= 12  # less what was clipped


def test_an_identity_changes_next_to_nothing(astronaut, faces, colourer):
    identity = type(colourer)(lambda batch: batch, "restore", 256)
    made = enhance_photo(astronaut, identity, faces=faces).image
    assert np.abs(made.astype(int) - astronaut).mean() < 0.2


def test_what_is_finer_than_the_network_is_kept(astronaut, faces, colourer):
    blurred = type(colourer)(lambda batch: batch, "restore", 64)  # a face of 168 px through 64
    made = enhance_photo(astronaut, blurred, faces=faces).image
    inner = inside(faces[0], astronaut.shape, 0.6)
    assert np.abs(made.astype(int) - astronaut)[inner].mean() < 1.5


def test_a_face_far_above_the_networks_size_is_left_and_it_says_so(astronaut, faces, colourer):
    made = enhance_photo(astronaut, type(colourer)(lambda batch: -batch, "restore", 32), faces=faces)
    assert (made.image == astronaut).all()
    assert made.faces[0].done == f"left as it was: {faces[0].side:.0f} px wide, and the network gives 32"


def test_alpha_is_carried_over_and_hidden_colours_are_not_looked_at(restorer, astronaut, faces, detector):
    alpha = np.full(astronaut.shape[:2], 255, np.uint8)
    seen = np.dstack([astronaut, alpha])
    made = enhance_photo(seen, restorer, detector=detector)
    assert len(made.faces) == 1 and (made.image[..., 3] == alpha).all()
    hidden = np.dstack([astronaut, np.where(inside(faces[0], alpha.shape, 1.3), 0, alpha).astype(np.uint8)])
    made = enhance_photo(hidden, restorer, detector=detector)
    assert made.faces == [] and (made.image == hidden).all()


def test_without_a_face_the_photo_comes_back_and_the_note_says_so(restorer, detector):
    photo = np.full((90, 120, 3), 77, np.uint8)
    made = enhance_photo(photo, restorer, detector=detector)
    assert made.faces == [] and (made.image == photo).all() and made.image is not photo
    assert made.note == "no face was found; the photograph is as it was"
    assert "as asked for (0)" in enhance_photo(photo, restorer, faces=0, detector=detector).note


def test_aligned_pictures_without_eyes_are_refused(restorer):
    for side, fits in ((1, False), (15, False), (16, True)):
        with (
            nullcontext()
            if fits
            else pytest.raises(ImageError, match=f"{side} x {side} pixels.*16 pixels or more")
        ):
            enhance_photo(np.full((side, side, 3), 9, np.uint8), restorer, aligned=True)


@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_the_luma_is_kept_where_faces_overlap(colourer, astronaut, faces, gain):
    photo = np.clip(to_grey(astronaut) * gain, 0, 255).astype(np.uint8)
    strong = type(colourer)(lambda b: b + np.array([0.9, 0, -0.9], np.float32)[None, :, None, None], "color")
    moved = [replace(face, landmarks=shifted(face.landmarks, 60)) for face in faces]
    made = enhance_photo(photo, strong, faces=[*faces, *moved], reach=2.4).image
    assert np.abs((made - photo.astype(float)) @ np.array([0.299, 0.587, 0.114])).max() <= 1


def shifted(landmarks, by):
    return type(landmarks)(*((x + by, y) for x, y in astuple(landmarks)))


def black_and_white(photo):
    """Old photographs as they come: toned, compressed, with a date, a frame, scanner noise."""
    grey = to_grey(photo)
    sepia = np.array([[0.393, 0.349, 0.272], [0.769, 0.686, 0.534], [0.189, 0.168, 0.131]])
    toned = np.clip(grey @ sepia, 0, 255).astype(np.uint8)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", toned, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    dated, framed = grey.copy(), grey.copy()
    dated[-12:, -60:] = (250, 140, 0)
    framed[:20] = framed[-20:] = (200, 20, 20)
    noisy = np.clip(grey + np.random.default_rng(0).normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
    return {
        "grey": grey,
        "sepia": toned,
        "sepia JPEG": jpeg,
        "dated": dated,
        "framed": framed,
        "noisy": noisy,
    }


def test_old_photographs_are_told_from_coloured_ones(astronaut, faces):
    assert not is_monochrome(astronaut, faces)
    assert {
        name for name, photo in black_and_white(astronaut).items() if not is_monochrome(photo, faces)
    } == set()


def test_keeping_the_luma_of_a_black_and_white_photo_leaves_nothing_to_restore(colourer, astronaut, faces):
    tinting = type(colourer)(colourer.answer, "restore")
    made = enhance_photo(to_grey(astronaut), tinting, faces=faces, keep_luminance=True)
    assert (made.image == to_grey(astronaut)).all() and made.faces[0].done.startswith("left as it was")


def test_files_grey_arrays_and_faces_that_are_chosen(restorer, astronaut, detector, tmp_path):
    path = write_image(tmp_path / "a.png", astronaut)
    by_file = enhance_photo(path, restorer, detector=detector)
    grey = enhance_photo(to_grey(astronaut)[..., 0], restorer, detector=detector)
    assert (by_file.image == enhance_photo(astronaut, restorer, detector=detector).image).all()
    assert grey.image.shape == astronaut.shape[:2] and len(grey.faces) == 1
    assert enhance_photo(astronaut, restorer, faces="400px", detector=detector).faces == []


def test_aligned_pictures_are_one_face_without_a_border(colourer, astronaut):
    photo = np.ascontiguousarray(astronaut[:64, :64])
    made = enhance_photo(photo, type(colourer)(lambda batch: -batch, "restore"), aligned=True)
    assert np.abs(made.image.astype(int) - (255 - photo.astype(int))).max() <= 2
    np.testing.assert_allclose(made.faces[0].square[[0, 2]], [[-0.5, -0.5], [63.5, 63.5]], atol=1e-6)
    with pytest.raises(ImageError, match="aligned faces are square"):
        enhance_photo(astronaut[:40, :64], colourer, aligned=True)


def test_50_megapixels_need_no_more_than_a_few_copies(colourer, astronaut, detector):
    photo = cv2.resize(to_grey(astronaut), (7071, 7071), interpolation=cv2.INTER_LINEAR)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = enhance_photo(photo, colourer, reach=2.4, detector=detector)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert len(made.faces) == 1 and made.image.shape == photo.shape and (made.image != photo).any()
    assert grown < 8 * photo.nbytes  # 1.2 GB


@pytest.mark.parametrize(
    ("change", "message"),
    [({"strength": 1.5}, "strength"), ({"upscale": 3}, "upscale"), ({"reach": 3}, "reach"),
     ({"faces": "many"}, "faces"), ({"task": "colour"}, "task"), ({"strength": "1"}, "strength"),
     ({"upscale": 2.0}, "upscale"), ({"upscaler": "x.onnx"}, "upscaler"),
     ({"keep_luminance": "no"}, "keep_luminance")],
)  # fmt: skip
def test_wrong_values_are_named(restorer, astronaut, change, message):
    with pytest.raises(ValueError, match=message):
        enhance_photo(astronaut, restorer, **change)


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 4, 2), (2, 3, 4, 5)])
def test_what_is_no_picture_is_refused(restorer, shape):
    with pytest.raises(ImageError, match="expected"):
        enhance_photo(np.zeros(shape, np.uint8), restorer)
    with pytest.raises(ImageError, match="NoneType"):
        enhance_photo(None, restorer)
    with pytest.raises(ImageError, match="float32"):
        enhance_photo(np.zeros((8, 8, 3), np.float32), restorer)


def test_a_network_that_does_not_say_is_asked_what_it_does(colourer, astronaut, faces):
    unknown = type(colourer)(colourer.answer, None)
    assert enhance_photo(to_grey(astronaut), unknown, faces=faces).faces[0].done == "coloured"
    unknown = type(colourer)(lambda batch: batch, None)
    assert enhance_photo(astronaut, unknown, faces=faces).faces[0].done == "restored"


def test_an_upscaler_that_gives_another_size_is_named(restorer, astronaut):
    with pytest.raises(ImageError, match="upscaler gave"):
        enhance_photo(astronaut, restorer, faces=[], upscale=2, upscaler=lambda photo, factor: photo)


@pytest.mark.parametrize("factor", [2, 4])
def test_faces_are_put_back_at_the_enlarged_size(restorer, astronaut, faces, factor):
    alpha = np.full(astronaut.shape[:2], 255, np.uint8)
    made = enhance_photo(np.dstack([astronaut, alpha]), restorer, faces=faces, upscale=factor)
    assert made.image.shape == (factor * 512, factor * 512, 4) and (made.image[..., 3] == 255).all()
    changed = enhance_photo(astronaut, restorer, faces=faces).image.astype(int) - astronaut
    plain = enhance_photo(astronaut, restorer, faces=[], upscale=factor).image
    large = cv2.resize(
        made.image[..., :3] - plain.astype(np.float32), (512, 512), interpolation=cv2.INTER_AREA
    )
    assert np.abs(large - changed).mean() < 0.2 < np.abs(changed).mean()  # the same change, enlarged


def super_resolution(path, side="H", scale=2):
    """An ONNX file that enlarges linearly, as a network with a context of one pixel would."""
    shape = [1, 3, side, "W" if side == "H" else side]
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")]
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, scale, scale])
    graph = helper.make_graph(
        nodes, "sr",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, None, None])],
        [scales],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("side", "scale", "factor"), [("H", 2, 2), (96, 2, 2), (96, 4, 2), ("H", 2, 4)])
def test_tiles_show_no_seams(tmp_path, astronaut, side, scale, factor):
    photo = np.ascontiguousarray(astronaut[:300, :211])
    upscaler = TiledUpscaler(super_resolution(tmp_path / "sr.onnx", side, scale), tile=100)
    made = upscaler(photo, factor)
    whole = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    assert made.shape == whole.shape and made.dtype == np.uint8
    tolerance = 1 if scale == factor else 40  # there the rest is resized by another filter
    assert np.abs(made.astype(int) - whole).max() <= tolerance
    steps = np.abs(np.diff(made.astype(int) - whole, axis=1)).mean(axis=(0, 2))
    assert steps.max() <= steps.mean() * 3 + 0.5  # no column where tiles meet stands out


def test_what_the_networks_own_padding_spoils_never_shows(tmp_path):
    """A wide filter with zero padding darkens the border of every tile."""
    weights = np.zeros((3, 3, 17, 17), np.float32)
    weights[range(3), range(3)] = 1 / 289
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[8] * 4)]
    nodes.append(helper.make_node("Resize", ["y", "", "s"], ["z"], mode="linear"))
    values = [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())]
    values.append(helper.make_tensor("s", TensorProto.FLOAT, [4], [1, 1, 2, 2]))
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3, "H", "W"])
    graph = helper.make_graph(nodes, "sr", [entry], [out], values)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "sr.onnx")
    made = TiledUpscaler(tmp_path / "sr.onnx", tile=100)(np.full((300, 260, 3), 200, np.uint8), 2)
    assert (made == 200).all()


def test_networks_that_do_not_enlarge_are_named(tmp_path, astronaut):
    with pytest.raises(FileNotFoundError, match="absent.onnx"):
        TiledUpscaler(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ImageError, match="text.onnx"):
        TiledUpscaler(tmp_path / "text.onnx")
    with pytest.raises(ImageError, match="expected"):
        TiledUpscaler(super_resolution(tmp_path / "less.onnx", scale=0.5))(astronaut, 2)


def test_the_mask_is_zero_on_the_border_and_smooth():
    u, v = np.meshgrid(np.linspace(0, 1, 201, dtype=np.float32), np.linspace(0, 1, 201, dtype=np.float32))
    mask = square_mask(u, v, 0.15)
    assert mask[0].max() == mask[:, -1].max() == 0 and mask[100, 100] == 1
    assert np.abs(np.diff(mask, axis=0)).max() < 0.06
