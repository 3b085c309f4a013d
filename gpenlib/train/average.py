"""Average the weights of networks that were trained from the same start ("model soup").

Networks that left one set of weights on different ways often lie in one basin of the loss; the mean of their
weights then does about as well as the mean of their answers (Wortsman et al., ICML 2022). Between a network
trained for PSNR and one trained on against a discriminator, the shares choose between truth and sharpness
(ESRGAN, Wang et al. 2018, section 3.4). From different random weights it does not work.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from gpenlib.architecture import Gpen, save_checkpoint
from gpenlib.architecture.checkpoints import load_weights, trained_task
from gpenlib.files import resolve_path
from gpenlib.jobs import command


def average_weights(models: Sequence[Gpen], shares: Sequence[float] | None = None) -> Gpen:
    """Return a network whose every weight is the others' mean; of positive shares only the ratios count."""
    configs = {model.config for model in models}
    if len(models) < 2 or len(configs) > 1:
        listed = ", ".join(map(str, configs))
        raise ValueError(f"{len(models)} networks of configuration {listed}: needed are at least two of one")
    shares = [1.0] * len(models) if shares is None else shares
    if len(shares) != len(models) or not all(0 < share < math.inf for share in shares):
        raise ValueError(f"shares {list(shares)}: one positive number for each of {len(models)} networks")
    factors = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    states = [model.state_dict() for model in models]
    mean = Gpen(models[0].config)
    for name, tensor in mean.state_dict().items():
        stacked = torch.stack([state[name].double() for state in states])
        tensor.copy_(torch.tensordot(factors, stacked, dims=1))
    return mean.eval()


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the mean of several weights as fp16 safetensors, with the task that all were trained for."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib average", description=main.__doc__)
    parser.add_argument("output", type=Path, help="a .safetensors file")
    parser.add_argument("weights", nargs="+", help="names of shipped weights, or files")
    parser.add_argument("--shares", nargs="+", type=float, help="one per weights; by default all count alike")
    options = parser.parse_args(arguments)
    mean = average_weights([load_weights(name).model for name in options.weights], options.shares)
    tasks = {name: trained_task(name) for name in options.weights}
    if len(set(tasks.values())) > 1:
        raise ValueError(f"weights of different tasks: {tasks}")
    notes = {"task": tasks[options.weights[0]]}
    path = save_checkpoint(mean, resolve_path(options.output), torch.float16, notes)
    print(f"weights: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
