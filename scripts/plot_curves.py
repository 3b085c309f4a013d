"""Draw the curves of a training run, as notebook 06 does.

``python scripts/plot_curves.py outputs/train/prior_128 notebooks/figures/curves_prior_128.png``
drew the picture of a model card; those of ``demo_restore_5`` and ``embed_color`` were drawn likewise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpenlib.plots.train import losses_figure
from gpenlib.train.trainer import read_log


def main() -> None:
    """Read the log and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run, with its log.jsonl")
    parser.add_argument("file", type=Path, help="picture to write")
    options = parser.parse_args()
    losses_figure(read_log(options.run_dir), options.run_dir.name).savefig(options.file, dpi=80)


if __name__ == "__main__":
    main()
