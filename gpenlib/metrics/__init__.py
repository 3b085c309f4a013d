"""Image quality figures: arrays in, numbers out."""

from gpenlib.metrics.colour import (
    LabArray,
    chroma_error,
    colour_shift,
    colourfulness,
    delta_e2000,
    mean_colour,
    to_lab,
)
from gpenlib.metrics.fidelity import PSNR_CEILING, SsimReference, finite_psnr, psnr, ssim
from gpenlib.metrics.texture import detail, sharpness

__all__ = [
    "PSNR_CEILING",
    "LabArray",
    "SsimReference",
    "chroma_error",
    "colour_shift",
    "colourfulness",
    "delta_e2000",
    "detail",
    "finite_psnr",
    "mean_colour",
    "psnr",
    "sharpness",
    "ssim",
    "to_lab",
]
