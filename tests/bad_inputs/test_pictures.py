"""Picture files of strangers: damaged, bombs, no files at all, too small for a face; places to write."""

import io
import os
import resource
import socket
import struct
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from gpenlib import Run, images
from gpenlib.data.faces import open_folder, read_face
from gpenlib.images import ImageError, open_picture, read_image, write_image, write_picture
from gpenlib.infer import Runtime
from gpenlib.metrics import psnr, ssim
from gpenlib.photos import enhance_photo
from gpenlib.settings import PhotoSettings
from tests.bad_inputs.harness import Case, check

SIDE = 96
NOISY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
FAR = 10**13  # bytes, as long as no picture is


# Files


def encoded(kind, side=SIDE, **options):
    """Return a picture as a file of one of Pillow's formats."""
    file = io.BytesIO()
    Pillow.fromarray(NOISY).resize((side, side)).save(file, kind, **options)
    return file.getvalue()


def jpeg(how="zeros", **options):
    """Return a JPEG whose data are damaged, so that libjpeg only warns."""
    data = encoded("JPEG", quality=90, **options)
    start = data.index(b"\xff\xda") + 14
    middle = (start + len(data)) // 2
    return {
        "zeros": data[:middle] + bytes(64) + data[middle + 64 :],
        "filled": data[:middle] + bytes(len(data) - middle),
        "ended": data[:middle] + b"\xff\xd9",
        "cut": data[:middle],
        "lost": data[:middle] + data[middle + 200 :],
        "tail": data[:-2],
    }[how]


def chunk(name, data):
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width=SIDE, height=SIDE, depth=8, extra=b"", data=None, end=True):
    """Return a PNG of RGB, with chunks put in and data of its own."""
    rows = b"".join(b"\0" + row.tobytes() for row in NOISY)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)) + extra
    body = chunk(b"IDAT", zlib.compress(rows) if data is None else data)
    return b"\x89PNG\r\n\x1a\n" + head + body + (chunk(b"IEND", b"") if end else b"")


def huge():
    """Return the header of a PNG of 900 megapixels."""
    return png(30_000, 30_000)


def inflating(megabytes=100):
    """Return zlib data of zeros."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + deflate.flush()


def flipped(data, place, bit=1):
    """Return data with one bit changed."""
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def with_size(data, mark, width, height):
    """Return a JPEG, AVIF or HEIC whose header says another size."""
    if mark == b"ispe":
        place, size = data.index(mark) + 8, struct.pack(">II", width, height)
    else:
        place, size = data.index(mark) + 5, struct.pack(">HH", height, width)
    return data[:place] + size + data[place + len(size) :]


def large_avif():
    """Return an AVIF whose header says 60000 x 60000."""
    return with_size(encoded("AVIF"), b"ispe", 60_000, 60_000)


def large_webp():
    """Return a WebP whose header says 16383 x 16383."""
    data = encoded("WEBP", lossless=True)
    return data[:21] + struct.pack("<I", 16_382 | 16_382 << 14) + data[25:]


def scans(side, count):
    """Return a progressive JPEG whose last scan is there many times: small, and long to decode."""
    file = io.BytesIO()
    Pillow.new("L", (side, side)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + count * last + data[-2:]


def tiff(**changes):
    """Return a TIFF of grey zeros with some of its tags changed."""
    tags = {256: 40, 257: 40, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 40, 279: 1600}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return data.ljust(2000, b"\0")


def bmp(width, height):
    """Return the header of a BMP."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def gif(width, height, frame):
    """Return a GIF whose frame is larger than its screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    return head + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\2\2\x44\1\0;"


# Makers: each fills a folder and returns the path of what is bad


def file_of(content, name="bad.png"):
    """Return a maker of a file."""

    def make(folder):
        path = folder / name
        path.write_bytes(content())
        return path

    return make


def array_of(height, width, name="bad.png"):
    """Return a maker of a sound picture."""
    return lambda folder: write_image(folder / name, np.full((height, width, 3), 90, np.uint8))


def pipe(folder):
    path = folder / "bad.png"
    os.mkfifo(path)
    return path


def listener(folder):
    path = folder / "bad.png"
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket is short
    socket.socket(socket.AF_UNIX).bind("bad.png")
    os.chdir(here)
    return path


def link_to(target):
    """Return a maker of a link."""

    def make(folder):
        path = folder / "bad.png"
        path.symlink_to(target)
        return path

    return make


def subfolder(folder):
    path = folder / "bad.png"
    path.mkdir()
    return path


def absurd(content):
    """Return a maker of a file that begins as a picture and has a hole of terabytes behind it."""

    def make(folder):
        path = file_of(content)(folder)
        os.truncate(path, FAR)
        return path

    return make


def among(make, count=3):
    """Return a maker of a folder of faces, the second of which is bad."""

    def made(folder):
        for number in range(count):
            write_image(folder / f"a{number}.png", np.roll(NOISY, number, axis=0))
        bad = make(folder)
        target = folder / "a1.png"
        target.unlink()
        bad.rename(target) if not bad.is_symlink() else target.symlink_to(bad.readlink())
        bad.unlink(missing_ok=True)
        return folder

    return made


def all_that_is_bad(folder):
    for name, make in {
        "filled": file_of(lambda: jpeg("filled")),
        "large": file_of(huge),
        "far": absurd(png),
        "pipe": pipe,
        "link": link_to("gone.png"),
        "dot": array_of(1, 1),
        "limit": array_of(150, 150),
    }.items():
        make(folder).rename(folder / f"{name}.png")
    Run.of(settings()).compile()  # what takes time and is not what is tried
    return folder


# Doors


def settings(**values):
    base = {"run": "run", "weights": "tiny-random", "backend": "torch", "calib_size": 1, "dataset_size": 2}
    return base | {"task": "restore-mild"} | values


def read(path, out):
    return read_image(path)


def opened(path, out):
    return open_picture(path)


def notebook_00(path, out):
    run = Run.of(settings(image=str(path)))
    return read_face(Path(run.settings.image), run.settings.most_megapixels)


def notebook_00_small(path, out):
    return read_face(
        path, Run.of(settings(image=str(path), most_megapixels="0.005")).settings.most_megapixels
    )


def data(folder, out):
    return Run.of(settings(data_dir=str(folder))).data()


def packed(folder, out):
    return Run.of(settings(data_dir=str(folder), save_packs=True)).data()


def small_data(folder, out):
    return Run.of(settings(data_dir=str(folder), save_packs=True, most_megapixels="0.009")).data()


def infer(folder, out):
    return Run.of(settings(data_dir=str(folder))).infer()


def inputs(folder, out):
    for number in range(3):
        write_image(out / f"truths/a{number}.png", NOISY)
    return Run.of(settings(data_dir=str(out / "truths"), input_dir=str(folder))).infer()


def calibration(folder, out):
    values = settings(data_dir="embedded", calib_dir=str(folder), calib_size=3, save_packs=True)
    return Run.of(values).data()


def photos(path, out):
    """Enhance pictures: what cannot be used is told in the results, and does not stop the others."""
    values = settings(photos=str(path), aligned=True, most_megapixels="0.02")
    results = Run.of(values | {"task": ""}, PhotoSettings).photos()["metrics"]
    assert not results["photos"]
    raise ImageError("; ".join(f"{Path(row['photo']).name}: {row['reason']}" for row in results["failures"]))


class Network:
    in_size = out_size = 64
    task = "restore"

    def __call__(self, batch):
        return batch


def enhanced(path, out):
    return enhance_photo(path, Network())


def enhanced_aligned(path, out):
    return enhance_photo(path, Network(), aligned=True)


def enhanced_small(path, out):
    return enhance_photo(path, Network(), most_megapixels=0.009)


# Places that cannot be written


def blocked(folder):
    """Return a place inside of a file, which no user, root included, can write to."""
    return file_of(lambda: b"a file", "file")(folder) / "bad.png"


def plain(suffix):
    keep = {"icc_profile": b""} if suffix == ".jpg" else {}
    return images.Picture(NOISY, None, False, suffix, keep)


def writing(path, out):
    return write_image(path, NOISY)


def writing_again(path, out):
    return write_picture(path.with_suffix(""), plain(".png"), NOISY)


def full(write):
    """Return a door that writes where there is room for some bytes alone."""

    def call(folder, out):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return write(out / "bad.png", out)

    return call


def long_picture(suffix, length):
    def write(folder, out):
        return write_image(out / f"long{suffix}", np.zeros((1, length, 3), np.uint8))

    return write


def long_photo(folder, out):
    return write_picture(out / "long", plain(".jpg"), np.zeros((1, 70_000, 3), np.uint8))


def long_exif(folder, out):
    picture = replace(plain(".jpg"), keep={"exif": b"Exif\0\0" + bytes(70_000)})
    return write_picture(out / "odd", picture, NOISY)


def nothing(folder):
    return folder


def array(call):
    """Return a door for arrays, which are no files."""
    return lambda folder, out: call()


class Still(Runtime):
    """A runtime that gives back what it is given."""

    def __init__(self):
        self.in_size = 8

    def executed_types(self):
        return {}

    def _run(self, batch):
        return batch


def running(batch):
    return lambda folder, out: Still()(batch(np.zeros((1, 3, 8, 8), np.float32)))


def not_a_number(batch):
    batch[0, 0, 3, 4] = np.nan
    return batch


AGAIN, PATH = "fetch it again", "bad.png"
DAMAGED = {
    f"jpeg_{how}": partial(jpeg, how) for how in ("zeros", "filled", "ended", "cut", "lost", "tail")
} | {
    "jpeg_progressive": lambda: jpeg("zeros", progressive=True),
    "jpeg_restarts": lambda: jpeg("lost", restart_marker_rows=1),
    "jpeg_444": lambda: jpeg("lost", subsampling=0),
    "png_checksum_of_chunk": lambda: flipped(png(), len(png()) - 14),
    "png_checksum_of_data": lambda: png(data=zlib.compress(bytes(SIDE * (3 * SIDE + 1)))[:-1] + b"\0"),
    "png_bit": lambda: flipped(png(), 9000),
    "png_filled_with_zeros": lambda: encoded("PNG")[:9000] + bytes(len(encoded("PNG")) - 9000),
    "png_without_end": lambda: png(end=False),
    "png_cut": lambda: png()[:9000],
    "png_short": lambda: png(data=zlib.compress(bytes(900))),
    "png_of_16_bits_cut": lambda: png(SIDE // 2, depth=16)[:9000],
    "png_length_of_chunk": lambda: png()[:33] + b"\x7f\xff\xff\xff" + png()[37:],
    "png_text_that_inflates": lambda: png(extra=chunk(b"zTXt", b"x\0\0" + inflating())),
    "png_profile_that_inflates": lambda: png(extra=chunk(b"iCCP", b"x\0\0" + inflating())),
    "png_international_text": lambda: png(extra=chunk(b"iTXt", b"x\0\1\0\0\0" + inflating())),
    "webp_cut": lambda: encoded("WEBP")[:-500],
    "webp_length": lambda: encoded("WEBP")[:4] + bytes(4) + encoded("WEBP")[8:],
    "avif_cut": lambda: encoded("AVIF")[:-500],
    "tiff_cut": lambda: tiff()[:900],
    "tiff_codec": lambda: tiff(t259=5),
    "bmp_cut": lambda: encoded("BMP")[:9000],
    "gif_cut": lambda: encoded("GIF")[:4000],
}
LARGE = {
    "png_900_megapixels": huge,
    "png_largest": lambda: png(2**31 - 1, 2**31 - 1),
    "jpeg_4290_megapixels": lambda: with_size(encoded("JPEG"), b"\xff\xc0", 65_500, 65_500),
    "tiff_10000_megapixels": lambda: tiff(t256=100_000, t257=100_000),
    "tiff_tile": lambda: tiff(t322=46_000, t323=46_000, t324=400, t325=1600, t259=8),
    "gif_frame": lambda: gif(10, 10, 60_000),
    "bmp_upside_down": lambda: bmp(40, -(2**31)),
    "webp_268_megapixels": large_webp,
}
SPECIAL = {  # what is no regular file, and what is said of it
    "pipe": (pipe, "a pipe"),
    "socket": (listener, "a pipe, socket"),
    "device": (link_to("/dev/zero"), "device"),
    "dangling_link": (link_to("gone.png"), "gone.png, which does not exist"),
    "link_to_itself": (link_to("bad.png"), "cannot be opened"),
    "absurd_png": (absurd(png), "save the picture alone"),
    "absurd_jpeg": (absurd(lambda: encoded("JPEG")), "save the picture alone"),
}
OTHERS = {"mp4": b"\0\0\0\x20ftypisom", "psd": b"8BPS\0\1", "jxl": b"\xff\x0a", "zeros": b""}
FLOAT = "run/03_compile/float"
CASES = [
    *(Case(f"read_{name}", file_of(content), read, (PATH, AGAIN)) for name, content in DAMAGED.items()),
    *(
        Case(f"read_{name}", file_of(content), read, (PATH, "at most 200", "most_megapixels"))
        for name, content in LARGE.items()
    ),
    *(Case(f"read_{name}", make, read, (PATH, said)) for name, (make, said) in SPECIAL.items()),
    *(
        Case(
            f"read_{name}",
            file_of(lambda content=content: content + bytes(99)),
            read,
            (PATH, "unknown format", ".tiff"),
        )
        for name, content in OTHERS.items()
    ),
    Case("read_folder", subfolder, read, (PATH, "is a folder", "name a picture file")),
    Case("read_nul", lambda folder: Path("a\0b.png"), read, ("b.png", "cannot be opened")),
    Case("read_absent", lambda folder: folder / "none.png", read, ("none.png", "no such picture")),
    Case("open_scans", file_of(lambda: scans(4000, 2000)), opened, (PATH, "scans", AGAIN)),
    Case("open_size_of_avif", file_of(large_avif), opened, (PATH,)),
    # The folders of faces: the one that is bad is named
    Case("data_jpeg", among(file_of(jpeg)), packed, ("a1.png", AGAIN)),
    Case("data_large", among(file_of(huge)), packed, ("a1.png", "most_megapixels")),
    Case("data_limit", among(array_of(97, 97)), small_data, ("a", "96 x 96", "0.009", "most_megapixels")),
    Case("data_pipe", among(pipe), data, ("a1.png", "a pipe")),
    Case("data_link", among(link_to("gone.png")), data, ("a1.png", "gone.png", "bring that file")),
    Case("data_device", among(link_to("/dev/zero")), data, ("a1.png", "device")),
    Case("data_absurd", among(absurd(png)), data, ("a1.png", "save the picture alone")),
    Case(
        "data_nothing_but_folders", subfolder, lambda path, out: data(path.parent, out), ("bad.png", "given")
    ),
    Case("infer_jpeg", among(file_of(lambda: jpeg("ended"))), infer, ("a1.png", AGAIN)),
    Case("infer_dot", among(array_of(1, 1)), infer, ("a1.png", "1 x 1 pixels", "16 or more")),
    Case("infer_line", among(array_of(2, 5000)), infer, ("a1.png", "5000 x 2 pixels", "crop or remove")),
    Case("infer_strip", among(array_of(20, 100)), infer, ("a1.png", "100 x 20 pixels", "4 times")),
    Case("input_jpeg", among(file_of(lambda: jpeg("lost"))), inputs, ("a1.png", AGAIN)),
    Case("input_dot", among(array_of(15, 15)), inputs, ("a1.png", "15 x 15", "16 or more")),
    Case("input_pipe", among(pipe), inputs, ("a1.png", "a pipe")),
    Case("calibration_jpeg", among(file_of(jpeg)), calibration, ("a1.png", AGAIN)),
    Case("calibration_large", among(file_of(huge)), calibration, ("a1.png", "most_megapixels")),
    Case("calibration_pipe", among(pipe), calibration, ("a1.png", "a pipe")),
    Case("suffix_pipe", among(pipe), lambda folder, out: open_folder(folder, "png").digest(1), ("a1.png",)),
    # Notebook 00
    Case("image_dot", array_of(1, 1), notebook_00, (PATH, "1 x 1 pixels")),
    Case("image_jpeg", file_of(jpeg), notebook_00, (PATH, AGAIN)),
    Case("image_large", file_of(huge), notebook_00, (PATH, "most_megapixels")),
    Case("image_limit", array_of(80, 80), notebook_00_small, (PATH, "0.005")),
    # Photographs
    Case("photos_pipe", pipe, photos, (PATH, "a pipe")),
    Case(
        "photos_none_of_which_can_be_used",
        all_that_is_bad,
        photos,
        ("filled.png: damaged", "large.png", "far.png", "pipe.png", "link.png", "1 x 1 pixels", "0.02"),
        stands=(
            "run/03_compile/float",
            "run/03_compile/fp32",
            "run/03_compile/fp32/artefact",
            "run/07_photos",
        ),
    ),
    Case("enhance_jpeg", file_of(jpeg), enhanced, (PATH, AGAIN)),
    Case("enhance_limit", array_of(96, 96), enhanced_small, (PATH, "0.009")),
    Case("enhance_aligned", array_of(8, 8), enhanced_aligned, (PATH, "8 x 8", "16 pixels or more")),
    # Writing
    Case("write_blocked", blocked, writing, (PATH, "stands in the way", "move it")),
    Case("write_picture_blocked", blocked, writing_again, (PATH, "stands in the way", "move it")),
    Case("write_full", nothing, full(writing), (PATH, "cannot be written", "free some space")),
    Case("write_picture_full", nothing, full(writing_again), (PATH, "cannot be written", "free some space")),
    Case("write_suffix", lambda folder: folder / "bad.gif", writing, ("bad.gif", ".png")),
    Case("write_long_jpeg", nothing, long_picture(".jpg", 65_536), ("long.jpg", "65500", "PNG")),
    Case("write_long_webp", nothing, long_picture(".webp", 16_384), ("long.webp", "16383", "PNG")),
    Case("write_long_png", nothing, long_picture(".png", 1_000_001), ("long.png", "1000000")),
    Case("write_long_photo", nothing, long_photo, ("long.jpg", "65500", "smaller")),
    Case("write_long_exif", nothing, long_exif, ("odd.jpg", "cannot be written")),
    # Arrays
    Case("tensor_of_text", nothing, array(lambda: images.to_tensor("face.png")), ("a str", "uint8")),
    Case("tensor_of_floats", nothing, array(lambda: images.to_tensor(NOISY / 255)), ("float64", "uint8")),
    Case("tensor_of_nothing", nothing, array(lambda: images.to_tensor(NOISY[:0])), ("(0, 96, 3)",)),
    Case("from_bytes", nothing, array(lambda: images.from_tensor(NOISY[None])), ("uint8", "float [N, 3")),
    Case("from_three", nothing, array(lambda: images.from_tensor(np.zeros((3, 4, 4)))), ("(3, 4, 4)", "[N")),
    Case("psnr_kinds", nothing, array(lambda: psnr(NOISY, NOISY / 1.0)), ("uint8", "float64")),
    Case("psnr_list", nothing, array(lambda: psnr([1], [1])), ("a list", "arrays")),
    Case("psnr_nan", nothing, array(lambda: psnr(np.zeros(9), np.full(9, np.nan), 2.0)), ("NaN",)),
    Case("psnr_range", nothing, array(lambda: psnr(np.zeros(9), np.ones(9), 0)), ("data_range=0", "2.0")),
    Case("ssim_line", nothing, array(lambda: ssim(np.zeros(99), np.zeros(99), 2.0)), ("(99,)", "11x11")),
    Case(
        "enhance_floats", nothing, array(lambda: enhance_photo(NOISY / 255, Network())), ("float64", "uint8")
    ),
    Case("run_nan", nothing, running(not_a_number), ("NaN", "to_tensor")),
    Case("run_list", nothing, running(list), ("a list", "float32")),
    Case("run_doubles", nothing, running(np.float64), ("float64", "float32")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
