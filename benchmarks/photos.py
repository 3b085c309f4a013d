"""Photographs: time and memory for one of 12 megapixels; 200 frames beside their slowest step.

``python benchmarks/photos.py ARTEFACT`` takes an artefact folder of a 128-px network, such as
``outputs/demo/03_compile/int8/artefact``. Frames are 640 x 640, with one face, and noise that differs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from gpenlib import open_runtime
from gpenlib.data.faces import whole_photographs
from gpenlib.images import open_picture, to_grey, write_image, write_picture
from gpenlib.photos import CenterFace, enhance_photo
from gpenlib.photos.folder import FrameFinder, enhance_files

FRAMES = 200
REPEATS = 5


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    runtime = open_runtime(options.artefact)
    detector, one_thread = CenterFace(), CenterFace(threads=1)  # stage 07 takes one thread for many files
    side = runtime.in_size
    runtime(np.zeros((1, 3, side, side), np.float32))  # the first call prepares it
    networks = {"network": {runtime.dtype: runtime}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = cv2.resize(whole_photographs()["astronaut"], (3464, 3464), interpolation=cv2.INTER_CUBIC)
        photo = write_image(folder / "large.jpg", to_grey(np.asarray(large, np.uint8)))
        before, times = peak(), []
        for reach in [1.0] * (REPEATS + 1) + [2.4] * (REPEATS + 1):
            started = time.perf_counter()
            list(enhance_files([photo], networks, folder / "out", detector=detector, reach=reach))
            times.append(time.perf_counter() - started)
        for reach, spent in ((1.0, times[1 : REPEATS + 1]), (2.4, times[REPEATS + 2 :])):
            print(f"12 MP, one face, reach {reach:g}: {statistics.median(spent):.2f} s (median of {REPEATS})")
        print(f"memory above the runtime and the detector: {peak() - before:.0f} MiB")
        networks = {"network": {runtime.dtype: open_runtime(options.artefact, threads=1)}}
        frames_keep_pace(folder, networks, one_thread, options.frames)


def frames_keep_pace(folder: Path, networks: dict, detector: CenterFace, count: int) -> None:
    """Print the rate of frames beside that of the slowest step alone, and what memory grew by."""
    picture = cv2.resize(whole_photographs()["astronaut"], (640, 640), interpolation=cv2.INTER_CUBIC)
    files = []
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 3, picture.shape)
        frame = np.clip(picture + noise, 0, 255).astype(np.uint8)
        files.append(write_image(folder / f"frame {number}.jpg", frame))
    finder, (runtime,) = FrameFinder(detector), next(iter(networks.values())).values()
    alone: dict[str, list[float]] = {name: [] for name in ("read", "find", "enhance", "write")}
    for file in files[: count // 2]:  # one step after the other: nothing overlaps
        marks = [time.perf_counter()]
        picture = open_picture(file)
        marks.append(time.perf_counter())
        faces = finder(picture.pixels)
        marks.append(time.perf_counter())
        made = enhance_photo(picture.pixels, runtime, faces=faces)
        marks.append(time.perf_counter())
        write_picture(folder / "alone", picture, made.image)
        marks.append(time.perf_counter())
        for step, spent in zip(alone, np.diff(marks), strict=True):
            alone[step].append(float(spent))
    # The mean, not the median: every twelfth frame is looked at more closely
    slowest, spent = max(((s, statistics.fmean(t)) for s, t in alone.items()), key=lambda item: item[1])
    grown, started = [], time.perf_counter()
    for _ in enhance_files(files, networks, folder / "film", detector=detector, frames=True):
        grown.append(peak())
    rate = count / (time.perf_counter() - started)
    steps = ", ".join(f"{step} {1000 * statistics.fmean(times):.0f}" for step, times in alone.items())
    print(f"steps alone, ms per frame: {steps}")
    print(f"{count} frames: {rate:.1f} a second, {rate * spent:.0%} of the slowest step alone ({slowest})")
    print(f"memory from frame {count // 4} to {count}: {grown[-1] - grown[count // 4]:+.0f} MiB")


def peak() -> float:
    """Return the largest memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
