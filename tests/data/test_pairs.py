"""Pairs made when asked for, packs in the vendor's format, the vendor's operators, and colour statistics."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpenlib.data import pairs as module
from gpenlib.data.faces import DataError, embedded_faces, open_folder
from gpenlib.data.pairs import CACHED, Pack, Pairs, check_packs, distinct_stems, read_pack, unpack, write_pack
from gpenlib.data.tasks import TASKS
from gpenlib.images import ImageError, read_image, resize, write_image

SIZE = 32
FACES = embedded_faces(3, 64)


@pytest.fixture
def pack(tmp_path) -> Pack:
    write_pack(tmp_path / "pack", Pairs(FACES, "color", SIZE))
    return read_pack(tmp_path / "pack")


def save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)


def flat(*colour: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


# Pairs


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("out_size", [SIZE, 2 * SIZE])
def test_pairs_and_their_pack_are_those_of_the_task(tmp_path, task, out_size):
    """For super-resolution networks, too, whose truths are degraded in their own size."""
    pairs = Pairs(FACES, task, SIZE, out_size, seed=(5, 1))
    write_pack(tmp_path / "pack", pairs)
    for each in (pairs, read_pack(tmp_path / "pack")):
        assert (len(each), list(each.names)) == (3, ["astronaut_0000", "astronaut_0001", "astronaut_0002"])
        for index in range(3):
            truth = resize(FACES.read(index), out_size)
            shown = TASKS[task].degrade(truth, np.random.default_rng((5, 1, index)))
            assert np.array_equal(each.truths(index), truth)
            assert np.array_equal(each.inputs(index), resize(shown, SIZE))
        check_packs(each, None, task)
    copies = Pairs(FACES.take((0, 0)), "inpaint", SIZE)
    assert not np.array_equal(copies.inputs(0), copies.inputs(1)), "every place has a seed of its own"


def test_a_picture_is_decoded_once_for_input_and_truth_and_may_be_asked_for_by_threads():
    read: list[int] = []
    faces = embedded_faces(2 * CACHED, 64)
    pairs = Pairs(replace(faces, read=lambda index: read.append(index) or faces.read(index)), "color", SIZE)
    for index in range(len(pairs)):
        pairs.inputs(index), pairs.truths(index)
    assert read == list(range(len(pairs)))
    with ThreadPoolExecutor(8) as pool:
        truths = list(pool.map(pairs.truths, [*range(len(pairs))] * 3))
    assert all(np.array_equal(t, resize(faces.read(i % len(pairs)), SIZE)) for i, t in enumerate(truths))
    with pytest.raises(ValueError, match="read-only"):
        pairs.truths(0)[:] = 0


def test_inputs_from_files_are_not_degraded_and_the_middle_of_oblong_pictures_is_taken():
    wide = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (64, 1, 3))
    tall, middle = np.ascontiguousarray(wide.transpose(1, 0, 2)), wide[:, 16:80]
    faces = replace(FACES.take((0,)), read=lambda index: wide)
    assert np.array_equal(Pairs(faces, "inpaint", 64).truths(0), middle)
    real = replace(faces, inputs=replace(faces, read=lambda index: tall))
    pairs = Pairs(real, "inpaint", SIZE, 64)
    assert np.array_equal(pairs.truths(0), middle)
    assert np.array_equal(pairs.inputs(0), resize(tall[16:80], SIZE))
    others = (faces, replace(faces, inputs=FACES.take((1,))))
    digests = [Pairs(each, task, SIZE).digest() for each in (real, *others) for task in ("color", "inpaint")]
    assert len(set(digests)) == 4, "the inputs decide where there are some, else the task"


def test_the_digest_covers_all_that_decides_pairs_and_their_names(tmp_path):
    base = {"faces": FACES, "task": "restore", "in_size": 32, "out_size": 32, "seed": (0, 0)}
    changes = [
        {}, {"task": "restore-mild"}, {"in_size": 16}, {"out_size": 64}, {"seed": (0, 1)}, {"seed": (1, 0)},
        {"faces": FACES.take((0, 1))}, {"faces": FACES.take((1, 0, 2))},
        {"faces": replace(FACES, names=["a.png", "b.png", "c.png"])},
    ]  # fmt: skip
    assert len({Pairs(**base | change).digest() for change in changes}) == len(changes)
    assert Pairs(**base).digest() == Pairs(**base).digest()
    colour = [Pairs(FACES, "color", SIZE, seed=(seed,)).digest() for seed in (0, 1)]
    assert colour[0] == colour[1], "where nothing is drawn the seed does not count"
    with pytest.raises(ValueError, match="'colour'"):
        Pairs(FACES, "colour", SIZE)


def test_distinct_stems():
    assert distinct_stems(["a.jpg", "a.png", "a_2.png", "A.bmp"]) == ["a", "a_3", "a_2", "A_4"]
    assert distinct_stems(["two\nlines.png"]) == ["two_lines"]
    assert distinct_stems(["Zoë – Москва.v2.png"]) == ["Zoë – Москва.v2"]


def test_vendor_files_with_one_stem_stay_apart(tmp_path):
    """A datalist may name files of several folders, and stems with a dot of their own."""
    listed = ["a/1.npz", "b/1.npz", "a/x.v1.npz", "a/x.v2.npz"]
    for level, name in enumerate(listed):
        save(tmp_path / name, input_0=np.full((3, 8, 8), 50 * level, np.uint8))
    (tmp_path / "datalist.txt").write_bytes("\r\n".join(listed).encode())  # as Windows ends lines
    pack = read_pack(tmp_path)
    assert pack.names == ["1", "1_2", "x.v1", "x.v2"]
    written = unpack(pack, tmp_path / "pictures")
    assert [read_image(path)[0, 0, 0] for path in written] == [0, 50, 100, 150]
    assert [path.stem for path in written] == pack.names
    with pytest.raises(DataError, match=r"truth.1_2\.npz"):
        pack.truths(1)
    for name in pack.names:
        save(tmp_path / "truth" / f"{name}.npz", truth_0=np.full((3, 8, 8), len(name), np.uint8))
    assert [read_pack(tmp_path).truths(index)[0, 0, 0] for index in range(4)] == [1, 3, 4, 4]
    assert read_pack(tmp_path).take((1, 3)).truths(0)[0, 0, 0] == 3
    (tmp_path / "truth" / "1_2.npz").unlink()
    with pytest.raises(DataError, match=r"truth.1_2\.npz"):
        read_pack(tmp_path)


def test_vendor_format(tmp_path, pack):
    lines = (pack.folder / "datalist.txt").read_bytes().decode().split("\n")
    assert lines == [*(f"input/astronaut_000{index}.npz" for index in range(3)), ""]
    with np.load(pack.folder / lines[1]) as archive:
        assert archive.files == ["input_0"]
        assert (archive["input_0"].dtype, archive["input_0"].shape) == (np.uint8, (3, SIZE, SIZE))
    faces = embedded_faces(1, 64) + replace(FACES, read=lambda index: flat(255, 0, 0))
    for folder in ("a", "b"):
        write_pack(tmp_path / folder, Pairs(faces, "color", SIZE))
    with np.load(tmp_path / "a" / "truth" / "astronaut_0001.npz") as archive:
        assert archive.files == ["truth_0"]
        assert archive["truth_0"].mean(axis=(1, 2)).tolist() == [255, 0, 0], "RGB"
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 9
    assert all(f.read_bytes() == (tmp_path / "b" / f.relative_to(tmp_path / "a")).read_bytes() for f in files)


def test_damaged_picture_is_named_and_leaves_no_pack(tmp_path, pack):
    write_image(tmp_path / "faces" / "1.png", flat(0))
    (tmp_path / "faces" / "2.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"2\.png"):
        write_pack(pack.folder, Pairs(open_folder(tmp_path / "faces"), "color", SIZE))
    with pytest.raises(DataError, match=r"datalist\.txt"):
        read_pack(pack.folder)
    assert not list(pack.folder.rglob(".*")), "no temporary file is left"


def test_packs_that_cannot_be_used(tmp_path, pack):
    for folder in ("input", "truth"):
        moved = (pack.folder / folder / "astronaut_0001.npz").rename(tmp_path / "away")
        with pytest.raises(DataError, match=rf"{folder}.astronaut_0001\.npz"):
            read_pack(pack.folder)
        moved.rename(pack.folder / folder / "astronaut_0001.npz")
    for content, what in ((b"\n \n", "lists no file"), (b"\xff\xfe\x00", "UTF-8")):
        (pack.folder / "datalist.txt").write_bytes(content)
        with pytest.raises(DataError, match=rf"datalist\.txt: .*{what}"):
            read_pack(pack.folder)


def test_wrong_and_damaged_files_are_named(pack):
    path = pack.paths[1]
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(b ^ 0xFF if abs(i - middle) < 20 else b for i, b in enumerate(whole))
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 8, 8), np.uint8))
    for content in (path.read_bytes(), b"", b"no zip", whole[:middle], flipped):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"astronaut_0001\.npz.*input_0"):
            pack.inputs(1)
    save(path, input=np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"astronaut_0001\.npz.*input_0"):
        pack.inputs(1)
    for array in (np.zeros((3, 8, 8)), *(np.zeros(s, np.uint8) for s in ((8, 8, 3), (3, 64), (3, 0, 8)))):
        save(path, input_0=array)
        with pytest.raises(DataError, match=re.escape(f"{array.dtype} {array.shape}")):
            pack.inputs(1)


def test_what_check_packs_finds(tmp_path, pack):
    check_packs(pack, Pairs(embedded_faces(5, 64).take((3, 4)), "color", SIZE), "color")
    # The same pixels in two files, which the split cannot see
    write_image(tmp_path / "faces" / "copy.bmp", FACES.read(2))
    with pytest.raises(DataError, match="calibration/copy .* evaluation/astronaut_0002"):
        check_packs(pack, Pairs(open_folder(tmp_path / "faces"), "color", SIZE), "color")
    save(pack.paths[2], input_0=np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(DataError, match=r"astronaut_0002: \(16, 16, 3\)"):
        check_packs(pack, None, "color")
    save(pack.paths[1], input_0=flat(9, 0, 0, size=SIZE).transpose(2, 0, 1))
    with pytest.raises(DataError, match="astronaut_0001.*not grey"):
        check_packs(pack, None, "color")


# The vendor's operators


def preprocess(picture, operators, size=16):
    return module.preprocess(picture, module.parse_process_ops(operators), size)


@pytest.mark.parametrize(
    ("codes", "pixel"),
    [
        ("", (200, 100, 0)),
        ("BGR2RGB", (200, 100, 0)),  # it is RGB already
        ("RGB2BGR", (0, 100, 200)),  # the network wants BGR
        ("BGR2RGB RGB2BGR", (0, 100, 200)),
        ("RGB2BGR BGR2RGB", (200, 100, 0)),
        *((codes, (119, 119, 119)) for codes in ("BGR2GRAY", "RGB2GRAY", "RGB2BGR BGR2GRAY")),
    ],
)
@pytest.mark.parametrize("normalised_first", [False, True])
def test_colour_codes_name_the_order_that_the_network_wants(codes, pixel, normalised_first):
    operators = [{"type": "CvtColor", "code": f"COLOR_{code}"} for code in codes.split()]
    place = 0 if normalised_first else len(operators)
    operators.insert(place, {"type": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3})
    tensor = preprocess(flat(200, 100, 0), operators)
    assert tensor.dtype == np.float32 and tensor.shape == (1, 3, 16, 16)
    assert (tensor[0, :, 5, 5] + 1) * 127.5 == pytest.approx(pixel, abs=0.51)


def test_geometry_of_operators():
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    operators = [{"type": "CenterCrop", "size": [4, 6]}, {"type": "Pad", "value": 255}]
    tensor = preprocess(picture, operators, 8)[0].transpose(1, 2, 0)
    assert np.allclose(tensor[:4, :6] * 255, picture[2:6, 1:7]) and (tensor[4:] == 1).all()
    with pytest.raises(ValueError, match=r"\(3, 8, 8\).*\(3, 16, 16\)"):
        preprocess(picture, [])
    operators = [{"type": "Normalize"}, {"type": "Resize"}]
    first, last = (preprocess(picture, order) for order in (operators, operators[::-1]))
    assert 0 < np.abs(first - last).max() < 1 / 255, "resizing keeps fractions once there are some"


# Colours


def test_colours_of_pictures():
    grey = module.colour_row(flat(119, 119, 119))
    assert grey["red_mean"] == grey["green_mean"] == grey["blue_mean"] == 119 and grey["red_std"] == 0
    assert grey["lightness"] == pytest.approx(50, abs=0.1)  # sRGB 119 is the middle of CIELAB lightness
    assert (grey["chroma"], grey["colourfulness"]) == pytest.approx((0, 0), abs=0.02)
    red = module.colour_row(flat(255, 0, 0))  # CIELAB of the sRGB primary: 53.24, 80.09, 67.20
    assert (red["lightness"], red["lab_a"], red["lab_b"]) == pytest.approx((53.24, 80.09, 67.20), abs=0.02)
    assert red["chroma"] == pytest.approx(104.55, abs=0.03)
    image = flat(0, 0, 0)
    image[:, :8] = (200, 100, 0)
    row = module.colour_row(image)
    assert [row[f"{name}_mean"] for name in ("red", "green", "blue")] == [100, 50, 0]
    assert [row[f"{name}_std"] for name in ("red", "green", "blue")] == [100, 50, 0]
    # rg is 100 or 0, yb is 150 or 0: deviations 50 and 75, means 50 and 75
    assert row["colourfulness"] == pytest.approx(1.3 * math.hypot(50, 75))
    image[:, :8], image[:, 8:] = (80, 130, 130), (180, 119, 119)
    row = module.colour_row(image)
    assert math.hypot(row["lab_a"], row["lab_b"]) < row["chroma"] / 2, "opposite colours, mean near grey"
