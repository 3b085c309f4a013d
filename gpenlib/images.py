"""The only place where pixels change range, channel order, layout or size.

Conventions: an *image* is uint8 [H, W, 3], RGB. A *tensor* is float32 [N, 3, S, S], RGB in [-1, 1], as the
network takes and gives. A *picture* is what a file holds: 8 or 16 bits, perhaps alpha, and what goes with it.
"""

from __future__ import annotations

import base64
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, ImageCms, UnidentifiedImageError
from PIL import Image as Pillow
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from gpenlib.files import StorageError, choice_error, describe, open_regular, write_atomically

Image = NDArray[np.uint8]
Levels = NDArray[np.uint8 | np.uint16]
FloatArray = NDArray[np.float32]
Rounding = Literal["round", "truncate"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
RGB_CHANNELS = 3
MIDDLE_GREY = 128
WRITTEN = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # what write_image writes
HEIF_SUFFIXES = (".heic", ".heif")
SUFFIXES: tuple[str, ...] = (  # what is read
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    *(HEIF_SUFFIXES if find_spec("pillow_heif") else ()),
)

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "GIF")  # told by the content
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B")
# How contents begin that are taken for pictures, and what to do about it; JPEG and PNG end up here if damaged
CONTENTS = (
    (b"<svg", "an SVG drawing: save it as PNG"),
    (b"%pdf", "a PDF document: save the picture in it as PNG or JPEG"),
    (b"\xff\xd8\xff", "a damaged JPEG: fetch it again"),
    (b"\x89png", "a damaged PNG: fetch it again"),
)
# In a TIFF most tags of the first directory say how its pixels are stored; these are about the picture
TIFF_TAGS = {270, 271, 272, 305, 306, 315, 33432, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
LONGEST_EXIF = 65_000  # bytes; a JPEG has room for 65,533
MOST_MP = 200.0  # megapixels
PNG_LEVEL = 4  # of zlib: as small as 6, the default, in 60 % of the time
AGAIN = "fetch it again, or save it anew"
MOST_SCANS = 10_000  # of a progressive JPEG, times its megapixels: some seconds
LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # pixels that a format has room for
# What libjpeg warns of where pixels are lost. They are whole in spite of other warnings: unknown revisions,
# odd parameters of a scan, bytes between the segments of the header, and a few that pad the data.
DAMAGE = re.compile(
    r"Premature end|Inconsistent progression|"
    r"Corrupt JPEG data: (?!bad ICC|[123] extraneous|\d+ extraneous bytes before marker 0x(?:e|fe|db))"
)
_pillow_limit = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read, written or used; the message names the file or the shape."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What a picture file holds, upright (its EXIF orientation is applied)."""

    pixels: Levels  # [H, W, 3], RGB in the file's own colour space
    alpha: Levels | None  # [H, W] of the same type
    grey: bool  # the file holds one channel, or grey and alpha
    suffix: str  # what write_picture writes: ".jpg" for a JPEG, else ".png"
    keep: dict[str, Any]  # what Pillow's ``save`` carries over: profile, EXIF, resolution, JPEG tables


def read_image(path: str | Path, most_megapixels: float = MOST_MP) -> Image:
    """Read a picture as uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits are rounded, and what is transparent is blended over middle
    grey, so that the colours that a file hides there never show.
    """
    picture = open_picture(path, most_megapixels)
    return to_seen(picture.pixels, picture.alpha)


def to_seen(pixels: Levels, alpha: Levels | None = None) -> Image:
    """Return [H, W, 3] as it is looked at: rounded to 8 bits, what is transparent over middle grey."""
    seen = _eight_bits(pixels)
    if alpha is None:
        return np.ascontiguousarray(seen)
    share = _eight_bits(alpha)[:, :, None].astype(np.uint16)
    return ((seen * share + MIDDLE_GREY * (255 - share) + 127) // 255).astype(np.uint8)


def open_picture(path: str | Path, most_megapixels: float = MOST_MP) -> Picture:
    """Read a picture with all that :func:`write_picture` needs to write another in its place.

    Parameters
    ----------
    path
        A file of one of :data:`SUFFIXES` (by content, not name), of which the first frame is read.
    most_megapixels
        Larger pictures are refused before they are decoded, and files that are longer than such ones need.

    Returns
    -------
    Picture
        16 bits a channel stay 16, all else is uint8. CMYK is turned into sRGB, by its profile if it has one.

    Raises
    ------
    ImageError
        If the file is damaged, too large, no picture or not readable; it says which.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    with check_file(path, most_megapixels) as file:
        start = file.read(256)
        file.seek(0)
        try:
            image = _open_header(file, start)
        except UnidentifiedImageError as error:
            raise ImageError(f"{path} {_describe(start)}") from error
        except Exception as error:  # decoders fail in more ways than they name
            raise ImageError(f"{path}: damaged ({in_short(error)}): {AGAIN}") from error
        width, height = image.size
        if isinstance(image, TiffImageFile):  # a tile may be larger
            width, height = max(width, image.tag_v2.get(322, 0)), max(height, image.tag_v2.get(323, 0))
        if (megapixels := width * height / 1e6) > most_megapixels:
            size = f"{width} x {height} are {megapixels:.4g} megapixels, at most {most_megapixels:g} are read"
            raise ImageError(f"{path}: {size}; make it smaller, or raise most_megapixels")
        try:
            pixels, alpha = _read_levels(image, file, start)
        except (ImageError, MemoryError) as error:
            raise type(error)(f"{path}: {error}") from error
        except Exception as error:
            raise ImageError(f"{path}: damaged or cut off ({in_short(error)}): {AGAIN}") from error
        orientation, exif = _read_exif(image)
    if not isinstance(image, TiffImageFile):  # both decoders turn TIFFs themselves
        pixels = _upright(pixels, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
    grey = image.mode in GREY_MODES or (isinstance(image, PngImageFile) and start[25] in (0, 4))
    jpeg = isinstance(image, JpegImageFile)
    return Picture(pixels, alpha, grey, ".jpg" if jpeg else ".png", _to_keep(image, orientation, exif))


def write_picture(
    path_without_suffix: str | Path, picture: Picture, pixels: Levels, alpha: Levels | None = None
) -> Path:
    """Write pixels as the picture that they were made from was stored, with its profile, EXIF and resolution.

    Parameters
    ----------
    path_without_suffix
        The name, dots included, to which ``picture.suffix`` is appended.
    picture
        Where the pixels come from. A JPEG becomes a JPEG with the same quantisation, anything else a PNG.
    pixels
        RGB, uint8 or (PNG only) uint16 [H, W, 3], of any size; written as one channel if the picture was grey
        and they are.
    alpha
        [H, W] of the same type, for PNG only; ``picture.alpha`` is not written unless it is given here.

    Returns
    -------
    Path
        The file, which appears whole or not at all.

    Raises
    ------
    ImageError
        If the arrays do not go together, or not into the format.
    """
    path = Path(path_without_suffix)
    path = path.with_name(path.name + picture.suffix)
    jpeg = picture.suffix == ".jpg"
    types = ("uint8",) if jpeg else ("uint8", "uint16")
    if pixels.dtype.name not in types or pixels.ndim != 3 or pixels.shape[2] != RGB_CHANNELS:
        raise ImageError(f"{path}: {pixels.dtype} {pixels.shape}, expected {' or '.join(types)} [H, W, 3]")
    if alpha is not None and (jpeg or alpha.dtype != pixels.dtype or alpha.shape != pixels.shape[:2]):
        need = "none in a JPEG" if jpeg else f"{pixels.dtype} {pixels.shape[:2]} as the pixels"
        raise ImageError(f"{path}: alpha {alpha.dtype} {alpha.shape}, expected {need}")
    grey = picture.grey and bool((pixels == pixels[:, :, :1]).all())
    planes = pixels[:, :, :1] if grey else pixels
    if alpha is not None:
        planes = np.dstack([planes, alpha])
    keep = dict(picture.keep)
    if keep.get("icc_profile", b"")[16:20] != (b"GRAY" if grey else b"RGB "):  # the profile's colour space
        keep.pop("icc_profile", None)  # a grey picture that was coloured, or the file was wrong before
    with _writing(path, pixels) as temporary:
        if planes.dtype == np.uint16:
            temporary.write_bytes(_encode_deep(planes, keep))
        else:
            made = Pillow.fromarray(planes.squeeze(2) if planes.shape[2] == 1 else planes)
            made.save(temporary, compress_level=PNG_LEVEL, **keep)
    return path


def check_file(path: Path, most_megapixels: float = MOST_MP) -> BinaryIO:
    """Open a regular file, as a pipe might block for ever; one that no picture is as long as is refused."""
    file = open_regular(path, "picture file", ImageError)
    megabytes, most = os.fstat(file.fileno()).st_size / 1e6, 8 * most_megapixels + 100
    if megabytes > most:  # films may lie behind the picture
        file.close()
        long = f"{megabytes:,.0f} MB long, at most {most:,.0f} are read"
        raise ImageError(f"{path}: {long}; save the picture alone, or raise most_megapixels")
    return file


def in_short(error: object) -> str:
    """Return what an error says in one line of some words."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _open_header(file: BinaryIO, start: bytes) -> Pillow.Image:
    """Let Pillow read the header, whatever size it holds."""
    formats = FORMATS
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = (*FORMATS, "HEIF")
    with _pillow_limit:  # Pillow has one limit for the whole process, which is the user's
        limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            return Pillow.open(file, formats=formats)
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit


def _describe(start: bytes) -> str:
    """Say what a file that no decoder takes is, from its first bytes."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not find_spec("pillow_heif"):
        return "is a HEIC picture: `pip install pillow-heif` to read it"
    return describe(start, "picture", SUFFIXES, CONTENTS)


def _read_levels(image: Pillow.Image, file: BinaryIO, start: bytes) -> tuple[Levels, Levels | None]:
    """Decode a picture whose header has been read: RGB, and alpha."""
    if isinstance(image, JpegImageFile) and (decoded := _read_jpeg(image, file)) is not None:
        return decoded, None
    image.load()
    if isinstance(image, PngImageFile):  # pixels decode from wrong data, too: only checksums tell
        file.seek(0)
        _open_header(file, start).verify()
    if _is_deep(image, start):
        file.seek(0)
        return _read_deep(image, file)
    return _read_flat(image)


def _read_jpeg(image: JpegImageFile, file: BinaryIO) -> Image | None:
    """Decode a JPEG as Pillow does, which is silent of damaged data; None where Pillow is needed."""
    file.seek(0)
    data = file.read()
    megapixels = image.width * image.height / 1e6
    scans = data.count(b"\xff\xda") if image.info.get("progressive") else 1
    if scans * megapixels > MOST_SCANS:
        raise ImageError(f"{scans} scans of {megapixels:.1f} megapixels would take long: {AGAIN}")
    try:
        levels = simplejpeg.decode_jpeg(data, "CMYK" if image.mode == "CMYK" else "RGB")
    except ValueError as error:
        if DAMAGE.search(str(error)):
            raise
        return None  # odd but whole, or of a form that Pillow knows
    return levels if levels.shape[2] == RGB_CHANNELS else None


def _is_deep(image: Pillow.Image, start: bytes) -> bool:
    """Return whether a file has 16 bits a channel; refuse numbers that are not levels from black to white."""
    if isinstance(image, PngImageFile):
        return start[24] == 16  # IHDR: depth and colour type
    if not isinstance(image, TiffImageFile) or image.mode == "CMYK":
        return False
    tags = image.tag_v2
    depth, kind = max(tags.get(258, (1,))), max(tags.get(339, (1,)))  # BitsPerSample, SampleFormat
    if depth not in (1, 2, 4, 8, 16) or kind in (2, 3):
        form = {2: "signed", 3: "floating-point"}.get(kind, "unsigned")
        raise ImageError(f"{depth}-bit {form} levels, read are up to 16 bits unsigned: save it as 16-bit PNG")
    if depth == 16 and (tags.get(262) == 0 or tags.get(284) == 2 or 1 in tags.get(338, ())):
        # OpenCV takes no notice of PhotometricInterpretation, PlanarConfiguration and ExtraSamples
        raise ImageError("16 bits as inverted grey, separate planes or premultiplied: save it as 16-bit PNG")
    return depth == 16


def _read_deep(image: Pillow.Image, file: BinaryIO) -> tuple[Levels, Levels | None]:
    """Decode 16 bits a channel with OpenCV, as Pillow has no such mode for colours: uint16 RGB, and alpha."""
    levels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)  # grey, BGR or BGRA
    if levels is None or levels.dtype != np.uint16:
        raise ImageError("its 16 bits a channel are stored in an unusual way: save it as 16-bit PNG")
    if levels.ndim == 2:
        levels = levels[:, :, None].repeat(RGB_CHANNELS, axis=2)
    pixels = np.ascontiguousarray(levels[:, :, 2::-1], dtype=np.uint16)
    alpha = np.ascontiguousarray(levels[:, :, 3], dtype=np.uint16) if levels.shape[2] == 4 else None
    transparent = image.info.get("transparency")  # the one level that is, of a grey PNG
    if alpha is None and transparent is not None:
        alpha = np.where((pixels == transparent).all(axis=2), 0, 65535).astype(np.uint16)
    return pixels, alpha


def _read_flat(image: Pillow.Image) -> tuple[Levels, Levels | None]:
    """Return what Pillow decoded as uint8 RGB, and alpha."""
    if image.mode in ("F", "I", "LAB"):
        raise ImageError(f"pixels of Pillow's mode {image.mode!r}: save it as RGB")
    if image.mode == "CMYK":
        return np.array(_cmyk_to_rgb(image)), None
    if not image.has_transparency_data:
        return np.array(image if image.mode == "RGB" else image.convert("RGB")), None
    levels = np.array(image if image.mode == "RGBA" else image.convert("RGBA"))
    return np.ascontiguousarray(levels[:, :, :3]), np.ascontiguousarray(levels[:, :, 3])


def _cmyk_to_rgb(image: Pillow.Image) -> Pillow.Image:
    """Turn CMYK into sRGB by the picture's profile, or plainly where it has none of use."""
    with suppress(OSError, ImageCms.PyCMSError):  # none, damaged, or of other channels
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info.get("icc_profile", b"")))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image.convert("RGB")
    return image.convert("RGB")


def _read_exif(image: Pillow.Image) -> tuple[int, bytes]:
    """Return the orientation, and the EXIF data without it, the thumbnail and the size in pixels."""
    orientation, data = 1, b""
    with suppress(Exception):  # EXIF is damaged in many ways, and the pixels are none the worse
        exif = image.getexif()
        orientation = exif.pop(ExifTags.Base.Orientation, 1)
        for tag in set(exif) - TIFF_TAGS if isinstance(image, TiffImageFile) else ():
            del exif[tag]
        if ExifTags.IFD.Exif in exif:  # asking for one that is not there makes one
            for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):
                exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        data = exif.tobytes() if len(exif) else b""  # leaves out the second directory, the thumbnail's
    return orientation if orientation in range(1, 9) else 1, data


def _to_keep(image: Pillow.Image, orientation: int, exif: bytes) -> dict[str, Any]:
    """Return what Pillow's ``save`` is to carry over from a picture."""
    keep: dict[str, Any] = {}
    if image.mode != "CMYK" and image.info.get("icc_profile"):
        keep["icc_profile"] = image.info["icc_profile"]
    if 0 < len(exif) < LONGEST_EXIF:
        keep["exif"] = exif
    dpi = tuple(map(float, image.info.get("dpi", ())))
    if len(dpi) == 2 and all(1 <= number < 65536 for number in dpi):
        keep["dpi"] = dpi[::-1] if orientation > 4 else dpi
    if isinstance(image, JpegImageFile):
        keep["qtables"] = [table for _, table in sorted(image.quantization.items())]
        keep["subsampling"] = max(get_sampling(image), 0)  # none for what Pillow has no name for
    return keep


def _upright(levels: Levels, orientation: int) -> Levels:
    """Turn and mirror [H, W] or [H, W, C] as an EXIF orientation, 1 to 8, says."""
    if orientation > 4:
        levels = levels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return np.ascontiguousarray(levels)


def _eight_bits(levels: Levels) -> Image:
    """Round 16 bits to 8."""
    if levels.dtype == np.uint16:
        return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(levels, dtype=np.uint8)


def _encode_deep(planes: Levels, keep: dict[str, Any]) -> bytes:
    """Return a 16-bit PNG of [H, W, C]: OpenCV's pixels, between Pillow's profile, EXIF and resolution."""
    if planes.shape[2] == 2:  # OpenCV writes no grey with alpha
        planes = planes[:, :, [0, 0, 0, 1]]
    order = [2, 1, 0, 3][: planes.shape[2]] if planes.shape[2] > 1 else [0]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(planes[:, :, order]))
    if not done:
        raise ValueError(f"OpenCV could not encode {planes.dtype} {planes.shape} as PNG")
    stub = io.BytesIO()
    Pillow.new("RGB", (1, 1)).save(stub, "PNG", **keep)
    header = 33  # bytes: the signature and IHDR, which comes first in every PNG
    carried = stub.getvalue()[header : stub.getvalue().rindex(b"IDAT") - 4]
    return encoded[:header].tobytes() + carried + encoded[header:].tobytes()


def write_image(path: str | Path, image: Image) -> Path:
    """Write uint8 RGB [H, W, 3]; the suffix chooses the format, one of :data:`WRITTEN`."""
    path = Path(path)
    check_image(image, str(path))
    if path.suffix.lower() not in WRITTEN:
        raise ImageError(choice_error(f"{path}: image suffix", path.suffix, WRITTEN))
    with _writing(path, image) as temporary:
        done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
        if not done:
            raise ValueError("OpenCV could not encode it")
        temporary.write_bytes(data.tobytes())
    return path


@contextmanager
def _writing(path: Path, image: Levels) -> Iterator[Path]:
    """Write a picture atomically; whatever goes wrong ends in an error that names it and says what to do."""
    most = LONGEST_SIDE.get(path.suffix.lower(), 1_000_000)
    if max(image.shape[:2]) > most:
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise ImageError(f"{path}: {size}, its format holds at most {most} a side: make it smaller, or a PNG")
    try:
        with write_atomically(path) as temporary:
            yield temporary
    except StorageError:
        raise  # no picture's fault
    except Exception as error:  # encoders fail in more ways than they name
        reason = getattr(error, "strerror", None) or in_short(error)
        raise ImageError(f"{path} cannot be written ({reason}): check permissions and free space") from error


def data_uri(image: Image) -> str:
    """Return uint8 RGB [H, W, 3] as a data URI for HTML: JPEG to be looked at, or PNG where it is smaller."""
    check_image(image)
    swapped = np.ascontiguousarray(image[:, :, ::-1])
    # Colour is what is looked at here: no chroma subsampling, which is OpenCV's default
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options: dict[str, list[int]] = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling], "png": []}
    encoded = [(kind, cv2.imencode(f".{kind}", swapped, option)[1]) for kind, option in options.items()]
    kind, data = min(encoded, key=lambda pair: pair[1].size)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def form(array: object) -> str:
    """Return in words what was given in place of an array, or the array's type and shape."""
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"


def check_image(image: NDArray[np.generic], name: str = "image") -> None:
    """Raise ImageError unless ``image`` is uint8 [H, W, 3] and holds a pixel."""
    if form(image)[:6] != "uint8 " or image.ndim != 3 or image.shape[2] != RGB_CHANNELS or not image.size:
        raise ImageError(f"{name}: {form(image)}, expected uint8 [H, W, 3]")


def resize(image: Image, size: int | tuple[int, int]) -> Image:
    """Resize bilinearly (OpenCV's INTER_LINEAR, as the vendor's card) to (width, height) or a square."""
    width, height = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def centre_square(image: Image) -> Image:
    """Return the middle square of an image; a square one as it is."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image if height == width else image[top : top + side, left : left + side]


def to_grey(image: Image) -> Image:
    """Return OpenCV's grey (0.299 R + 0.587 G + 0.114 B) copied to three channels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(np.asarray(grey, dtype=np.uint8)[:, :, None], RGB_CHANNELS, axis=2)


def to_tensor(images: Image | list[Image]) -> FloatArray:
    """Normalise images to network input, ``(x / 255 - 0.5) / 0.5``.

    uint8 [H, W, 3], [N, H, W, 3] or a list of images of one size -> float32 [N, 3, H, W] in [-1, 1].
    """
    if not isinstance(images, list):
        images = list(images) if isinstance(images, np.ndarray) and images.ndim == 4 else [images]
    for number, image in enumerate(images):
        check_image(image, f"image {number}")
    batch = np.stack(images)  # of one size, and at least one, or NumPy says so
    scaled = batch.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0
    return np.ascontiguousarray(scaled)


def from_tensor(tensor: NDArray[np.floating], rounding: Rounding = "round") -> Image:
    """Turn network output, float [N, 3, H, W], clipped to [-1, 1], into images, uint8 [N, H, W, 3].

    ``"round"`` is correct; ``"truncate"`` is what the vendor's script does (``astype(uint8)``) and darkens by
    half a grey level on average.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(choice_error("rounding", rounding, ROUNDINGS))
    return from_levels(to_levels(tensor), rounding)


def from_levels(levels: FloatArray, rounding: Rounding = "round") -> Image:
    """Turn grey levels in [0, 255] into whole numbers, uint8 of the same shape; see :func:`from_tensor`."""
    whole = np.rint(levels) if rounding == "round" else levels
    return whole.astype(np.uint8)


def to_levels(tensor: NDArray[np.floating]) -> FloatArray:
    """Turn network output, float [N, 3, H, W], clipped to [-1, 1], into float32 [N, H, W, 3] in [0, 255]."""
    if form(tensor)[:5] != "float" or tensor.ndim != 4 or tensor.shape[1] != RGB_CHANNELS:
        raise ImageError(f"network output {form(tensor)}: expected float [N, 3, H, W]")
    if not np.isfinite(tensor).all():
        raise ImageError("network output holds NaN or infinity: try dtype fp32, or other weights")
    levels = np.array(tensor.transpose(0, 2, 3, 1), dtype=np.float32, order="C")
    levels *= np.float32(0.5)
    levels += np.float32(0.5)
    np.clip(levels, 0.0, 1.0, out=levels)
    levels *= np.float32(255.0)
    return levels


LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of R, G and B: ITU-R BT.601
MOST_CHROMA = 4.0


def scale_chroma(tensor: FloatArray, factor: float) -> FloatArray:
    """Multiply the chroma of every pixel, float32 RGB [N, 3, H, W] in [-1, 1]; its luma stays.

    Where a channel would leave the range, the factor is as large as it can be there, and at least 1.
    """
    if factor == 1:
        return tensor
    luma = np.tensordot(tensor, LUMA, (1, 0))[:, None]  # [N, 1, H, W]
    distance = tensor - luma
    if factor > 1:
        room = np.maximum(1 - np.sign(distance) * luma, 0)  # as far as a channel may go on its side
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(distance == 0, np.inf, room / np.abs(distance)).min(axis=1, keepdims=True)
        factors = np.clip(most, 1, factor)
    else:
        factors = np.float32(factor)
    return np.asarray(luma + factors * distance, dtype=np.float32)


def to_planar(image: Image) -> NDArray[np.uint8]:
    """HWC -> CHW, the layout of the npz packs."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def from_planar(planar: NDArray[np.uint8]) -> Image:
    """CHW -> HWC."""
    return np.ascontiguousarray(planar.transpose(1, 2, 0))
