"""What the figures share: types, strips of rows, checks of a pair."""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from typing import Any as Pack

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import xyz_tristimulus_values
from skimage.color.colorconv import xyz_from_rgb

from gpenlib.files import progress, sha256
from gpenlib.images import Image, to_planar, to_tensor

# ----------------------------------------------------------------------
# What the figures share: types, strips of rows, checks of a pair.

Array = NDArray[Any]
STRIP = 64  # rows


def strips(height: int) -> Iterator[slice]:
    """Yield slices of some rows each: what is computed in between stays in the processor's cache."""
    for start in range(0, height, STRIP):
        yield slice(start, min(start + STRIP, height))


def check_pair(a: Array, b: Array, data_range: float | None) -> float:
    """Validate a pair of images and return the width of their value range."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"images differ in kind: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if data_range is not None:
        return float(data_range)
    if a.dtype != np.uint8:
        raise ValueError(f"data_range is required for {a.dtype} images (2.0 for values in [-1, 1])")
    return 255.0


# ----------------------------------------------------------------------
# Distance of an image from its truth, whatever it consists of: PSNR and SSIM.

PSNR_CEILING = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels.

    Parameters
    ----------
    a, b : uint8 or float arrays of one shape
    data_range : float, optional
        Width of the value range: 255 for uint8; required for floats (2.0 for [-1, 1]).

    Returns
    -------
    float
        Infinity for equal arrays.

    Raises
    ------
    ValueError
        If shapes or types differ, or ``data_range`` is missing for floats.
    """
    width = check_pair(a, b, data_range)
    if a.dtype == np.uint8:  # OpenCV sums whole numbers: exact, and much faster
        error = cv2.norm(a.reshape(-1), b.reshape(-1), cv2.NORM_L2SQR) / a.size
    else:
        error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return math.inf if error == 0 else 10.0 * math.log10(width**2 / error)


def finite_psnr(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return :func:`psnr`, with 100 dB for equal images so that means stay finite."""
    return min(psnr(a, b, data_range), PSNR_CEILING)


def ssim(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return the structural similarity index of Wang et al. 2004.

    11x11 Gaussian window, sigma 1.5, valid region only, computed per channel and averaged, which is
    what the vendor's evaluation script computes.

    Parameters
    ----------
    a, b : [H, W, 3] or [H, W], uint8 or float
    data_range : float, optional
        As :func:`psnr`.

    Raises
    ------
    ValueError
        As :func:`psnr`, or if an image is smaller than the window.
    """
    width = check_pair(a, b, data_range)
    return SsimReference(b, width).score(a)


class SsimReference:
    """SSIM of many images against one, whose local means and energies are filtered only once.

    Parameters
    ----------
    image : [H, W, 3] or [H, W], uint8 or float
    data_range : float
        Width of the value range. SSIM depends on where zero is: use values from 0 upwards.

    Raises
    ------
    ValueError
        If ``image`` is smaller than the window.
    """

    def __init__(self, image: Array, data_range: float = 255.0) -> None:
        if min(image.shape[:2]) < SSIM_WINDOW:
            raise ValueError(f"image of shape {image.shape} is smaller than SSIM's 11x11 window")
        self._values = image.astype(np.float64)
        self._mean = _window_mean(self._values)
        self._energy = _window_mean(self._values**2)
        self._c1, self._c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2

    def score(self, image: Array) -> float:
        """Return the SSIM of ``image``, an array of the same shape and value range.

        Raises
        ------
        ValueError
            If the shape differs.
        """
        if image.shape != self._values.shape:
            raise ValueError(f"images differ in shape: {image.shape} and {self._values.shape}")
        height = len(self._mean)
        total = sum(self._similarity(image, rows) for rows in strips(height))
        return total / self._mean.size

    def _similarity(self, image: Array, rows: slice) -> float:
        """Return the sum of the similarity over some rows of windows."""
        pixels = slice(rows.start, rows.stop + SSIM_WINDOW - 1)
        values, others = image[pixels].astype(np.float64), self._values[pixels]
        mean, other_mean = _window_mean(values), self._mean[rows]
        means = mean * other_mean
        squares = mean * mean
        squares += other_mean * other_mean
        covariance = _window_mean(values * others) - means
        variances = _window_mean(values * values) + self._energy[rows]
        variances -= squares
        similarity = (2 * means + self._c1) * (2 * covariance + self._c2)
        similarity /= (squares + self._c1) * (variances + self._c2)
        return float(similarity.sum())


def _window_mean(values: Array) -> Array:
    """Return Gaussian-weighted means over every window that lies inside the image, [H - 10, W - 10, ...].

    OpenCV's separable filter gives what scikit-image's ``structural_similarity`` computes, five times
    as fast.
    """
    profile = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_64F)
    inside = SSIM_WINDOW // 2
    return np.asarray(cv2.sepFilter2D(values, -1, profile, profile))[inside:-inside, inside:-inside]


# ----------------------------------------------------------------------
# Colour: CIELAB, differences in it, colourfulness.

LabArray = NDArray[np.float32]


def to_lab(image: Array) -> LabArray:
    """Return the CIELAB coordinates (D65) of uint8 RGB, float32 [H, W, 3]; L in [0, 100].

    To the last bit what scikit-image's ``rgb2lab`` gives for ``image / 255`` in float32, three times as fast,
    because uint8 has only 256 values whose power need be taken.

    Raises
    ------
    ValueError
        If ``image`` is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{image.dtype} {image.shape}: expected uint8 RGB [H, W, 3]")
    linear, from_linear, white = _lab_constants()
    lab = np.empty(image.shape, dtype=np.float32)
    for rows in strips(len(image)):
        xyz = linear[image[rows]] @ from_linear / white
        root = np.cbrt(xyz)
        dark = xyz <= 0.008856
        root[dark] = 7.787 * xyz[dark] + 16.0 / 116.0
        x, y, z = root[..., 0], root[..., 1], root[..., 2]
        lab[rows, :, 0] = 116.0 * y - 16.0
        lab[rows, :, 1] = 500.0 * (x - y)
        lab[rows, :, 2] = 200.0 * (y - z)
    return lab


@lru_cache(maxsize=1)
def _lab_constants() -> tuple[Array, Array, Array]:
    """Return linear light by sRGB level [256], the matrix from it to XYZ, and D65 white, all float32."""
    level = np.arange(256, dtype=np.float32) / 255
    linear = np.where(level > 0.04045, np.power((level + 0.055) / 1.055, 2.4), level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2", dtype=np.float32)
    return linear.astype(np.float32), xyz_from_rgb.T.astype(np.float32), white


def delta_e2000(a: LabArray, b: LabArray) -> float:
    """Return the mean colour difference CIEDE2000 over all pixels; about 1 is just visible.

    The same as scikit-image's ``deltaE_ciede2000`` up to the rounding of float32 (1e-7 in the mean), and
    three times as fast.

    Parameters
    ----------
    a, b : float [H, W, 3]
        CIELAB, as :func:`to_lab` gives it.

    Raises
    ------
    ValueError
        If the arrays are not of one shape, or are uint8 (not yet CIELAB).
    """
    _check_lab(a, b)
    total = sum(_ciede2000(a[rows], b[rows]).sum(dtype=np.float64) for rows in strips(len(a)))
    return float(total) / (a.shape[0] * a.shape[1])


def _ciede2000(first: Array, second: Array) -> Array:
    """Return CIEDE2000 by pixel, in the steps of Sharma, Wu and Dalal (2005), radians for degrees.

    They treat hue apart where a colour has no chroma. There every term with a hue is multiplied by a chroma
    of 0, so that any hue will do.
    """
    l1, a1, b1 = np.ascontiguousarray(np.moveaxis(first, -1, 0))
    l2, a2, b2 = np.ascontiguousarray(np.moveaxis(second, -1, 0))
    stretch = 1.5 - 0.5 * _saturating(0.5 * (_length(a1, b1) + _length(a2, b2)))  # 1 + G
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = _length(a1, b1), _length(a2, b2)
    h1 = np.arctan2(b1, a1)
    dh = np.arctan2(b2, a2) - h1
    dh -= 2 * math.pi * np.rint(dh / (2 * math.pi))  # the shorter way round
    hue = h1 + 0.5 * dh  # the mean hue, up to whole turns
    chroma, light = 0.5 * (c1 + c2), (0.5 * (l1 + l2) - 50) ** 2
    t = 1 - 0.17 * np.cos(hue - math.radians(30)) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + math.radians(6)) - 0.20 * np.cos(4 * hue - math.radians(63))
    from_blue = hue - math.radians(275)
    from_blue -= 2 * math.pi * np.floor((from_blue + math.radians(275)) / (2 * math.pi))
    turn = math.radians(60) * np.exp(-((from_blue / math.radians(25)) ** 2))  # 2 delta theta
    dl = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(0.5 * dh) / (1 + 0.015 * chroma * t)
    rotation = -2 * np.sin(turn) * _saturating(chroma)
    return np.asarray(np.sqrt(np.maximum(dl * dl + dc * dc + dh * dh + rotation * dc * dh, 0)))


def _length(a: Array, b: Array) -> Array:
    return np.asarray(np.sqrt(a * a + b * b))


def _saturating(chroma: Array) -> Array:
    """Return sqrt(C^7 / (C^7 + 25^7)); products are much faster than a power."""
    cube = chroma * chroma * chroma
    seventh = cube * cube * chroma
    return np.asarray(np.sqrt(seventh / (seventh + 25.0**7)))


def chroma_error(a: LabArray, b: LabArray) -> float:
    """Return the mean distance of the pixels in CIELAB's chroma plane, sqrt(da^2 + db^2).

    Unlike PSNR it sees colour alone: a grey image that is right in lightness still has the whole chroma
    of the truth as its error. Parameters and errors as :func:`delta_e2000`.
    """
    _check_lab(a, b)
    total = 0.0
    for rows in strips(len(a)):
        difference = a[rows, :, 1:] - b[rows, :, 1:]
        difference *= difference
        total += float(np.sqrt(difference[..., 0] + difference[..., 1]).sum(dtype=np.float64))
    return total / (a.shape[0] * a.shape[1])


def mean_colour(lab: LabArray) -> NDArray[np.float64]:
    """Return the mean CIELAB coordinates of an image, float64 [3]."""
    return np.array(cv2.mean(lab)[:3])


def colour_shift(a: Array, b: Array) -> float:
    """Return the CIELAB distance (Delta E 1976) between the mean colours of two uint8 RGB images.

    It shows a veil of colour over the whole face, which PSNR and SSIM hardly see.
    """
    check_pair(a, b, None)
    return float(np.linalg.norm(mean_colour(to_lab(a)) - mean_colour(to_lab(b))))


def colourfulness(image: Array) -> float:
    """Return Hasler and Suesstrunk's colourfulness (2003) of uint8 RGB: 0 for grey, 30-60 for portraits."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def _check_lab(a: Array, b: Array) -> None:
    """Raise unless both arrays may be CIELAB images of one shape."""
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3:
        raise ValueError(f"CIELAB images of shapes {a.shape} and {b.shape}: expected one shape [H, W, 3]")
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise ValueError(f"{a.dtype} and {b.dtype}: convert the images with to_lab first")


# ----------------------------------------------------------------------
# Detail: how sharp an image is, and how much of that is the truth's.

DETAIL_RADIUS = 2.0  # pixels


def sharpness(image: Array) -> float:
    """Return the variance of the Laplacian of uint8 RGB's luma, 0 for a flat one; noise counts as well."""
    return float(cv2.Laplacian(_luma(image), cv2.CV_32F).var())


def detail(image: Array, truth: Array) -> float:
    """Return how much of the truth's fine detail an image shows; noise and invented detail do not count.

    Parameters
    ----------
    image, truth : uint8 RGB [H, W, 3]
        Of the same shape.

    Returns
    -------
    float
        Slope of the least-squares line through the origin from the truth's detail to the image's: 1 if all of
        the truth's detail is there in full contrast, 0 if none is, above 1 where it is exaggerated; 0 for a
        flat truth. Detail is luma less its blur with a standard deviation of :data:`DETAIL_RADIUS` pixels.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if image.shape != truth.shape:
        raise ValueError(f"shapes differ: {image.shape} and {truth.shape}")
    shown, wanted = (_fine_detail(picture) for picture in (image, truth))
    energy = float(np.square(wanted).mean())
    flat = energy < 1e-6  # grey levels squared: what rounding leaves
    return 0.0 if flat else float((shown * wanted).mean()) / energy


def _fine_detail(image: Array) -> Array:
    luma = _luma(image)
    return np.asarray(luma - cv2.GaussianBlur(luma, (0, 0), DETAIL_RADIUS))


def _luma(image: Array) -> Array:
    """Return the luma of uint8 RGB in grey levels, float32 [H, W]."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.float32)


# ----------------------------------------------------------------------
# LPIPS, FID and KID, where the user has the weights; a row that says what is missing where not.
#
# None of them is replaced by a look-alike: LPIPS is torchmetrics' on torchvision's own backbone file, and
# distances on other features than the standard Inception's carry the name of their file.

Row = dict[str, Any]
Reader = Callable[[str], Image]
ALL = "all"  # in the column dtype of a row that says what is missing
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchmetrics', torchvision's
ENOUGH_FOR_FID = 2048  # features of the standard Inception: below, its covariances are singular


def perceptual_rows(
    pack: Pack,
    readers: Mapping[str, Reader],
    lpips_weights: Path | None = None,
    features_file: Path | None = None,
    features_are_inception: bool = False,
) -> list[Row]:
    """Return LPIPS and the feature distances of every dtype's outputs to the truths.

    Parameters
    ----------
    pack : Pack
        With truths.
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3].
    lpips_weights : Path, optional
        torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1, under their original file name.
    features_file : Path, optional
        TorchScript feature extractor, see :func:`gpenlib.errors.feature_distance.open_extractor`.
    features_are_inception : bool
        Whether that file is the standard Inception network, so that the distances are FID and KID.

    Returns
    -------
    list of dict
        ``metric``, ``dtype``, ``value`` (None if it could not be computed) and ``note``.

    Raises
    ------
    FeatureError
        If ``features_file`` is given, but cannot be used.
    """
    return [
        *_lpips_rows(pack, readers, lpips_weights),
        *_distance_rows(pack, readers, features_file, features_are_inception),
    ]


def _lpips_rows(pack: Pack, readers: Mapping[str, Reader], weights: Path | None) -> list[Row]:
    """Return LPIPS per dtype, or the one row that says what is missing."""
    if missing := _lpips_obstacle(weights):
        return [_row("lpips", ALL, None, missing)]
    assert weights is not None  # else there was an obstacle
    net, measure = _open_lpips(weights)
    note = f"mean over {len(pack)} images, backbone {BACKBONES[net]}; lower is better"
    rows = []
    for dtype, read in readers.items():
        bar = progress(range(len(pack)), desc=f"LPIPS {dtype}", unit="image", leave=False)
        values = [_lpips(measure, read(pack.names[i]), pack.truths(i)) for i in bar]
        rows.append(_row(f"lpips[{net}]", dtype, statistics.fmean(values), note))
    return rows


def _distance_rows(
    pack: Pack, readers: Mapping[str, Reader], file: Path | None, inception: bool
) -> list[Row]:
    """Return the two feature distances per dtype, or the rows that say what is missing."""
    if file is None:
        note = (
            "no weights file given: set features_file to a TorchScript file, and features_are_inception to "
            "true if it is the standard Inception network (inception-2015-12-05.pt)"
        )
        return [_row(metric, ALL, None, note) for metric in ("fid", "kid")]
    names = (
        ("fid", "kid") if inception else tuple(f"{n}_distance[{file.name}]" for n in ("frechet", "kernel"))
    )
    if len(pack) < 2:
        return [_row(metric, ALL, None, "needs at least two images") for metric in names]
    extract = open_extractor(file, inception)
    truths = features_of((pack.truths(i) for i in range(len(pack))), extract)
    note = f"{len(pack)} images; lower is better"
    biased = f"{note}; biased upwards below some {ENOUGH_FOR_FID} images: compare only equal numbers"
    rows = []
    for dtype, read in progress(readers.items(), desc="feature distances", unit="dtype", leave=False):
        found = features_of((read(name) for name in pack.names), extract)
        rows.append(_row(names[0], dtype, frechet_distance(found, truths), biased))
        rows.append(_row(names[1], dtype, kernel_distance(found, truths), note))
    return rows


def _lpips_obstacle(weights: Path | None) -> str:
    """Return why LPIPS cannot be computed and what to do, or nothing if it can."""
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    reasons = [f"{name} is not installed" for name in absent]
    todo = ["pip install -e '.[metrics]'"] if absent else []
    if weights is None:
        reasons.append("no weights file given")
        todo.append("set lpips_weights to torchvision's file of AlexNet, VGG-16 or SqueezeNet 1.1")
    elif not absent:
        wanted = list(_backbone_files().values())
        if weights.name not in wanted:
            reasons.append(f"{weights.name} is none of torchvision's files {', '.join(wanted)}")
            todo.append("give one of them under its own name")
        elif not sha256(weights).startswith(weights.stem.rpartition("-")[2]):
            reasons.append(f"{weights.name} is damaged: its SHA-256 is not the one in its name")
            todo.append("fetch it again")
    return f"{'; '.join(reasons)}. To do: {'; '.join(todo)}" if reasons else ""


def _backbone_files() -> dict[str, str]:
    """Return the file names that torchvision itself looks for, by torchmetrics' name of the backbone."""
    models = importlib.import_module("torchvision.models")
    urls = {net: models.get_model_weights(name).IMAGENET1K_V1.url for net, name in BACKBONES.items()}
    return {net: url.rpartition("/")[2] for net, url in urls.items()}


def _open_lpips(weights: Path) -> tuple[str, Any]:
    """Return the backbone's name and torchmetrics' LPIPS on the given file; nothing is downloaded.

    torchvision takes weights from torch's hub folder if a file of the right name lies there, so
    that folder is moved to one that holds this file while the network is made.
    """
    net = next(net for net, name in _backbone_files().items() if name == weights.name)
    lpip = importlib.import_module("torchmetrics.image.lpip")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / weights.name).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        try:
            return net, lpip.LearnedPerceptualImagePatchSimilarity(net_type=net)
        finally:
            torch.hub.set_dir(before)


def _lpips(measure: Any, output: Image, truth: Image) -> float:
    """Return the LPIPS of one pair of images."""
    with torch.inference_mode():
        return float(measure(torch.from_numpy(to_tensor(output)), torch.from_numpy(to_tensor(truth))))


def _row(metric: str, dtype: str, value: float | None, note: str) -> Row:
    return {"metric": metric, "dtype": dtype, "value": value, "note": note}


# ----------------------------------------------------------------------
# Distances between two sets of images in the space of a network's features.
#
# Frechet distance (Heusel et al. 2017) and kernel distance (Binkowski et al. 2018). They are FID and KID only
# if the features are those of the standard Inception network; on others they are figures of their own.

Features = NDArray[np.float64]
Extractor = Callable[[NDArray[np.uint8]], Features]
BATCH = 16
KERNEL_DEGREE = 3


class FeatureError(ValueError):
    """A feature extractor that cannot be opened or does not give one row per image."""


def open_extractor(path: str | Path, inception: bool = False) -> Extractor:
    """Open a TorchScript file as a function from images to features.

    Parameters
    ----------
    path : path
        It takes uint8 RGB [N, 3, H, W] in [0, 255], does its own resizing, and gives [N, D].
    inception : bool
        Whether this is the Inception network of the original FID as TorchScript (the file
        ``inception-2015-12-05.pt`` of the StyleGAN projects); its features are asked for by name.

    Raises
    ------
    FeatureError
        If the file is missing or no TorchScript.
    """
    path = Path(path)
    try:
        network: Any = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FeatureError(f"{path}: not a readable TorchScript file ({reason})") from None
    options = {"return_features": True} if inception else {}

    def extract(batch: NDArray[np.uint8]) -> Features:
        with torch.inference_mode():
            found = network(torch.from_numpy(batch), **options)
        if not isinstance(found, torch.Tensor) or found.ndim < 2 or len(found) != len(batch):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise FeatureError(f"{path}: gave {shape} for {len(batch)} images, expected [N, D]")
        return found.flatten(1).double().numpy()

    return extract


def features_of(images: Iterable[Image], extract: Extractor) -> Features:
    """Return the features of images, float64 [N, D]; a few images are held at a time.

    Raises
    ------
    FeatureError
        If there is no image, or features are not finite.
    """
    found: list[Features] = []
    few: list[NDArray[np.uint8]] = []
    for image in images:
        few.append(to_planar(image))
        if len(few) == BATCH:
            found.append(extract(np.stack(few)))
            few = []
    if few:
        found.append(extract(np.stack(few)))
    if not found:
        raise FeatureError("no image to take features of")
    features = np.concatenate(found)
    if not np.isfinite(features).all():
        raise FeatureError("features hold NaN or infinity")
    return features


def frechet_distance(a: Features, b: Features) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``. The trace of the root is computed from the
    symmetric ``C_a^(1/2) C_b C_a^(1/2)``, which has the same eigenvalues and stays real where covariances are
    singular, as they are with fewer images than features.

    Parameters
    ----------
    a, b : float64 [N, D], [M, D]

    Raises
    ------
    FeatureError
        If a set has fewer than two rows, or the widths differ.
    """
    _check_pair(a, b)
    mean = a.mean(axis=0) - b.mean(axis=0)
    return gaussian_distance(mean, np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T)))


def gaussian_distance(mean_difference: Features, covariance_a: Features, covariance_b: Features) -> float:
    """Return the Frechet distance between two Gaussians: difference of means [D], covariances [D, D]."""
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.clip(between, 0, None)).sum()
    total = mean_difference @ mean_difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return float(max(0.0, total))


def kernel_distance(a: Features, b: Features) -> float:
    """Return the squared maximum mean discrepancy under KID's kernel ``(x . y / D + 1)^3``, unbiased.

    It may be slightly negative where the sets do not differ. Unlike the Frechet distance it does not depend
    on the number of images. Parameters and errors as :func:`frechet_distance`.
    """
    _check_pair(a, b)
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    n, m = len(a), len(b)
    same_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    same_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same_a + same_b - 2 * _kernel(a, b).mean())


def _kernel(a: Features, b: Features) -> Features:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE)


def _check_pair(a: Features, b: Features) -> None:
    """Raise unless both are [N, D] of one width with at least two rows."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise FeatureError(f"features {a.shape} and {b.shape}: expected two of [N, D], N at least 2")
