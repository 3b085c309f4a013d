"""Show that calibration memory does not grow with the number of images.

``python benchmarks/calibration_memory.py [--weights demo-color] [--images 8 200]``

Compiles int8 in a fresh process per number of images and prints each process's peak memory and time; the rows
go to ``outputs/benchmarks/calibration_memory.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from gpenlib.files import package_versions, repository_root, write_json

CHILD = """
import sys, tempfile
from gpenlib.compile import compile_model
from gpenlib.infer.performance import memory_mib
from gpenlib import load_weights
weights, images = sys.argv[1], int(sys.argv[2])
build = {"backend": {"dtype": "int8", "type": "openvino"}, "dataset": {"sampler": {"get_data_num": images}}}
with tempfile.TemporaryDirectory() as folder:
    compile_model(load_weights(weights).model, build, folder)
print(memory_mib("VmHWM"))
"""


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="demo-color", help="name or checkpoint (default: demo-color)")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 200], help="default: 8 200")
    options = parser.parse_args()
    rows = []
    for images in options.images:
        started = time.perf_counter()
        command = [sys.executable, "-c", CHILD, options.weights, str(images)]
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=repository_root(),
        )
        seconds = time.perf_counter() - started
        rows.append({"images": images, "peak_mib": float(done.stdout), "seconds": seconds})
        print(f"{images:5d} images: peak {rows[-1]['peak_mib']:.0f} MiB, {seconds:.0f} s", flush=True)
    target = repository_root() / "outputs" / "benchmarks" / "calibration_memory.json"
    write_json(target, {"weights": options.weights, "rows": rows, "packages": package_versions()})


if __name__ == "__main__":
    main()
