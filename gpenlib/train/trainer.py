"""The training loop: devices and processes through Lightning Fabric, exact resume, logs, samples."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from gpenlib.architecture import CheckpointError, Generator, Gpen, save_checkpoint
from gpenlib.architecture.checkpoints import TORCH_SUFFIXES, discriminator_file, weights_file
from gpenlib.data.faces import DataError
from gpenlib.files import progress, resolve_path, write_atomically
from gpenlib.images import FloatArray, Image, from_tensor, read_image, write_image
from gpenlib.settings import SettingsError, TrainConfig, parse_overrides
from gpenlib.train.batches import TrainingFaces, open_training_faces
from gpenlib.train.objectives import Objective, PriorObjective, RestorationObjective, TrainingError

CHECKPOINT, LOG, SAMPLES = "checkpoint.pt", "log.jsonl", "samples"
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}
LogRow = dict[str, float]


class Trainer:
    """Run a stage of training until ``config.steps``, or part of the way.

    Everything random depends on (seed, step, process), and a checkpoint holds all else: a killed run that goes
    on from it ends with the same weights (on a CPU to the bit).
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run_dir = resolve_path(config.run_dir)
        self.checkpoint = self.run_dir / CHECKPOINT
        self.board = TensorBoardLogger(self.run_dir, name="tensorboard", version="")
        self.fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=PRECISIONS[config.precision],
            loggers=self.board,
        )
        self.fabric.launch()
        stage = PriorObjective if config.stage == "prior" else RestorationObjective
        self.objective: Objective = stage(config, self.fabric)
        self.step = 0

    def run(self) -> Gpen | Generator:
        """Train until ``config.steps``, resuming if a checkpoint is there; return the averaged network."""
        return self.run_until(self.config.steps)

    def run_until(self, stop: int) -> Gpen | Generator:
        """Train until step ``stop`` of the run of ``config.steps``, which fixes the learning rates."""
        config, fabric = self.config, self.fabric
        if self.step == 0:
            self._begin()
        faces = TrainingFaces(open_training_faces(config), config)
        batches = faces.loader(self.step, stop, fabric.global_rank, fabric.world_size)
        bar = progress(batches, initial=self.step, total=config.steps, desc=config.stage)
        started = time.perf_counter()
        for degraded, truth in bar:
            losses = self._train_step(degraded, truth)
            rate = config.batch_size / (time.perf_counter() - started)
            shown = {name: f"{value:.3g}" for name, value in losses.items()}
            bar.set_postfix(refresh=False, images_per_s=f"{rate:.1f}", **shown)
            self._log(losses | {"images_per_s": rate})
            if self.step % config.evaluate_every == 0 or self.step == stop:
                self._evaluate(faces)
            if self.step % config.checkpoint_every == 0 or self.step == stop:
                self._save()
            started = time.perf_counter()
        return self.objective.average

    def _begin(self) -> None:
        """Take up the checkpoint, if there is one, else what an original checkpoint as ``init`` holds."""
        log = self.run_dir / LOG
        if self.checkpoint.is_file():
            self.step = load_state(self.checkpoint, self.objective)
        elif self.config.init:
            taken = take_original(weights_file(self.config.init), self.objective)
            if taken:
                self.fabric.print(f"{self.config.init}: went on from its {', '.join(taken)}")
        if self.fabric.is_global_zero and log.is_file():
            if self.step == 0:
                log.unlink()  # of a run that was stopped before its first checkpoint
            elif not log.read_bytes().endswith(b"\n"):
                with log.open("a", encoding="utf-8") as file:
                    file.write("\n")  # the line that was cut off must not spoil the next one

    def _train_step(self, degraded: Tensor, truth: Tensor) -> dict[str, float]:
        """Do one step with random numbers of its own; return the loss terms."""
        parts = (self.config.seed, self.step, self.fabric.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.objective.set_learning_rates(self.step)
        pair = (
            self.fabric.to_device(t).contiguous(memory_format=torch.channels_last) for t in (degraded, truth)
        )
        losses = {name: value.item() for name, value in self.objective.train_step(self.step, *pair).items()}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if wrong:
            last = self.checkpoint if self.checkpoint.is_file() else "none yet"
            raise TrainingError(f"loss {wrong} at step {self.step}; last good checkpoint: {last}")
        self.objective.update_average(self.step)
        self.step += 1
        return losses

    def _evaluate(self, faces: TrainingFaces) -> None:
        """Score and show the averaged network on held-out faces (one process; the others wait)."""
        if self.fabric.is_global_zero:
            self._log(self.objective.evaluate(faces))
            rows = [cv2.hconcat(list(from_tensor(row))) for row in self.objective.samples(faces).numpy()]
            picture = np.asarray(cv2.vconcat(rows), dtype=np.uint8)
            write_image(self.run_dir / SAMPLES / f"{self.step:07d}.png", picture)
            self.board.experiment.add_image("samples", picture, self.step, dataformats="HWC")
        self.fabric.barrier()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            save_state(self.checkpoint, self.objective, self.step)
        self.fabric.barrier()

    def _log(self, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to ``log.jsonl``, which notebook 06 reads."""
        self.fabric.log_dict(values, step=self.step)
        if self.fabric.is_global_zero:
            with (self.run_dir / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step} | values) + "\n")

    def save_weights(self) -> Path:
        """Write the averaged network (and its discriminator beside it) as fp16, with a note of its task."""
        notes = {"stage": "prior"} if self.config.stage == "prior" else {"task": self.config.task}
        path = self.run_dir / "weights.safetensors"
        if self.objective.discriminator is not None:
            save_checkpoint(self.objective.discriminator, discriminator_file(path), torch.float16)
        return save_checkpoint(self.objective.average, path, torch.float16, notes)


# Checkpoints in the original project's format, ``g``, ``d``, ``g_ema``, ``g_optim``, ``d_optim``, with ``step``,
# ``config`` and ``extra`` beside them. The original keeps all parameters of an optimiser in one group, in the
# network's order. Ours may have two groups with different learning rates; they are written as one and taken apart
# again, so that either project reads the other's files.

OPTIMIZED = {"g_optim": "g", "d_optim": "d"}
OWN_ENTRIES = ("step", "config", "extra")
# These may change on resume without changing what is learned from here on.
RESUMABLE_CHANGES = {
    *("accelerator", "devices", "compile", "workers", "checkpoint_every", "evaluate_every"),
    *("run_dir", "data_dir", "init", "discriminator_init"),
}


def save_state(path: Path, objective: Objective, step: int) -> Path:
    """Write everything a resumed run needs, atomically; weights that are not finite replace no checkpoint."""
    networks = networks_of(objective)
    state: dict[str, Any] = {name: network.state_dict() for name, network in networks.items()}
    broken = [
        f"{name}.{key}"
        for name in networks
        for key, tensor in state[name].items()
        if not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise TrainingError(
            f"weights are not finite after step {step} ({', '.join(broken[:3])}); "
            f"last good checkpoint: {path if path.is_file() else 'none yet'}"
        )
    for name, optimizer in objective.optimizers.items():
        state[name] = one_group(optimizer, networks[OPTIMIZED[name]])
    state |= {"step": step, "config": objective.config.model_dump(mode="json")}
    state["extra"] = objective.extra_state()
    with write_atomically(path) as temporary:
        torch.save(state, temporary)
    return path


def load_state(path: Path, objective: Objective) -> int:
    """Take a run up where ``path`` left it; return its step."""
    state = read_state(path)
    networks = networks_of(objective)
    missing = [name for name in (*networks, *objective.optimizers, *OWN_ENTRIES) if name not in state]
    if missing:
        raise TrainingError(
            f"{path}: no checkpoint of this run, it lacks {', '.join(missing)}; to start from its weights "
            "move it elsewhere and give it as init"
        )
    now = objective.config.model_dump(mode="json")
    may_change = set(RESUMABLE_CHANGES)
    if objective.config.learning_rates.decay == "constant":
        may_change.add("steps")  # nothing but the decay depends on where the run ends
    then = type(objective.config).parse(state["config"], str(path)).model_dump(mode="json")  # newer keys too
    changed = [k for k in now if k not in may_change and then[k] != now[k]]
    if changed:
        raise TrainingError(
            f"{path} was made with other settings ({', '.join(changed)}); choose another run_dir, "
            "or start from its weights with init"
        )
    if state["step"] > objective.config.steps:
        raise TrainingError(
            f"{path} is at step {state['step']}, beyond steps={objective.config.steps}; ask for more steps"
        )
    try:
        for name, network in networks.items():
            network.load_state_dict(state[name])
    except RuntimeError as error:  # such as a discriminator that init made wider
        raise TrainingError(f"{path}: {name} does not fit; was init another one? ({error})") from error
    for name, optimizer in objective.optimizers.items():
        optimizer.load_state_dict(regrouped(state[name], optimizer, networks[OPTIMIZED[name]]))
    objective.load_extra_state(state["extra"])
    return int(state["step"])


def take_original(path: Path, objective: Objective) -> list[str]:
    """Take networks and moments of the original's checkpoint where their shapes fit; return their names.

    Other files of weights are passed over: ``init`` has started the networks from them.
    """
    state = read_state(path) if path.is_file() and path.suffix in TORCH_SUFFIXES else {}
    if "g_optim" not in state or "step" in state:
        return []
    entries = {"g", "g_ema", "g_optim"} if objective.config.stage != "embed" else set()  # has a new encoder
    entries |= {"d", "d_optim"} if not objective.config.discriminator_init else set()
    taken = []
    networks = networks_of(objective)
    for name, network in networks.items():
        weights = {k.removeprefix("module."): tensor for k, tensor in state.get(name, {}).items()}
        shapes = {k: tensor.shape for k, tensor in network.state_dict().items()}
        if name in entries and {k: tensor.shape for k, tensor in weights.items()} == shapes:
            network.load_state_dict(weights)
            taken.append(name)
    for name, optimizer in objective.optimizers.items():
        network, moments = networks[OPTIMIZED[name]], state.get(name, {}).get("state", {})
        shapes = {place: p.shape for place, p in enumerate(network.parameters())}
        if OPTIMIZED[name] in taken and {i: m["exp_avg"].shape for i, m in moments.items()} == shapes:
            optimizer.load_state_dict(regrouped(state[name], optimizer, network))
            taken.append(name)
    return taken


def read_state(path: Path) -> Mapping[str, Any]:
    """Read the entries of a training checkpoint onto the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{path}: damaged or cut off ({reason}); put back a copy, or remove it to begin anew"
        ) from error
    if not isinstance(state, Mapping):
        raise TrainingError(f"{path}: holds a {type(state).__name__}, not the entries of a checkpoint")
    return state


def networks_of(objective: Objective) -> dict[str, nn.Module]:
    """Return the networks under the names that the original gives them."""
    networks: dict[str, nn.Module] = {"g": objective.generator, "g_ema": objective.average}
    return networks | ({"d": objective.discriminator} if objective.discriminator is not None else {})


def one_group(optimizer: Optimizer, network: nn.Module) -> dict[str, Any]:
    """Return the optimiser's state dict with all parameters in the first group, in the network's order."""
    state, places = optimizer.state_dict(), _places(optimizer, network)
    group = state["param_groups"][0] | {"params": list(range(len(places)))}
    return {"state": {places[i]: s for i, s in state["state"].items()}, "param_groups": [group]}


def regrouped(state: Mapping[str, Any], optimizer: Optimizer, network: nn.Module) -> dict[str, Any]:
    """Return a one-group state dict with the groups (and rates) of ``optimizer``."""
    index = {place: i for i, place in enumerate(_places(optimizer, network))}
    groups = optimizer.state_dict()["param_groups"]
    return {"state": {index[place]: s for place, s in state["state"].items()}, "param_groups": groups}


def _places(optimizer: Optimizer, network: nn.Module) -> list[int]:
    """Return where each parameter of the optimiser stands among those of the network."""
    order = {parameter: place for place, parameter in enumerate(network.parameters())}
    return [order[parameter] for group in optimizer.param_groups for parameter in group["params"]]


# What a run wrote about itself: the rows of ``log.jsonl`` and the pictures in ``samples``.


def read_log(run_dir: Path) -> list[LogRow]:
    """Return one row per step, in order: ``step``, the loss terms, and what was measured at that step.

    A run that was stopped between two checkpoints does some steps again; the last ones count. Lines that were
    being written when a process was killed are passed over.
    """
    path = run_dir / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no log; train first, with run_dir={run_dir}")
    rows: dict[int, LogRow] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows.setdefault(row["step"], {}).update(row)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return [rows[step] for step in sorted(rows)]


def series(rows: Sequence[LogRow], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which ``name`` was logged, and its values."""
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]


def smooth(values: Sequence[float], window: int | None = None) -> FloatArray:
    """Return the centred moving mean over ``window`` values (a tenth of all, at least 3), of the same length."""
    width = min(len(values), window or max(3, len(values) // 10))
    means = pd.Series(values).rolling(width, min_periods=1, center=True).mean()
    return means.to_numpy(np.float32)


def beginning_and_end(rows: Sequence[LogRow], name: str) -> tuple[float, float]:
    """Return the means of ``name`` over the first and the last fifth of the steps that logged it."""
    _, values = series(rows, name)
    if not values:
        known = sorted({key for row in rows for key in row} - {"step"})
        raise ValueError(f"{name!r} was never logged; logged were {', '.join(known) or 'no terms'}")
    count = max(1, len(values) // 5)
    return float(np.mean(values[:count])), float(np.mean(values[-count:]))


def read_samples(run_dir: Path, count: int) -> dict[int, Image]:
    """Return up to ``count`` of the sample pictures by their step: first, last, and evenly between."""
    paths = sorted((run_dir / SAMPLES).glob("[0-9]*.png"))
    if not paths:
        raise FileNotFoundError(f"{run_dir / SAMPLES}: no sample pictures; train first")
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return {int(paths[place].stem): read_image(paths[place]) for place in places}


def check_log(rows: Sequence[LogRow], steps: int, falls: str | None = None) -> None:
    """Refuse a log that lacks one of ``steps``, holds a value that is not finite, or where ``falls`` did not."""
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise ValueError(f"the log has {len(rows)} steps, not each of 1 to {steps}")
    wrong = [(row["step"], name) for row in rows for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        step, name = wrong[0]
        raise ValueError(f"{name} is not finite at step {step} ({len(wrong)} such values in all)")
    if falls:
        first, last = beginning_and_end(rows, falls)
        if last >= first:
            raise ValueError(f"nothing was learned: {falls} was {first:.4g} and is {last:.4g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train (or resume) and write the averaged weights as fp16 safetensors into the run folder."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib.train", description=main.__doc__)
    parser.add_argument("config", help="YAML file with the keys of TrainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    options = parser.parse_args(arguments)
    try:
        trainer = Trainer(TrainConfig.from_yaml(options.config, parse_overrides(options.overrides)))
        trainer.run()
        if trainer.fabric.is_global_zero:
            print(f"weights: {trainer.save_weights()}")
    except (SettingsError, DataError, CheckpointError, TrainingError) as error:
        print(f"error: {error}")
        return 1
    return 0
