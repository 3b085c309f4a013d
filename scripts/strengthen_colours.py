"""Multiply the chroma of all that a colouring network answers, its luma kept, in the weights themselves.

``python scripts/strengthen_colours.py OUTPUT WEIGHTS --chroma FACTOR``

An answer is a sum of what the ToRGB layers write, enlarged by a filter that treats all channels alike. So a
matrix of three by three on the weights and biases of these layers does what the same matrix does on every
pixel, before values are cut to the range. A loss on pixels makes colours pale where they are in doubt; how
bold the guesses are is a choice, and here it is made for good (``chroma`` of notebooks 04 and 07 makes it for
one run).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gpenlib.architecture import Gpen, save_checkpoint
from gpenlib.architecture.checkpoints import load_weights, trained_task
from gpenlib.files import resolve_path
from gpenlib.images import LUMA


def main() -> None:
    """Write the weights as fp16 safetensors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="a .safetensors file")
    parser.add_argument("weights", help="name of shipped weights, or a file")
    parser.add_argument("--chroma", type=float, required=True, help="factor; 1 changes nothing")
    options = parser.parse_args()
    model = load_weights(options.weights).model
    strengthen(model, options.chroma)
    notes = {"task": trained_task(options.weights)}
    print(f"weights: {save_checkpoint(model, resolve_path(options.output), torch.float16, notes)}")


def strengthen(model: Gpen, factor: float) -> None:
    """Multiply the distance of every answer's colours from its luma, in place."""
    keep_luma = torch.ones(3, 1, dtype=torch.float64) @ torch.from_numpy(LUMA).double()[None]
    matrix = factor * torch.eye(3, dtype=torch.float64) + (1 - factor) * keep_luma
    with torch.no_grad():
        for layer in (model.generator.to_rgb1, *model.generator.to_rgbs):
            for parameter in (layer.conv.weight, layer.bias):  # [1, 3, C, 1, 1] and [1, 3, 1, 1]
                parameter.copy_(torch.einsum("ij,nj...->ni...", matrix, parameter.double()))


if __name__ == "__main__":
    main()
