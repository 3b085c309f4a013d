"""Pixels: reading and writing, channel order, range and rounding."""

import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile  # comes with scikit-image
from PIL import Image as Pillow
from PIL import ImageCms, JpegImagePlugin

from gpenlib import images

RED = np.full((32, 32, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_lossless_round_trip(tmp_path, picture):
    path = images.write_image(tmp_path / "Gesichter – 顔/Zoë.png", picture)
    assert np.array_equal(images.read_image(path), picture)


@pytest.mark.parametrize("suffix", images.WRITTEN)
def test_pure_red_reads_as_red(tmp_path, suffix):
    """OpenCV's own order is blue, green, red."""
    path = images.write_image(tmp_path / f"red{suffix}", RED)
    other = tmp_path / f"other{suffix}"
    Pillow.fromarray(RED).save(other)
    for image in (images.read_image(path), np.asarray(Pillow.open(path)), images.read_image(other)):
        assert image[16, 16].tolist() == pytest.approx([255, 0, 0], abs=4)  # jpg and webp are lossy


def levels_of(mode: str, size: tuple[int, int] = (20, 12)) -> np.ndarray:
    """Return a smooth picture in a mode of Pillow's, or 16 bits a channel in one with ";16" added."""
    width, height = size
    channels = {"L": 1, "1": 1, "LA": 2, "RGBA": 4}.get(mode.partition(";")[0], 3)
    y, x, c = np.mgrid[:height, :width, :channels]
    shares = (x / (width - 1) + (y + 2 * c) / (height + 2 * channels)) / 2
    return np.rint(shares * (65535 if ";" in mode else 255)).astype(np.uint16 if ";" in mode else np.uint8)


def save(path: Path, mode: str, **options) -> np.ndarray:
    """Write a picture of a mode and return what is to be read: RGB, and a fourth channel if it has alpha."""
    levels = levels_of(mode)
    if levels.dtype == np.uint16:
        order = [2, 1, 0, 3][: levels.shape[2]] if levels.shape[2] > 2 else [0]
        path.write_bytes(cv2.imencode(path.suffix, levels[:, :, order])[1].tobytes())
        return levels
    image = Pillow.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).convert(mode)
    image.save(path, **options)
    return np.array(image.convert("RGBA" if mode in ("LA", "RGBA") else "RGB"))


@pytest.mark.parametrize(
    ("mode", "suffixes"),
    [
        ("RGB", ".png .tif .bmp .webp .jpg .avif"),
        ("RGBA", ".png .tif .webp .avif"),
        ("L", ".png .tif .bmp .jpg"),
        ("LA", ".png .tif"),
        ("1", ".png .tif .bmp"),
        ("P", ".png .tif .bmp"),
        ("YCbCr", ".jpg"),
        ("CMYK", ".jpg .tif"),
        ("L;16", ".png .tif"),
        ("RGB;16", ".png .tif"),
        ("RGBA;16", ".png .tif"),
    ],
)
def test_what_is_opened_and_written_again_is_the_same(tmp_path, mode, suffixes):
    for suffix in suffixes.split():
        lossy = suffix in (".jpg", ".avif", ".webp")
        levels = save(tmp_path / f"a.b{suffix}", mode, **({"quality": 95} if lossy else {}))
        first = images.open_picture(tmp_path / f"a.b{suffix}")
        path = images.write_picture(tmp_path / "again.b", first, first.pixels, first.alpha)
        assert path.name == ("again.b.jpg" if suffix == ".jpg" else "again.b.png")
        for picture in (first, images.open_picture(path)):
            tolerance = 16 if lossy else 0
            assert picture.pixels.dtype == levels.dtype and picture.pixels.shape == (12, 20, 3)
            assert np.abs(picture.pixels - levels[:, :, :3].astype(int)).max() <= tolerance
            assert (picture.alpha is not None) == (levels.shape[2] == 4)
            if picture.alpha is not None:
                assert np.abs(picture.alpha - levels[:, :, 3].astype(int)).max() <= tolerance
            assert picture.grey == (mode in ("L", "LA", "1", "L;16"))
        if first.alpha is None:
            eight = (levels / (257 if ";" in mode else 1)).round()
            assert np.abs(images.read_image(tmp_path / f"a.b{suffix}") - eight).max() <= tolerance


def test_grey_with_alpha_and_a_transparent_level_of_sixteen_bits(tmp_path):
    """Neither Pillow nor OpenCV writes them: the first is patched, and the second is a chunk put in."""
    levels = levels_of("LA;16")
    image = Pillow.fromarray(levels.astype(">u2").view(np.uint8).reshape(12, 20, 4), "RGBA")
    image.save(tmp_path / "a.png")  # the same bytes a pixel, so the same filters
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20, 12, 16, 4, 0, 0, 0)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    picture = images.open_picture(tmp_path / "a.png")
    assert picture.grey and np.array_equal(picture.pixels, levels[:, :, :1].repeat(3, axis=2))
    assert np.array_equal(picture.alpha, levels[:, :, 1])
    save(tmp_path / "key.png", "L;16")
    level = levels_of("L;16")[3, 4, 0]
    chunk = b"tRNS" + struct.pack(">H", level)
    data, chunk = (
        (tmp_path / "key.png").read_bytes(),
        b"\0\0\0\2" + chunk + struct.pack(">I", zlib.crc32(chunk)),
    )
    (tmp_path / "key.png").write_bytes(data[:33] + chunk + data[33:])
    alpha = images.open_picture(tmp_path / "key.png").alpha
    assert np.array_equal(alpha == 0, levels_of("L;16")[:, :, 0] == level) and alpha[0, 0] == 65535


@pytest.mark.parametrize("kind", ["RGBA", "P", "RGB", "L"])
def test_what_is_transparent_is_middle_grey(tmp_path, kind):
    colours = np.tile(np.array([[255, 0, 255, 255], [0, 255, 0, 0]], np.uint8), (8, 4, 1))  # [8, 8, 4]
    if kind == "L":
        colours[:, :, :3] = colours[:, :, :1]
    image = Pillow.fromarray(colours if kind == "RGBA" else np.ascontiguousarray(colours[:, :, :3]))
    image = image.quantize(2) if kind == "P" else image.convert(kind)
    key = {"P": image.getpixel((1, 0)), "RGB": (0, 255, 0), "L": 0}  # the colour that is transparent
    image.save(tmp_path / "a.png", **({"transparency": key[kind]} if kind in key else {}))
    read = images.read_image(tmp_path / "a.png")
    assert np.array_equal(read[:, ::2], colours[:, ::2, :3]) and (read[:, 1::2] == 128).all()


def test_half_transparent_pixels_are_blended(tmp_path):
    deep = np.full((4, 4, 4), 65535, np.uint16)
    deep[:, :, 3] = 32768
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    assert (images.read_image(tmp_path / "a.png") == 192).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif", ".heic", "16.png", "16.tif"])
def test_photographs_are_turned_as_their_exif_says(tmp_path, suffix):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path, upright, turn = tmp_path / f"a{suffix}", levels_of("RGB", (64, 48)), Pillow.Transpose
    # How a camera stores it: the inverse of what shows it, for the orientations 1 to 8
    ways = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    for orientation, way in enumerate([*ways, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270], 1):
        image = Pillow.fromarray(upright)
        image = image.transpose(way) if way is not None else image
        exif = Pillow.Exif()
        exif[0x0112], exif[0x010F] = orientation, "maker"
        if suffix == "16.tif":
            tags = [(0x0112, "H", 1, orientation, True), (0x010F, "s", 0, "maker", True)]
            levels = np.asarray(image).astype(np.uint16) * 257
            tifffile.imwrite(path, levels, photometric="rgb", extratags=tags, metadata=None, software=False)
        else:
            image.save(path, exif=exif.tobytes(), quality=95)
        if suffix == "16.png":  # OpenCV's pixels behind Pillow's EXIF chunk
            levels = cv2.imencode(".png", np.asarray(image).astype(np.uint16)[:, :, ::-1] * 257)[1].tobytes()
            stub = path.read_bytes()
            path.write_bytes(levels[:33] + stub[33 : stub.index(b"IDAT") - 4] + levels[33:])
        picture = images.open_picture(path)
        again = images.open_picture(images.write_picture(tmp_path / "again", picture, picture.pixels))
        for shown in (picture, again):
            pixels = shown.pixels / (257 if suffix.startswith("16") else 1)
            assert pixels.shape == upright.shape and np.abs(pixels - upright).mean() < 3, orientation
        kept = Pillow.Exif()
        kept.load(again.keep["exif"])
        assert dict(kept) == {0x010F: "maker"}


def test_what_goes_with_a_jpeg_is_written_again(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Pillow.Exif()
    exif[0x010F], exif[0x0112] = "maker", 6
    exif.get_ifd(0x8769).update({0x9003: "2001:02:03 04:05:06", 0xA002: 40, 0x927C: b"note"})
    exif.get_ifd(0x8825)[1] = "N"
    options = {
        "exif": exif,
        "icc_profile": profile,
        "dpi": (300, 150),
        "qtables": "web_low",
        "subsampling": 1,
    }
    Pillow.fromarray(levels_of("RGB", (40, 24))).save(tmp_path / "a.jpg", **options)
    picture = images.open_picture(tmp_path / "a.jpg")
    path = images.write_picture(
        tmp_path / "b", picture, np.kron(picture.pixels, np.ones((2, 2, 1), np.uint8))
    )
    with Pillow.open(tmp_path / "a.jpg") as old, Pillow.open(path) as new:
        assert new.size == (48, 80) and new.quantization == old.quantization
        assert JpegImagePlugin.get_sampling(new) == JpegImagePlugin.get_sampling(old) == 1
        assert new.info["icc_profile"] == profile and new.info["dpi"] == (150, 300)
        written = new.getexif()
        assert dict(written).keys() == {0x010F, 0x8769, 0x8825} and written.get_ifd(0x8825) == {1: "N"}
        assert written.get_ifd(0x8769) == {0x9003: "2001:02:03 04:05:06", 0x927C: b"note"}
    deep = images.open_picture(path)
    for suffix, pixels in ((".png", deep.pixels), (".png", deep.pixels.astype(np.uint16) * 257)):
        other = images.open_picture(
            images.write_picture(tmp_path / "c", replace(deep, suffix=suffix), pixels)
        )
        assert np.array_equal(other.pixels, pixels) and other.keep["icc_profile"] == profile
        assert other.keep["exif"] == deep.keep["exif"] and other.keep["dpi"] == pytest.approx(
            (150, 300), 1e-3
        )


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_grey_picture_that_was_coloured_loses_its_grey_profile(tmp_path, suffix):
    """A grey profile in a file of colours makes it unreadable to some."""
    profile = b"\0" * 16 + b"GRAY" + b"\0" * 108
    Pillow.fromarray(levels_of("L").squeeze(2)).save(tmp_path / f"a{suffix}", icc_profile=profile)
    picture = images.open_picture(tmp_path / f"a{suffix}")
    for pixels, mode in ((picture.pixels, "L"), (RED, "RGB")):
        with Pillow.open(images.write_picture(tmp_path / "b", picture, pixels)) as written:
            assert written.mode == mode and (written.info.get("icc_profile") == profile) == (mode == "L")


def cmyk_profile() -> bytes:
    """Return the smallest profile that makes CMYK a colour of its own: all inks lie on one line in CIELAB."""
    grid = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    lightness = 255 - 255 * grid.mean(axis=1)
    table = np.column_stack([lightness, np.full((16, 2), 128)]).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *[65536 if place % 4 == 0 else 0 for place in range(9)])
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    head = struct.pack(">I4xI4s4s4s12x4s", 144 + len(lut), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    head = (head + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)).ljust(128, b"\0")
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_goes_through_its_profile_which_is_not_kept(tmp_path, suffix):
    cyan = Pillow.new("CMYK", (16, 16), (255, 0, 0, 0))
    for profile, expected in (
        (cmyk_profile(), (186, 186, 186)),
        (b"damaged", (0, 255, 255)),
        (None, (0, 255, 255)),
    ):
        cyan.save(tmp_path / f"a{suffix}", icc_profile=profile, quality=100)
        picture = images.open_picture(tmp_path / f"a{suffix}")
        assert picture.pixels[8, 8].tolist() == pytest.approx(expected, abs=3)
        assert "icc_profile" not in picture.keep


def test_the_first_frame_is_read(tmp_path):
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in (".tif", ".png", ".webp", ".gif"):
        options = {"lossless": True} if suffix == ".webp" else {}
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
        assert images.read_image(tmp_path / f"a{suffix}")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"Stra\xc3\x9fe, not an image", r"text.*\.tiff"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><p>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (bytes(range(256)), "unknown"),
    ],
)
def test_what_is_no_picture_is_named_and_described(tmp_path, content, words):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(images.ImageError, match=rf"bad\.png.*{words}"):
        images.read_image(tmp_path / "bad.png")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", s) for s in (".png", ".jpg", ".webp", ".tif")] + [("RGB;16", ".png")]
)
def test_cut_off_pictures_are_named(tmp_path, mode, suffix):
    save(tmp_path / f"bad{suffix}", mode)
    data = (tmp_path / f"bad{suffix}").read_bytes()
    (tmp_path / f"bad{suffix}").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(images.ImageError, match="bad"):
        images.read_image(tmp_path / f"bad{suffix}")


def test_other_files_are_refused_and_never_waited_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        images.read_image(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, words in (("folder", "a folder"), ("pipe", "a pipe"), ("loop", "opened")):
        with pytest.raises(images.ImageError, match=rf"{name}\.png.*{words}"):
            images.read_image(tmp_path / f"{name}.png")
    save(tmp_path / "locked.png", "RGB")
    (tmp_path / "locked.png").chmod(0)
    if not os.access(tmp_path / "locked.png", os.R_OK):  # root reads everything
        with pytest.raises(images.ImageError, match=r"locked\.png.*permission"):
            images.read_image(tmp_path / "locked.png")


@pytest.mark.filterwarnings("error")
def test_size_is_limited_by_the_caller_alone(tmp_path, monkeypatch):
    path = images.write_image(tmp_path / "a.png", np.zeros((300, 400, 3), np.uint8))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    assert images.open_picture(path, 0.12).pixels.shape == (300, 400, 3)
    assert Pillow.MAX_IMAGE_PIXELS == 1000, "the limit is the user's elsewhere"
    path.write_bytes(path.read_bytes()[:60])  # the header is enough
    with pytest.raises(images.ImageError, match=r"a\.png.*400 x 300.*0\.119"):
        images.open_picture(path, 0.119)


@pytest.mark.parametrize(
    ("shape", "kind", "options"),
    [
        ((4, 4), np.float32, {}),
        ((4, 4), np.int16, {}),
        ((4, 4), np.uint32, {}),
        ((4, 4), np.uint16, {"photometric": "miniswhite"}),
        ((3, 4, 4), np.uint16, {"photometric": "rgb", "planarconfig": "separate"}),
        ((4, 4, 4), np.uint16, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    ],
)
def test_levels_that_would_be_read_wrongly_are_refused(tmp_path, shape, kind, options):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, kind), **options)
    with pytest.raises(images.ImageError, match=r"a\.tif.*PNG"):
        images.open_picture(tmp_path / "a.tif")


def test_damaged_exif_costs_no_picture(tmp_path):
    Pillow.fromarray(RED).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(99)), quality=95
    )
    assert images.read_image(tmp_path / "a.jpg")[16, 16].tolist() == pytest.approx([255, 0, 0], abs=4)


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(images.ImageError, match=r"a\.heic.*pip install pillow-heif"):
        images.read_image(tmp_path / "a.heic")


def test_arrays_that_do_not_fit_the_format_are_refused(tmp_path):
    save(tmp_path / "a.jpg", "RGB")
    jpeg = images.open_picture(tmp_path / "a.jpg")
    png = replace(jpeg, suffix=".png", keep={})
    for picture, pixels, alpha in (
        (jpeg, RED.astype(np.uint16), None),
        (jpeg, RED, RED[:, :, 0]),
        (png, RED.astype(np.float32), None),
        (png, RED[:, :, :2], None),
        (png, RED, RED[:8, :, 0]),
        (png, RED, RED[:, :, 0].astype(np.uint16)),
    ):
        with pytest.raises(images.ImageError, match=r"b\."):
            images.write_picture(tmp_path / "b", picture, pixels, alpha)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_unknown_suffix_and_wrong_arrays(tmp_path, picture):
    with pytest.raises(images.ImageError, match=r"'\.pgn'.*'\.png'"):
        images.write_image(tmp_path / "a.pgn", picture)
    for wrong in (picture.astype(np.float32), picture[:, :, 0], picture[:, :, :2]):
        with pytest.raises(images.ImageError, match=r"a\.png"):
            images.write_image(tmp_path / "a.png", wrong)
        with pytest.raises(images.ImageError, match="face 7"):
            images.check_image(wrong, "face 7")
        with pytest.raises(images.ImageError):
            images.to_tensor(wrong)
    assert not list(tmp_path.iterdir())


def test_size_grey_and_planes(picture):
    assert images.resize(picture, (40, 24)) is picture and images.resize(picture, 16).shape == (16, 16, 3)
    assert np.array_equal(images.resize(picture, (20, 12)), cv2.resize(picture, (20, 12))), "width first"
    grey = cv2.cvtColor(picture[:, :, ::-1].copy(), cv2.COLOR_BGR2GRAY)
    assert np.array_equal(images.to_grey(picture), grey[:, :, None].repeat(3, axis=2))
    planar = images.to_planar(picture)
    assert planar.flags.c_contiguous and np.array_equal(planar, picture.transpose(2, 0, 1))
    assert np.array_equal(images.from_planar(planar), picture)


def test_to_tensor_matches_the_cards_normalisation(picture):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)  # all, in every channel
    tensor = images.to_tensor(picture)
    assert tensor.shape == (1, 3, 24, 40) and tensor.dtype == np.float32 and tensor.flags.c_contiguous
    expected = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    assert np.abs(tensor[0].transpose(1, 2, 0) - expected).max() < 2e-7
    assert images.to_tensor(levels).min() == -1 and images.to_tensor(levels).max() == 1
    stacked = np.stack([picture, 255 - picture])
    assert images.to_tensor(stacked).shape == (2, 3, 24, 40)
    assert np.array_equal(images.to_tensor(stacked), images.to_tensor([picture, 255 - picture]))
    assert np.array_equal(images.from_tensor(images.to_tensor(levels))[0], levels)


def test_round_and_truncate_differ_as_they_should():
    """Truncation darkens by half a level on average."""
    three_quarters = (np.arange(255, dtype=np.float32) + 0.75) / 127.5 - 1  # of the way to the next level
    between = np.tile(three_quarters, (1, 3, 1, 1))
    assert images.from_tensor(between)[0, 0, :, 0].tolist() == list(range(1, 256))
    assert images.from_tensor(between, "truncate")[0, 0, :, 0].tolist() == list(range(255))
    with pytest.raises(ValueError, match="floor"):
        images.from_tensor(between, "floor")


def test_from_tensor_clips_numbers_and_refuses_others():
    extreme = np.array([-7.0, -1.0, 0.0, 1.0, 9.0], np.float16).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert images.from_tensor(extreme)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even
    for value in (np.nan, np.inf, -np.inf):
        extreme[0, 1, 0, 3] = value
        with pytest.raises(ValueError, match="NaN or infinity"):
            images.from_tensor(extreme)


def segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG's header."""
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def jpeg(mode="RGB", **options) -> bytes:
    """Return a JPEG of noise."""
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    Pillow.fromarray(levels).convert(mode).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


SOUND = jpeg()
SCAN = SOUND.index(b"\xff\xda") + 14  # where its data begin
ODD = {  # but whole: pixels are as Pillow and all viewers have them
    "zeros behind the end": SOUND + bytes(999),
    "a film behind the end": SOUND + np.random.default_rng(0).bytes(9999),
    "another JPEG behind the end": SOUND + jpeg(progressive=True),
    "a long segment of some program": SOUND[:2] + segment(0xE5, bytes(60_000)) + SOUND[2:],
    "a damaged profile": SOUND[:2] + segment(0xE2, b"ICC_PROFILE\0\5\2junk") + SOUND[2:],
    "bytes between segments": SOUND[:2] + segment(0xE1, b"Exif\0\0") + bytes(11) + SOUND[2:],
    "filling before a marker": SOUND.replace(b"\xff\xda", b"\xff\xff\xff\xda", 1),
    "some bytes before the end": SOUND[:-2] + bytes(5) + SOUND[-2:],
    "an unknown revision": SOUND[:11] + b"\7" + SOUND[12:],
    "no JFIF segment": SOUND[:2] + SOUND[20:],
    "a comment": SOUND[:2] + segment(0xFE, b"x" * 60_000) + SOUND[2:],
    "odd parameters of the scan": SOUND[: SCAN - 3] + b"\0\0\0" + SOUND[SCAN:],
    "damaged EXIF": jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    **{f"sampling {s}": jpeg(subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")},
    **{f"progressive {mode}": jpeg(mode, progressive=True) for mode in ("RGB", "L", "CMYK")},
    **{f"plain {mode}": jpeg(mode) for mode in ("RGB", "L", "CMYK")},
    **{
        f"OpenCV's sampling {factor:x}": cv2.imencode(
            ".jpg", np.tile(RED, (2, 3, 1)), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
        )[1].tobytes()
        for factor in (0x411111, 0x121111, 0x221111)
    },
    "restarts": jpeg(restart_marker_rows=1),
    "own tables": jpeg(optimize=True, quality=30),
    "RGB in place of YCbCr": jpeg(keep_rgb=True),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_jpegs_are_read_as_by_pillow(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(ODD[name])
    with Pillow.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(images.read_image(tmp_path / "a.jpg"), np.asarray(image.convert("RGB")))


def test_jpegs_are_read_as_by_pillow_whatever_their_size(tmp_path, shared):
    files = sorted((shared / "faces/val512").glob("*.jpg"))[:20]
    for number, side in enumerate((1, 2, 7, 8, 9, 15, 16, 17, 33)):
        files.append(tmp_path / f"{side}.jpg")
        options = {"subsampling": number % 3, "progressive": bool(number % 2)}
        Pillow.fromarray(np.tile(RED, (2, 2, 1))[: 40 - side, :side]).save(files[-1], **options)
    for file in files:
        with Pillow.open(file) as image:
            assert np.array_equal(images.open_picture(file).pixels, np.asarray(image))


def test_chroma_is_scaled_and_the_luma_stays():
    tensor = np.random.default_rng(0).uniform(-1, 1, (2, 3, 20, 30)).astype(np.float32)
    luma = np.tensordot(tensor, images.LUMA, (1, 0))
    for factor in (0.3, 1.0, 1.7, 4.0):
        scaled = images.scale_chroma(tensor, factor)
        assert scaled.dtype == np.float32 and np.abs(scaled).max() <= 1 + 1e-5
        np.testing.assert_allclose(np.tensordot(scaled, images.LUMA, (1, 0)), luma, atol=1e-5)
        grown = np.ptp(scaled, axis=1) / np.ptp(tensor, axis=1)
        assert (grown <= factor + 1e-4).all() and (grown >= min(1, factor) - 1e-4).all()
        if factor > 1:  # all of it where there is room, and to the edge where there is not
            full = np.abs(grown - factor) < 1e-3
            assert full.any() and (np.abs(scaled).max(axis=1)[~full] > 1 - 1e-4).all()
    assert images.scale_chroma(tensor, 1.0) is tensor
    grey = np.full((1, 3, 4, 4), 0.25, np.float32)
    np.testing.assert_allclose(images.scale_chroma(grey, 3.0), grey, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "L", "CMYK"])
def test_damage_inside_a_jpeg_is_told(tmp_path, kind):
    """Pillow and OpenCV return pixels: of what is cut or filled all is found, of 64 lost bytes most."""
    options = {"progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1}}.get(kind, {})
    sound = jpeg(kind if len(kind) < 5 else "RGB", **options)
    start, path = sound.index(b"\xff\xda") + 14, tmp_path / "a.jpg"
    places = [start + (len(sound) - 80 - start) * part // 9 for part in range(1, 10)]
    told = {"filled": 0, "ended": 0, "zeros": 0}
    for place in places:
        for how, tail in (
            ("filled", bytes(len(sound) - place)),
            ("ended", b"\xff\xd9"),
            ("zeros", bytes(64) + sound[place + 64 :]),
        ):
            path.write_bytes(sound[:place] + tail)
            try:
                images.read_image(path)
            except images.ImageError as error:
                assert "a.jpg: damaged" in str(error) and "fetch it again" in str(error)
                told[how] += 1
    assert told["filled"] == told["ended"] == 9 and told["zeros"] >= 6


def test_a_file_is_refused_by_its_length_before_it_is_read(tmp_path):
    path = images.write_image(tmp_path / "a.png", np.zeros((30, 40, 3), np.uint8))
    os.truncate(path, 2 * 10**9)
    with pytest.raises(images.ImageError, match=r"a\.png: 2,000 MB long, at most 1,700.*most_megapixels"):
        images.read_image(path)
    assert images.read_image(path, 300).shape == (30, 40, 3)
