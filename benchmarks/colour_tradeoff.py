"""What more or less colour would cost a colouring network in PSNR, and how far an average tint takes it.

``python benchmarks/colour_tradeoff.py --faces /path/to/portraits [--weights demo-color]``

Every output keeps its own luma; the distance of its colours from grey is multiplied by a factor. Two further
rows know the truth: "own luma, true chroma" leaves the network's error of luma alone, and "true mean chroma"
shifts each picture by its one mean error of chroma. Colourfulness is the mean over the faces as a share of
the truths' mean, as in notebook 04. The rows go to ``outputs/benchmarks/colour_tradeoff.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from gpenlib.architecture import Gpen
from gpenlib.architecture.checkpoints import load_weights
from gpenlib.data import make_pair
from gpenlib.data.faces import LUMA, open_folder
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.images import Image, from_tensor, to_tensor
from gpenlib.jobs import progress
from gpenlib.metrics import colourfulness, psnr

FACTORS = (0.0, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)
BATCH = 10
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def main() -> None:
    """Colour the faces, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", required=True, help="folder of aligned faces")
    parser.add_argument("--weights", default="demo-color", help="name or weights file (default: demo-color)")
    options = parser.parse_args()

    outputs, truths = colour(load_weights(options.weights).model, options.faces)
    parts = [(*split(output), *split(truth)) for output, truth in zip(outputs, truths, strict=True)]
    answers = {
        f"chroma x {factor:g}": [join(luma, factor * chroma) for luma, chroma, _, _ in parts]
        for factor in FACTORS
    }
    answers["true mean chroma"] = [
        join(luma, chroma + (true - chroma).mean((0, 1))) for luma, chroma, _, true in parts
    ]
    answers["own luma, true chroma"] = [join(luma, true) for luma, _, _, true in parts]
    rows = [{"outputs": name, **score(images, truths)} for name, images in answers.items()]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
    target = repository_root() / "outputs" / "benchmarks" / "colour_tradeoff.json"
    write_json(target, {"weights": options.weights, "rows": rows, "packages": package_versions()})


def colour(model: Gpen, faces: str) -> tuple[list[Image], list[Image]]:
    """Return the network's answers to all grey faces of a folder, and the truths, uint8 RGB [S, S, 3]."""
    folder = open_folder(faces)
    pairs = [make_pair(folder.read(i), "color", model.config.in_size) for i in range(len(folder.names))]
    batches = torch.from_numpy(to_tensor([given for given, _ in pairs])).split(BATCH)
    with torch.inference_mode():
        outputs = [image for b in progress(batches, desc="colour") for image in from_tensor(model(b).numpy())]
    return outputs, [truth for _, truth in pairs]


def split(image: Image) -> tuple[Pixels, Pixels]:
    """Return luma [H, W, 1] and chroma, the distance of uint8 RGB from its grey, [H, W, 3]."""
    luma = (image @ LUMA)[..., None]
    return luma, image - luma


def join(luma: Pixels, chroma: Pixels) -> Image:
    """Return uint8 RGB of luma and chroma."""
    return np.clip(np.rint(luma + chroma), 0, 255).astype(np.uint8)


def score(images: Sequence[Image], truths: Sequence[Image]) -> dict[str, float]:
    """Return mean PSNR in dB and colourfulness in percent of the truths'."""
    colour = [np.mean([colourfulness(image) for image in some]) for some in (images, truths)]
    scores = [psnr(image, truth) for image, truth in zip(images, truths, strict=True)]
    return {"psnr": float(np.mean(scores)), "colourfulness_percent": float(100 * colour[0] / colour[1])}


if __name__ == "__main__":
    main()
