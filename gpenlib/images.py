"""The only place where pixels change range, channel order, layout or size.

Conventions: an *image* is uint8 [H, W, 3], RGB. A *tensor* is float32 [N, 3, S, S], RGB in [-1, 1], as the
network takes and gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.files import choice_error, write_atomically

Image = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Rounding = Literal["round", "truncate"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
RGB_CHANNELS = 3
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageError(ValueError):
    """An image that cannot be read, written or used; the message names the file or the shape."""


def read_image(path: str | Path) -> Image:
    """Read a picture as uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Grey becomes three equal channels, alpha is dropped (not blended), of 16 bits the upper eight are kept.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    data = np.fromfile(path, dtype=np.uint8)  # cv2.imread refuses non-ASCII paths on some systems
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if decoded is None:
        raise ImageError(f"{path}: not a readable image (damaged or of an unknown format)")
    return np.ascontiguousarray(decoded[:, :, ::-1])


def write_image(path: str | Path, image: Image) -> Path:
    """Write uint8 RGB [H, W, 3]; the suffix chooses the format, one of :data:`SUFFIXES`."""
    path = Path(path)
    check_image(image, str(path))
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(choice_error(f"{path}: image suffix", path.suffix, SUFFIXES))
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
    if not done:
        raise ImageError(f"{path}: OpenCV could not encode the image")
    with write_atomically(path) as temporary:
        temporary.write_bytes(data.tobytes())
    return path


def check_image(image: NDArray[np.generic], name: str = "image") -> None:
    """Raise ImageError unless ``image`` is uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != RGB_CHANNELS:
        raise ImageError(f"{name}: {image.dtype} {image.shape}, expected uint8 [H, W, 3]")


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
    batch = np.stack(images) if isinstance(images, list) else images
    if batch.ndim == 3:
        batch = batch[None]
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != RGB_CHANNELS:
        raise ImageError(f"{batch.dtype} {batch.shape}: expected uint8 [N, H, W, 3]")
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
    if not np.isfinite(tensor).all():
        raise ValueError("network output holds NaN or infinity")
    scaled = np.clip(tensor.astype(np.float32) * 0.5 + 0.5, 0.0, 1.0) * np.float32(255.0)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1))


def to_planar(image: Image) -> NDArray[np.uint8]:
    """HWC -> CHW, the layout of the npz packs."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def from_planar(planar: NDArray[np.uint8]) -> Image:
    """CHW -> HWC."""
    return np.ascontiguousarray(planar.transpose(1, 2, 0))
