"""From the float graph and calibration images to int8 models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from gpenlib.compile.calibrate import Calibration, calibrate
from gpenlib.compile.calibration_cache import cache_key, load_calibration, save_calibration
from gpenlib.compile.calibration_data import CalibrationData
from gpenlib.compile.config import BackendConfig, QuantizeConfig
from gpenlib.compile.counts import count_quantised
from gpenlib.compile.halves import ConvolutionLayer, split_halves
from gpenlib.compile.layers import (
    QuantisationError,
    RoundedLayer,
    quantisable_layers,
    round_layers,
    select_layers,
)
from gpenlib.compile.qdq import write_qdq
from gpenlib.compile.qoperator import write_qoperator
from gpenlib.compile.sensitivity import Probe, choose_exclusions, rank_layers
from gpenlib.export import DeployGpen
from gpenlib.infer import RuntimeUnavailable
from gpenlib.infer.runtime import MODEL_FILE, serves
from gpenlib.run import sha256

QOPERATOR_FILE = "model_qoperator.onnx"


@dataclass(frozen=True)
class Int8Build:
    """Calibrated and rounded, ready to be written.

    Attributes
    ----------
    float_path : Path
        The float graph.
    layers : dict of RoundedLayer by module path
    calibration : Calibration
    report : dict
        For the manifest.
    """

    float_path: Path
    layers: dict[str, RoundedLayer]
    calibration: Calibration
    report: dict[str, Any]

    def write(self, form: str, target: Path) -> dict[str, int]:
        """Write ``"qdq"`` or ``"qoperator"``; return how many layers of each kind are quantised in the file.

        Raises
        ------
        QuantisationError
            If these are not all that were asked for.
        """
        model = split_halves(onnx.load(self.float_path))
        if form == "qdq":
            write_qdq(model, self.layers)
        else:
            write_qoperator(model, self.layers, self.calibration.output_ranges)
        counts = count_quantised(model)
        if sum(counts.values()) != len(self.layers):
            raise QuantisationError(
                f"{counts} convolutions are quantised in the written graph, expected {len(self.layers)}"
            )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target)
        return counts

    def write_all(self, forms: Mapping[str, str], folder: Path) -> dict[str, Any]:
        """Write a file per form; return what the manifest says of them and of every layer.

        Parameters
        ----------
        forms : mapping of backend to form
        folder : Path
            Gets ``model.onnx`` and, if there are two forms, the QOperator one as ``model_qoperator.onnx``.
        """
        names = {form: MODEL_FILE for form in forms.values()}
        if len(names) > 1:
            names["qoperator"] = QOPERATOR_FILE
        counts = {form: self.write(form, folder / name) for form, name in names.items()}
        return {
            "files": {backend: names[form] for backend, form in forms.items()},
            "layers": [layer.report.to_dict() for layer in self.layers.values()],
            "quantisation": {
                "forms": {name: form for form, name in names.items()},
                "quantised": next(iter(counts.values())),
                **self.report,
            },
        }


def int8_forms(options: BackendConfig, wanted: Sequence[str]) -> dict[str, str]:
    """Return the form of the int8 file for every backend that the artefact shall serve.

    ONNX Runtime on a CPU computes QOperator files in 8 bits and QDQ files in float32; OpenVINO and TensorRT
    read QDQ. A QDQ file serves ONNX Runtime too, if only slowly.

    Raises
    ------
    RuntimeUnavailable
        If ``quantize.format`` is qoperator and another backend is wanted.
    """
    asked = options.quantize.format
    if asked == "qoperator" and set(wanted) - {"onnxruntime"}:
        others = ", ".join(sorted(set(wanted) - {"onnxruntime"}))
        raise RuntimeUnavailable(f"quantize.format qoperator is for onnxruntime; {others} reads qdq")
    own = "qoperator" if options.device == "cpu" else "qdq"
    best = {"openvino": "qdq", "onnxruntime": own}
    forms = {backend: best[backend] if asked == "auto" else asked for backend in wanted}
    if "qdq" in forms.values():
        served = serves(options.dtype, wanted)
        forms |= {backend: "qdq" for backend in served if backend not in forms}
    return forms


def keep_form(folder: Path, manifest: Mapping[str, Any], also: Sequence[str]) -> dict[str, Any]:
    """Remove the form that ``auto`` did not choose, unless ``also`` asks for its backend.

    Returns
    -------
    dict
        What changes in the manifest.
    """
    backend, files = manifest["backend"], manifest["files"]
    forms = manifest["quantisation"]["forms"]
    if len(forms) < 2 or {files[name] for name in also} - {files[backend]}:
        return {}
    form = forms[files[backend]]
    if form == "qoperator":
        (folder / QOPERATOR_FILE).replace(folder / MODEL_FILE)
    else:
        (folder / QOPERATOR_FILE).unlink()
    kept = {name for name in files if form == "qdq" or files[name] == files[backend]}
    return {
        "files": {name: MODEL_FILE for name in files if name in kept},
        "quantisation": {**manifest["quantisation"], "forms": {MODEL_FILE: form}},
    }


def build_int8(
    deploy: DeployGpen,
    options: QuantizeConfig,
    float_path: Path,
    data: CalibrationData,
    cache_dir: Path | None = None,
) -> Int8Build:
    """Calibrate, choose layers, round.

    Parameters
    ----------
    deploy : DeployGpen
        The network of ``float_path``; ``exclude_layers: auto`` runs it.
    options : QuantizeConfig
    float_path : Path
    data : CalibrationData
    cache_dir : Path, optional
        Keeps what calibration found, for the next mode or form.

    Raises
    ------
    QuantisationError, CalibrationError, DataError
        If it cannot be made as configured.
    """
    model = split_halves(onnx.load(float_path))
    found = quantisable_layers(model)
    names = [layer.name for layer in found]
    by_hand = [] if options.exclude_automatically else options.exclude_layers
    chosen = select_layers(names, by_hand)  # fails before calibration if a name is wrong
    calibration, cached = calibrate_layers(model, sha256(float_path), found, data, cache_dir)
    thresholds = calibration.thresholds(options.calibrate_mode, options.percentile)
    means = calibration.input_means if options.bias_correction else None
    per_channel, power2 = options.quantize_per_channel, options.weight_scale == "power2"
    layers = round_layers(model, thresholds, chosen, per_channel, power2, means)
    report: dict[str, Any] = {
        "calibrate_mode": options.calibrate_mode,
        "calibration_images": calibration.images,
        "calibration_source": data.label,
        "calibration_digest": data.digest,
        "calibration_cached": cached,
    }
    if options.exclude_automatically:
        layers, report["automatic"] = exclude_automatically(deploy, layers, data, options)
    used = {tensor for layer in layers.values() for tensor in layer.report.tensors if thresholds[tensor] > 0}
    histograms = {name: seen for name, seen in calibration.histograms.items() if name in used}
    report["excluded"] = [name for name in names if name not in layers]
    report["histograms"] = {name: seen.summary(options.percentile) for name, seen in histograms.items()}
    report["clipped_share"] = {
        name: seen.clipped_share(thresholds[name]) for name, seen in histograms.items()
    }
    return Int8Build(float_path, layers, calibration, report)


def calibrate_layers(
    model: onnx.ModelProto,
    digest: str,
    layers: Sequence[ConvolutionLayer],
    data: CalibrationData,
    cache_dir: Path | None,
) -> tuple[Calibration, bool]:
    """Calibrate all quantisable layers, or take what an earlier run found; return also which it was.

    Parameters
    ----------
    model : ModelProto
        The float graph in halves.
    digest : str
        Of the float graph's file, for the cache.
    layers : sequence of ConvolutionLayer
    data : CalibrationData
    cache_dir : Path, optional
    """
    inputs = list(dict.fromkeys(tensor for layer in layers for tensor in layer.inputs))
    outputs = [layer.output for layer in layers]
    path = None
    if cache_dir is not None:
        settings = {**data.preprocessing(), "inputs": inputs, "outputs": outputs}
        path = cache_dir / f"{cache_key(digest, data.digest, settings)}.npz"
        if (cached := load_calibration(path)) is not None:
            return cached, True
    found = calibrate(model, inputs, outputs, data.calibration())
    found.check_alive(layer.inputs for layer in layers)
    if path is not None:
        save_calibration(found, path)
    return found, False


def exclude_automatically(
    deploy: DeployGpen, layers: dict[str, RoundedLayer], data: CalibrationData, options: QuantizeConfig
) -> tuple[dict[str, RoundedLayer], dict[str, Any]]:
    """Drop the most sensitive layers until the loss on calibration images fits ``max_drop_db``.

    Returns
    -------
    (dict of RoundedLayer, dict)
        What stays quantised, and the report: ``max_drop_db``, ``ranking``, ``steps``, ``images``.
    """
    probe = open_probe(deploy, data, options.sensitivity_images)
    ranking = rank_layers(probe, layers)
    names = [row.name for row in ranking]
    excluded, steps = choose_exclusions(
        lambda kept: probe.drop({name: layers[name] for name in kept}), names, options.max_drop_db
    )
    report = {
        "max_drop_db": options.max_drop_db,
        "images": len(probe.inputs),
        "ranking": [row.to_dict() for row in ranking],
        "steps": steps,
        "excluded": excluded,
    }
    return {name: layer for name, layer in layers.items() if name not in excluded}, report


def measure_sensitivity(
    deploy: DeployGpen, built: Int8Build, data: CalibrationData, images: int, healed: int
) -> dict[str, Any]:
    """Rank all quantised layers, and measure what leaving the worst of them in float brings.

    Parameters
    ----------
    deploy : DeployGpen
    built : Int8Build
        Without exclusions.
    data : CalibrationData
    images : int
        Calibration images to measure on.
    healed : int
        How many layers to leave in float at most.

    Returns
    -------
    dict
        ``images``; ``ranking`` (rows of LayerSensitivity); ``steps``: ``excluded`` (how many of the ranking
        stay in float), ``psnr`` (against the float network, dB) and ``drop_db`` (against the truth).
    """
    probe = open_probe(deploy, data, images)
    ranking = rank_layers(probe, built.layers)
    steps = []
    for count in range(min(healed, len(ranking) - 1) + 1):
        kept = {row.name: built.layers[row.name] for row in ranking[count:]}
        steps.append({"excluded": count, **probe.measure(kept)})
    return {"images": len(probe.inputs), "ranking": [row.to_dict() for row in ranking], "steps": steps}


def open_probe(deploy: DeployGpen, data: CalibrationData, images: int) -> Probe:
    """Return a probe over the first calibration images and their truths."""
    pairs = list(data.pairs(images, deploy.config.out_size))
    inputs = torch.cat([torch.from_numpy(image) for image, _ in pairs])
    return Probe(deploy, inputs, [truth for _, truth in pairs])
