"""Command line: ``python -m gpenlib.train params/train/demo_color.yaml [key=value ...]``.

Several devices: ``torchrun --nproc_per_node 4 -m gpenlib.train FILE devices=4``.
"""

from __future__ import annotations

import argparse

from gpenlib.settings import TrainConfig, parse_overrides


def main() -> None:
    """Train (or resume) and write the averaged weights as fp16 safetensors into the run folder."""
    from gpenlib.train.trainer import Trainer

    parser = argparse.ArgumentParser(prog="python -m gpenlib.train", description=main.__doc__)
    parser.add_argument("config", help="YAML file with the keys of TrainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    config = TrainConfig.from_yaml(arguments.config, parse_overrides(arguments.overrides))
    trainer = Trainer(config)
    trainer.run()
    if trainer.fabric.is_global_zero:
        print(f"weights: {trainer.save_weights()}")


if __name__ == "__main__":
    main()
