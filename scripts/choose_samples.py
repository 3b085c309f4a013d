"""Choose which samples of a GAN prior serve as faces: a face detector and its discriminator decide.

``python scripts/choose_samples.py WEIGHTS [--count 1000] [--truncation 1] [--noise 0]``

Samples are drawn 64 at a time. Left out are the two that the discriminator, which was trained with the prior,
finds least real, and those in which CenterFace does not find one face, surely and in the middle, or whose
eyes differ. A discriminator compares the pictures of a batch, hence its mean over four orders; asked for the
best instead of the worst, it would take one kind of face. The numbers go to a file beside the weights
(``demo-prior.samples.json``), surest faces first, from which ``prior_faces`` reads them: the same on every
processor, and nothing is judged when they are drawn.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from gpenlib.architecture import Discriminator
from gpenlib.architecture.checkpoints import find_discriminator, weights_file
from gpenlib.data.faces import Chosen, prior_faces, samples_file
from gpenlib.files import sha256, write_text
from gpenlib.images import Image, to_tensor
from gpenlib.jobs import keep_memory, progress
from gpenlib.photos.find import CenterFace, aligned_face, eyes_alike

DRAWN, WORST, ORDERS = 64, 2, 4
MOST = 20  # samples drawn for each one that is asked for, at most
ALIKE = 0.3  # correlation of one eye with the mirror image of the other


def main() -> None:
    """Draw, judge and write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "weights", help="name of a shipped prior, or its file; its discriminator lies beside it"
    )
    parser.add_argument("--count", type=int, default=1000, help="samples to choose (default: 1000)")
    parser.add_argument("--truncation", type=float, default=1.0, help="of the latents (default: 1)")
    parser.add_argument("--noise", type=float, default=0.0, help="strength (default: 0)")
    options = parser.parse_args()
    keep_memory()
    path = weights_file(options.weights)
    judge = find_discriminator(path)
    if judge is None:
        parser.error(f"{path}: there is no discriminator beside it")
    samples = prior_faces(str(path), DRAWN + MOST * options.count, options.truncation, options.noise)
    detector, drawn = CenterFace(), 0
    scores: dict[int, float] = {}
    for first in progress(range(0, len(samples) - DRAWN + 1, DRAWN), desc="samples"):
        if len(scores) >= options.count:
            break
        pictures = [samples.read(first + index) for index in range(DRAWN)]
        drawn, kept = first + DRAWN, np.sort(np.argsort(logits(judge, pictures))[WORST:])
        found = {first + index: score(pictures[index], detector) for index in kept.tolist()}
        scores |= {number: certainty for number, certainty in found.items() if certainty}
    if not scores:
        parser.error(f"{path}: the detector found no face in {drawn} samples")
    chosen = Chosen(
        weights_sha256=sha256(path),
        truncation=options.truncation,
        noise=options.noise,
        numbers=tuple(sorted(list(scores)[: options.count], key=lambda number: -scores[number])),
    )
    target = write_text(samples_file(path), chosen.model_dump_json() + "\n")
    print(f"{target}: {len(scores)} of {drawn} samples can serve, {len(chosen.numbers)} were asked for")


def score(picture: Image, detector: CenterFace) -> float:
    """Return how sure the detector is of the face in uint8 RGB [S, S, 3]; 0 if its eyes are not alike."""
    face = aligned_face(picture, detector)
    return face.score if face is not None and eyes_alike(picture, face) >= ALIKE else 0.0


def logits(judge: Discriminator, pictures: list[Image]) -> np.ndarray:
    """Return the discriminator's mean logit of each picture [N], among others in several orders."""
    batch = torch.from_numpy(to_tensor(pictures))
    random, total = torch.Generator().manual_seed(0), torch.zeros(len(pictures))
    with torch.inference_mode():
        for _ in range(ORDERS):
            order = torch.randperm(len(pictures), generator=random)
            total[order] += judge(batch[order]).flatten()
    return (total / ORDERS).numpy()


if __name__ == "__main__":
    main()
