"""Draw the README's picture from stage 05 on the embedded faces: a public-domain portrait and a drawn one.

``python scripts/make_readme_picture.py`` writes ``notebooks/figures/coloured.png``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpenlib import stages
from gpenlib.images import read_image
from gpenlib.plots.style import new_figure, show_image
from gpenlib.run import repository_root

FACES = ("astronaut_0000", "prior_0003")
AMPLIFICATION = 20


def main() -> None:
    """Run what is missing, then draw grey input, fp32, int8, their difference, and truth."""
    settings = stages.ErrorSettings.parse({"run": "demo", "dtypes": "fp32,int8"})
    manifest = stages.errors(settings)
    latency = {row["dtype"]: row["ms_per_image"] for row in manifest["metrics"]["table"]}
    scores = {(row["dtype"], row["name"]): row["psnr"] for row in manifest["metrics"]["rows"]}
    pack = stages.evaluation_pack(settings)
    figure, axes = new_figure(len(FACES), 5, width=10.0, height=2.15 * len(FACES) + 0.2)
    for name, line in zip(FACES, axes, strict=True):
        index = pack.names.index(name)
        outputs = {
            dtype: read_image(settings.folder / "04_infer" / dtype / "images" / f"{name}.png")
            for dtype in latency
        }
        difference = np.abs(outputs["int8"].astype(int) - outputs["fp32"]) * AMPLIFICATION
        show_image(line[0], pack.inputs(index), "grey input")
        for axis, dtype in zip(line[1:3], latency, strict=True):
            show_image(axis, outputs[dtype], f"{dtype}: {scores[dtype, name]:.1f} dB")
        show_image(line[3], np.clip(difference, 0, 255).astype(np.uint8), f"|int8 - fp32| × {AMPLIFICATION}")
        show_image(line[4], pack.truths(index), "truth")
    target = repository_root() / "notebooks" / "figures" / "coloured.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=100)
    print(Path(target))


if __name__ == "__main__":
    main()
