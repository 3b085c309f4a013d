"""``python -m gpenlib.compile BUILD.yaml [key=value ...]``: our form of the vendor's ``vamc compile``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpenlib.architecture.checkpoints import load_weights, trained_task
from gpenlib.compile.build import compile_model
from gpenlib.files import read_json, resolve_path
from gpenlib.infer.runtime import MANIFEST_FILE
from gpenlib.settings import BuildConfig, SettingsError, parse_overrides


def compile_file(config: BuildConfig) -> Path:
    """Build what a configuration describes: ``frontend.checkpoint`` -> ``workspace.path``/``name``.

    Where ``dataset.task`` is not set, calibration degrades pictures as in the task that the weights note.

    Returns
    -------
    Path
        The artefact folder. What calibration found is kept in ``workspace.path``/``.calibration``.

    Raises
    ------
    SettingsError
        If ``frontend.checkpoint`` is not set, or is no ONNX file though ``frontend.type`` says so (or the
        other way round).
    """
    checkpoint = config.frontend.checkpoint
    if checkpoint is None:
        raise SettingsError("frontend.checkpoint is not set; give the name of weights or a file")
    if (config.frontend.type == "onnx") != (Path(checkpoint).suffix == ".onnx"):
        raise SettingsError(
            f"frontend.type={config.frontend.type!r} does not go with frontend.checkpoint={checkpoint!r}; "
            "onnx is for .onnx files, pytorch for checkpoints and names of weights"
        )
    workspace = resolve_path(config.workspace.path)
    task = trained_task(checkpoint)
    if "task" not in config.dataset.model_fields_set and task != config.dataset.task:
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"task": task})})
    model = load_weights(checkpoint).model
    return compile_model(model, config, workspace / config.name, calibration_cache=workspace / ".calibration")


def main(arguments: list[str] | None = None) -> int:
    """Build an artefact and print where it lies and how close it is to the float network."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib.compile", description=main.__doc__)
    parser.add_argument("build", help="YAML build configuration")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that replace the file's, such as frontend.checkpoint=demo-color dataset.path=faces",
    )
    options = parser.parse_args(arguments)
    try:
        config = BuildConfig.from_yaml(options.build, parse_overrides(options.overrides))
        folder = compile_file(config)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    manifest = read_json(folder / MANIFEST_FILE)
    print(f"{folder}: {manifest['dtype']} for {manifest['backend']}")
    print("not used by this backend:", ", ".join(manifest["unused_keys"]) or "none of the keys that are set")
    if "parity" in manifest:
        mean = manifest["parity"]["mean"]["psnr"]
        print("against the float network:", "equal" if mean is None else f"{mean:.1f} dB (held-out faces)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
