"""Round trained weights to fewer bits, so that git, which compresses files, needs less room for them.

``python scripts/shorten_weights.py OUTPUT WEIGHTS [--bits 6] [--but-for BASE]``

Of a weight's fp16 fraction (10 bits) the first 6 are kept, and the file takes four fifths of the room.
Weights that training left as they were in ``BASE`` (``frozen`` in its configuration) stay as they are: git
stores them once for both files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gpenlib.architecture import Gpen, save_checkpoint
from gpenlib.architecture.checkpoints import load_weights, trained_task
from gpenlib.files import resolve_path


def main() -> None:
    """Write the weights as fp16 safetensors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="a .safetensors file")
    parser.add_argument("weights", help="name of shipped weights, or a file")
    parser.add_argument("--bits", type=int, default=6, help="of the fraction; 10 is all of fp16")
    parser.add_argument("--but-for", metavar="BASE", help="weights whose entries stay where nothing changed")
    options = parser.parse_args()
    model = load_weights(options.weights).model
    shorten(model, options.bits, load_weights(options.but_for).model if options.but_for else None)
    notes = {"task": trained_task(options.weights)}
    print(f"weights: {save_checkpoint(model, resolve_path(options.output), torch.float16, notes)}")


def shorten(model: Gpen, bits: int, base: Gpen | None = None) -> None:
    """Round every weight that is not as in ``base`` to so many bits behind its leading one, in place."""
    kept = list(base.parameters()) if base else []
    with torch.no_grad():
        for parameter in model.parameters():
            if any(torch.equal(parameter, each) for each in kept):  # in a larger network under another name
                continue
            fraction, exponent = torch.frexp(parameter)  # a fraction of 0.5 to 1
            parameter.copy_(torch.ldexp((fraction * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent))


if __name__ == "__main__":
    main()
