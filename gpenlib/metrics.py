"""Figures of uint8 RGB [H, W, 3]: PSNR, SSIM, colour, detail; LPIPS, FID, KID with the user's weights."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import xyz_tristimulus_values
from skimage.color.colorconv import xyz_from_rgb

from gpenlib.files import describe, first_bytes, sha256
from gpenlib.images import Image, check_image, form, to_planar, to_tensor
from gpenlib.jobs import progress

Array = NDArray[Any]
LabArray = NDArray[np.float32]
STRIP = 64  # rows
PSNR_CEILING = 100.0
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
SSIM_HALF = SSIM_WINDOW // 2
DETAIL_RADIUS = 2.0  # pixels: standard deviation of the blur that fine detail does not survive


def strips(height: int) -> Iterator[slice]:
    """Yield slices of some rows each: what is computed in between stays in the processor's cache."""
    for start in range(0, height, STRIP):
        yield slice(start, min(start + STRIP, height))


def check_pair(a: Array, b: Array, data_range: float | None) -> float:
    """Validate a pair of images and return the width of their value range."""
    numbers = isinstance(a, np.ndarray) and a.dtype.kind in "uif" and a.size
    if form(a) != form(b) or not numbers:
        raise ValueError(f"images are {form(a)} and {form(b)}, expected arrays of one type and shape")
    if a.dtype.kind == "f" and not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("images hold NaN or infinity, which cannot be compared")
    if data_range is not None:
        if not 0 < data_range < math.inf:
            raise ValueError(f"data_range={data_range}: must be above 0, such as 2.0 for values in [-1, 1]")
        return float(data_range)
    if a.dtype != np.uint8:
        raise ValueError(f"data_range is required for {a.dtype} images (2.0 for values in [-1, 1])")
    return 255.0


def psnr(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels, ``10 log10(range^2 / MSE)``.

    Parameters
    ----------
    a, b : uint8 or float arrays of one shape and type; equal ones give infinity
    data_range : float, optional
        Width of the value range: 255 for uint8; required for floats (2.0 for [-1, 1]).
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
    """Return the structural similarity index of Wang et al. 2004 (equation 13), 1 for equal images.

    11x11 Gaussian window, sigma 1.5, inside the image only, ``C1 = (0.01 range)^2``, ``C2 = (0.03 range)^2``,
    computed per channel and averaged, which is what the vendor's evaluation script computes.

    Parameters
    ----------
    a, b : [H, W, 3] or [H, W], uint8 or float, not smaller than the window
    data_range : float, optional
        As in :func:`psnr`. SSIM depends on where zero is: use values from 0 upwards.
    """
    return ssims([a], b, check_pair(a, b, data_range))[0]


def ssims(images: Sequence[Array], truth: Array, data_range: float = 255.0) -> list[float]:
    """Return the SSIM of several images with one truth, which is filtered only once."""
    if truth.ndim not in (2, 3) or min(truth.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"image {form(truth)} is smaller than SSIM's 11x11 window, or no [H, W, 3]")
    for image in images:
        if image.shape != truth.shape:
            raise ValueError(f"images differ in shape: {image.shape} and {truth.shape}")
    height, width, *channels = truth.shape
    totals = np.zeros(len(images))
    for rows in strips(height - 2 * SSIM_HALF):
        pixels = slice(rows.start, rows.stop + 2 * SSIM_HALF)  # windows reach beyond the strip
        totals += _strip_ssims([image[pixels] for image in images], truth[pixels], data_range)
    return [float(v) for v in totals / math.prod([height - 2 * SSIM_HALF, width - 2 * SSIM_HALF, *channels])]


def _strip_ssims(images: Sequence[Array], truth: Array, data_range: float) -> list[float]:
    """Return the sums of the similarity over the windows inside a strip."""
    c1, c2 = (np.float32((k * data_range) ** 2) for k in (SSIM_K1, SSIM_K2))
    middle = np.float32(data_range / 2)  # values around zero: variances, differences, keep their digits
    others = np.subtract(truth, middle, dtype=np.float32)
    others_mean = _window_mean(others)
    variance = _window_mean(others * others)
    variance -= others_mean * others_mean
    variance += c2
    light = others_mean + middle
    lights = light * light + c1
    sums = []
    for image in images:
        values = np.subtract(image, middle, dtype=np.float32)
        mean = _window_mean(values)
        covariance = _window_mean(values * others)
        covariance -= mean * others_mean
        covariance += c2 / 2
        variances = _window_mean(np.multiply(values, values, out=values))
        variances -= mean * mean
        variances += variance
        mean += middle  # light as it is, for the factor in which nothing cancels
        similarity = mean * light
        similarity += c1 / 2
        similarity *= covariance
        mean *= mean
        mean += lights
        mean *= variances
        similarity /= mean
        # Windows that reach over an edge are computed too: to cut arrays costs more
        inside = similarity[SSIM_HALF:-SSIM_HALF, SSIM_HALF:-SSIM_HALF]
        sums.append(4 * float(inside.sum(dtype=np.float64)))
    return sums


def _window_mean(values: Array) -> Array:
    """Return the Gaussian-weighted mean around every pixel, an array like ``values``."""
    # What scikit-image's structural_similarity computes in float64, up to 1e-7, many times as fast
    profile = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_32F)
    return np.asarray(cv2.sepFilter2D(values, -1, profile, profile))


def to_lab(image: Array) -> LabArray:
    """Return CIELAB (CIE 15, D65) of uint8 RGB as scikit-image does, float32 [H, W, 3]; L in [0, 100]."""
    check_image(image)
    linear, to_white = _lab_constants()
    lab = np.empty((3, *image.shape[:2]), dtype=np.float32)  # planes: what is computed of them is by plane
    for rows in strips(len(image)):
        roots = []
        for part in cv2.split(cv2.transform(cv2.LUT(image[rows], linear), to_white)):
            root = np.cbrt(part)
            np.copyto(root, np.float32(7.787) * part + np.float32(16 / 116), where=part <= 0.008856)
            roots.append(root)
        x, y, z = roots
        lab[0, rows] = 116.0 * y - 16.0
        lab[1, rows] = 500.0 * (x - y)
        lab[2, rows] = 200.0 * (y - z)
    return np.moveaxis(lab, 0, -1)


@lru_cache(maxsize=1)
def _lab_constants() -> tuple[Array, Array]:
    """Return linear light by sRGB level [256] and the matrix from it to XYZ over D65 white, float32."""
    level = np.arange(256, dtype=np.float32) / 255
    linear = np.where(level > 0.04045, np.power((level + 0.055) / 1.055, 2.4), level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2", dtype=np.float64)
    return linear.astype(np.float32), (xyz_from_rgb / white[:, None]).astype(np.float32)


def delta_e2000(a: LabArray, b: LabArray) -> float:
    """Return the mean colour difference CIEDE2000 of two CIELAB images; about 1 is just visible."""
    return _mean_difference(_ciede2000, a, b)


def chroma_error(a: LabArray, b: LabArray) -> float:
    """Return the mean distance of two CIELAB images in colour alone, ``sqrt(da^2 + db^2)`` by pixel."""
    return _mean_difference(lambda x, y: _length(x[..., 1] - y[..., 1], x[..., 2] - y[..., 2]), a, b)


def _mean_difference(difference: Callable[[Array, Array], Array], a: LabArray, b: LabArray) -> float:
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3:
        raise ValueError(f"CIELAB images of shapes {a.shape} and {b.shape}: expected one shape [H, W, 3]")
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise ValueError(f"{a.dtype} and {b.dtype}: convert the images with to_lab first")
    total = sum(difference(a[rows], b[rows]).sum(dtype=np.float64) for rows in strips(len(a)))
    return float(total) / (a.shape[0] * a.shape[1])


def _ciede2000(first: Array, second: Array) -> Array:
    """Return CIEDE2000 by pixel: equations 2 to 22 of Sharma, Wu and Dalal 2005, radians for degrees."""
    # Equal to scikit-image's up to 1e-7 in the mean, three times as fast. They treat hue apart where there is
    # no chroma: there every term with a hue is multiplied by a chroma of 0, so that any hue will do.
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


def mean_colour(lab: LabArray) -> NDArray[np.float64]:
    """Return the mean CIELAB coordinates of an image, float64 [3]."""
    return np.array([lab[..., axis].mean(dtype=np.float64) for axis in range(3)])


def colour_shift(a: Array, b: Array) -> float:
    """Return the CIELAB distance ``sqrt(dL^2 + da^2 + db^2)`` of the mean colours: a veil over a face."""
    check_pair(a, b, None)
    return float(np.linalg.norm(mean_colour(to_lab(a)) - mean_colour(to_lab(b))))


GREY_SPREAD = 4.0  # levels of 255: JPEG of grey has 0, independent noise of 2 levels 3.4, faces 18 or more


def is_grey(image: Image) -> bool:
    """Return whether uint8 RGB has no colour but noise: the mean spread of a pixel's channels is small."""
    return float(np.ptp(image, axis=2).mean()) < GREY_SPREAD


def colourfulness(image: Array) -> float:
    """Return the colourfulness M^(3) of Hasler and Suesstrunk 2003: 0 for grey, 30-60 for portraits."""
    red, green, blue = (plane.astype(np.int16) for plane in np.moveaxis(image, -1, 0))
    opponents = (red - green, 1.0), (red + green - 2 * blue, 0.5)
    moments = [[weight * v[0, 0] for v in cv2.meanStdDev(plane)] for plane, weight in opponents]
    (rg_mean, rg_std), (yb_mean, yb_std) = moments
    return float(np.hypot(rg_std, yb_std) + 0.3 * np.hypot(rg_mean, yb_mean))


def sharpness(image: Array) -> float:
    """Return the variance of the Laplacian of uint8 RGB's luma, 0 for a flat one; noise counts as well."""
    return float(cv2.Laplacian(_luma(image), cv2.CV_32F).var())


def detail(image: Array, truth: Array) -> float:
    """Return how much of the truth's detail an image shows: ``<i, t> / <t, t>``, each luma less its blur."""
    # 1 if all is there in full contrast, 0 if none, above 1 where exaggerated; inventions do not count
    if image.shape != truth.shape:
        raise ValueError(f"shapes differ: {image.shape} and {truth.shape}")
    lumas = [_luma(picture) for picture in (image, truth)]
    shown, true = (luma - np.asarray(cv2.GaussianBlur(luma, (0, 0), DETAIL_RADIUS)) for luma in lumas)
    energy = float(np.square(true).mean())  # below 1e-6 it is what rounding leaves of a flat truth
    return 0.0 if energy < 1e-6 else float((shown * true).mean()) / energy


def _luma(image: Array) -> Array:
    """Return the luma of uint8 RGB in grey levels, float32 [H, W]."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.float32)


# LPIPS, FID and KID, where the user has the weights; else a row that says what is missing, and no look-alike:
# distances on other features than the standard Inception's carry the name of their file.

Row = dict[str, Any]
Readers = Mapping[str, Callable[[str], Image]]  # by dtype: name of a face -> restored image, uint8 [S, S, 3]
Features = NDArray[np.float64]
Extractor = Callable[[NDArray[np.uint8]], Features]
ALL = "all"  # in the column dtype of a row that says what is missing
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchmetrics', torchvision's
ENOUGH_FOR_FID = 2048  # features of the standard Inception: below, its covariances are singular
BATCH = 16


class FeatureError(ValueError):
    """A feature extractor that cannot be opened or does not give one row per image."""


def perceptual_rows(
    pairs: Any,
    readers: Readers,
    lpips_weights: Path | None = None,
    features_file: Path | None = None,
    features_are_inception: bool = False,
) -> list[Row]:
    """Return LPIPS and feature distances of each dtype's outputs to the truths; None without the files."""
    lpips = _lpips_rows(pairs, readers, lpips_weights)
    return lpips + _distance_rows(pairs, readers, features_file, features_are_inception)


def _row(metric: str, dtype: str, value: float | None, note: str) -> Row:
    return {"metric": metric, "dtype": dtype, "value": value, "note": note}


def _lpips_rows(pairs: Any, readers: Readers, weights: Path | None) -> list[Row]:
    """Return LPIPS (Zhang et al. 2018, equation 1) per dtype, or the one row that says what is missing."""
    try:
        net, measure = _open_lpips(weights)
    except FeatureError as missing:
        return [_row("lpips", ALL, None, str(missing))]
    import torch  # heavy: only where it is needed

    note = f"mean over {len(pairs.names)} images, backbone {BACKBONES[net]}; lower is better"
    rows = []
    for dtype, read in readers.items():
        values = []
        for index, name in enumerate(progress(pairs.names, desc=f"LPIPS {dtype}", unit="image", leave=False)):
            output, truth = (torch.from_numpy(to_tensor(x)) for x in (read(name), pairs.truths(index)))
            with torch.inference_mode():
                values.append(float(measure(output, truth)))
        rows.append(_row(f"lpips[{net}]", dtype, statistics.fmean(values), note))
    return rows


def _distance_rows(pairs: Any, readers: Readers, file: Path | None, inception: bool) -> list[Row]:
    """Return the two feature distances per dtype, or the rows that say what is missing."""
    names = ("fid", "kid")
    if file is None:
        todo = "set features_file to a TorchScript file, as inception:FILE if it is the"
        note = f"no weights file given: {todo} standard Inception network (inception-2015-12-05.pt)"
        return [_row(metric, ALL, None, note) for metric in names]
    if not inception:
        names = (f"frechet_distance[{file.name}]", f"kernel_distance[{file.name}]")
    count = len(pairs.names)
    if count < 2:
        return [_row(metric, ALL, None, "needs at least two images") for metric in names]
    extract = open_extractor(file, inception)
    truths = features_of(map(pairs.truths, range(count)), extract)
    note = f"{count} images; lower is better"
    biased = f"{note}; biased upwards below some {ENOUGH_FOR_FID} images: compare only equal numbers"
    rows = []
    for dtype, read in progress(readers.items(), desc="feature distances", unit="dtype", leave=False):
        outputs = features_of(map(read, pairs.names), extract)
        rows.append(_row(names[0], dtype, frechet_distance(outputs, truths), biased))
        rows.append(_row(names[1], dtype, kernel_distance(outputs, truths), note))
    return rows


def _open_lpips(weights: Path | None) -> tuple[str, Any]:
    """Return a backbone's name and torchmetrics' LPIPS; FeatureError says what is missing, and what to do."""
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    faults: dict[str, str] = {}  # what is wrong: what to do
    nets: dict[str, str] = {}  # torchmetrics' name by the file name that torchvision looks for
    if absent:
        faults["; ".join(f"{name} is not installed" for name in absent)] = "pip install -e '.[metrics]'"
    else:
        models = importlib.import_module("torchvision.models")
        for net, name in BACKBONES.items():
            nets[models.get_model_weights(name).IMAGENET1K_V1.url.rpartition("/")[2]] = net
    if weights is None:
        faults["no weights file given"] = "set lpips_weights to torchvision's AlexNet, VGG-16 or SqueezeNet"
    elif nets and weights.name not in nets:
        faults[f"{weights.name} is none of {', '.join(nets)}"] = "give one under its own name"
    elif nets and not sha256(weights).startswith(weights.stem.rpartition("-")[2]):
        faults[f"{weights.name} is damaged: its SHA-256 is not the one in its name"] = "fetch it again"
    if faults or weights is None:
        raise FeatureError(f"{'; '.join(faults)}. To do: {'; '.join(faults.values())}")
    import torch

    lpip = importlib.import_module("torchmetrics.image.lpip")
    before = torch.hub.get_dir()  # torchvision takes weights from here if a file of the right name is there
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / weights.name).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        try:
            net = nets[weights.name]
            return net, lpip.LearnedPerceptualImagePatchSimilarity(net_type=net)
        finally:
            torch.hub.set_dir(before)


def open_extractor(path: str | Path, inception: bool = False) -> Extractor:
    """Open a TorchScript file as a function from uint8 RGB [N, 3, H, W], of any size, to float64 [N, D]."""
    import torch

    start = first_bytes(path, "TorchScript file", FeatureError)
    try:
        network: Any = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        what = (
            "has no TorchScript in it"
            if start[:2] == b"PK"
            else describe(start, "TorchScript file", (".pt",))
        )
        raise FeatureError(f"{path} {what}; write one with torch.jit.save") from error
    # The network of the original FID (inception-2015-12-05.pt of StyleGAN) is asked for features by name.
    options = {"return_features": True} if inception else {}

    def extract(batch: NDArray[np.uint8]) -> Features:
        try:
            with torch.inference_mode():
                features = network(torch.from_numpy(batch), **options)
        except Exception as error:  # of the network's own code
            reason = repr(error)[-200:]  # in one line, the end of which says most
            raise FeatureError(f"{path}: cannot take uint8 RGB {batch.shape} ({reason})") from error
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if isinstance(shape, str) or len(shape) < 2 or shape[0] != len(batch):
            raise FeatureError(f"{path}: gave {shape} for {len(batch)} images, expected [N, D]")
        return features.flatten(1).double().numpy()

    return extract


def features_of(images: Iterable[Image], extract: Extractor) -> Features:
    """Return the features of images, float64 [N, D]; a few images are held at a time."""
    planes = map(to_planar, images)
    features = [extract(np.stack(few)) for few in iter(lambda: list(itertools.islice(planes, BATCH)), [])]
    if not features:
        raise FeatureError("no image to take features of")
    rows = np.concatenate(features)
    if not np.isfinite(rows).all():
        raise FeatureError("features hold NaN or infinity")
    return rows


def frechet_distance(a: Features, b: Features) -> float:
    """Return ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Heusel et al. 2017, equation 6)."""
    _check_features(a, b)
    mean = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = (np.atleast_2d(np.cov(features.T)) for features in (a, b))
    # The root's trace is that of the symmetric (C_a^(1/2) C_b C_a^(1/2))^(1/2), which stays real where
    # covariances are singular, as they are with fewer images than features.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ cov_b @ root)
    overlap = np.sqrt(np.clip(between, 0, None)).sum()
    return float(max(0.0, mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap))


def kernel_distance(a: Features, b: Features) -> float:
    """Return the unbiased squared MMD with the kernel ``(x . y / D + 1)^3`` (Binkowski et al. 2018)."""
    _check_features(a, b)
    within_a, within_b, across = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    same_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    same_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same_a + same_b - 2 * across.mean())  # it may be slightly negative where sets do not differ


def _check_features(a: Features, b: Features) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise FeatureError(f"features {a.shape} and {b.shape}: expected two of [N, D], N at least 2")
