"""Quantise an ONNX file with NNCF; ``against_nncf.py`` runs this in an environment that has NNCF.

``python nncf_quantise.py MODEL.onnx CALIBRATION.npy OUT.xml fast|full [IGNORED]``: the input is float32
[1, 3, S, S], the calibration data are [N, 3, S, S], ``fast`` or ``full`` is NNCF's bias correction, and
operations whose name IGNORED, a regular expression, matches stay in float. All else is NNCF's default.
"""

import sys

import nncf
import numpy as np
import openvino


def main() -> None:
    """Write the quantised model as OpenVINO's XML, weights beside it."""
    source, calibration, target, correction, *ignored = sys.argv[1:]
    images = np.load(calibration)
    quantised = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset([image[None] for image in images]),
        subset_size=len(images),
        fast_bias_correction=correction == "fast",
        ignored_scope=nncf.IgnoredScope(patterns=ignored),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)


if __name__ == "__main__":
    main()
