"""Measure whether more faces would help: colouring learned from an eighth, a quarter, a half, all of them.

``python benchmarks/colour_data_size.py --train /path/to/faces --faces /path/to/portraits [--steps 2000]``

Each network is the one of ``params/train/embed_color.yaml`` with the content loss alone, which is quick, and
learns for the same number of steps; all are watched on the same held-out faces and scored on other portraits.
Half an hour on two cores. The rows go to ``outputs/benchmarks/colour_data_size.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd
from colour_tradeoff import colour, score

from gpenlib.architecture import Gpen
from gpenlib.data.faces import CELEBA_FOLDER, open_folder
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.train.config import TrainConfig
from gpenlib.train.trainer import Trainer, read_log, series

EVERY = (8, 4, 2, 1)  # of so many faces one is used
CONTENT_ALONE = {
    "losses.adversarial": 0,
    "losses.feature_matching": 0,
    "learning_rates.decoder_factor": 1,
    "learning_rates.beta1": 0.9,
}


def main() -> None:
    """Train and score one network per share of the faces, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="folder of aligned faces to learn from")
    parser.add_argument("--faces", required=True, help="folder of other aligned faces to be scored on")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    rows = [train_and_score(options.train, options.faces, options.steps, every) for every in EVERY]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
    target = repository_root() / "outputs" / "benchmarks" / "colour_data_size.json"
    write_json(target, {"steps": options.steps, "rows": rows, "packages": package_versions()})


def train_and_score(train: str, faces: str, steps: int, every: int) -> dict[str, float]:
    """Return the figures of a network that learned from one of ``every`` faces."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, run_dir = Path(temporary, "faces"), Path(temporary, "run")
        config = TrainConfig.from_yaml(
            "params/train/embed_color.yaml",
            CONTENT_ALONE
            | {"data_dir": str(folder), "run_dir": str(run_dir), "steps": steps, "evaluate_every": 200},
        )
        count = link_faces(train, folder, every, config.holdout)
        model = Trainer(config).run()
        _, held_out = series(read_log(run_dir), "held_out_psnr")
    assert isinstance(model, Gpen)
    return {
        "faces": count,
        "held out, best": max(held_out),
        "held out, end": held_out[-1],
        **score(*colour(model, faces)),
    }


def link_faces(source: str, target: Path, every: int, holdout: int) -> int:
    """Link one of ``every`` training faces and all held-out ones into a new folder; return how many train."""
    names, inner = open_folder(source).names, Path(source).expanduser() / CELEBA_FOLDER
    folder = inner if inner.is_dir() else inner.parent
    target.mkdir()
    chosen, held_out = names[:-holdout:every], names[-holdout:]
    for name in (*chosen, *held_out):
        (target / name).symlink_to((folder / name).resolve())
    return len(chosen)


if __name__ == "__main__":
    main()
