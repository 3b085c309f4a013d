"""The command line: ``python -m gpenlib COMMAND ...``; each COMMAND has its own ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "compile": ("compile.build", "build an artefact from a YAML build file (the vendor's, too)"),
    "train": ("train.trainer", "train, or go on training, what a YAML file describes"),
    "average": ("train.average", "average the weights of several networks"),
    "score": ("cluster.score", "score npz outputs against a pack, or restore and score any number of faces"),
    "photos": ("cluster.photos", "restore or colour photographs of any number, on a Ray cluster, too"),
    "bench": ("infer.performance", "latency, throughput and memory of an artefact"),
    "notebooks": ("notebooks", "run the notebooks in order, with HTML pages"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), "--help"]
    if command not in COMMANDS:
        print("usage: python -m gpenlib COMMAND ...\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()))
        return 0 if command in ("-h", "--help") else 2
    sys.argv[0] = f"python -m gpenlib {command}"
    module = import_module(f"gpenlib.{COMMANDS[command][0]}")
    return int(module.main(rest[:-1]) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
