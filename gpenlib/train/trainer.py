"""What a training run wrote about itself: the rows of ``log.jsonl`` and the pictures in ``samples``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from gpenlib.architecture import Generator, Gpen, save_checkpoint
from gpenlib.architecture.checkpoints import discriminator_file
from gpenlib.files import progress, resolve_path, write_atomically
from gpenlib.images import FloatArray, Image, from_tensor, read_image, write_image
from gpenlib.settings import TrainConfig
from gpenlib.train.batches import TrainingFaces, open_training_faces
from gpenlib.train.objectives import Objective, PriorObjective, RestorationObjective

# ----------------------------------------------------------------------
# What a training run wrote about itself: the rows of ``log.jsonl`` and the pictures in ``samples``.

LOG = "log.jsonl"
SAMPLES = "samples"
ENDS = 5  # a fifth of a run is its beginning, another its end
LogRow = dict[str, float]


def read_log(run_dir: Path) -> list[LogRow]:
    """Return one row per step, in order: ``step``, the loss terms, and what was measured at that step.

    A run that was stopped between two checkpoints does some steps again; the last ones count. The line that
    was being written when a process was killed is passed over.

    Raises
    ------
    FileNotFoundError
        If nothing was trained in ``run_dir``.
    """
    path = run_dir / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no log; train first, with run_dir={run_dir}")
    rows: dict[int, LogRow] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def series(rows: Sequence[LogRow], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which ``name`` was logged, and its values."""
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]


def smooth(values: Sequence[float], window: int | None = None) -> FloatArray:
    """Return the centred moving mean, of the same length; at the ends over the values that are there.

    Parameters
    ----------
    values : sequence of float
    window : int, optional
        How many values a mean takes. Default: a tenth of them, and not less than 3.
    """
    width = min(len(values), window or max(3, len(values) // 10))
    ones = np.ones(max(1, width))
    totals = np.convolve(values, ones, mode="same")
    return np.asarray(totals / np.convolve(np.ones(len(values)), ones, mode="same"), dtype=np.float32)


def beginning_and_end(rows: Sequence[LogRow], name: str) -> tuple[float, float]:
    """Return the means of ``name`` over the first and the last fifth of the steps that logged it.

    Raises
    ------
    ValueError
        If it was never logged.
    """
    _, values = series(rows, name)
    if not values:
        known = sorted({key for row in rows for key in row} - {"step"})
        raise ValueError(f"{name!r} was never logged; logged were {', '.join(known) or 'no terms'}")
    count = max(1, len(values) // ENDS)
    return float(np.mean(values[:count])), float(np.mean(values[-count:]))


def read_samples(run_dir: Path, count: int) -> dict[int, Image]:
    """Return up to ``count`` of the sample pictures by their step: first, last, and evenly between.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    paths = sorted((run_dir / SAMPLES).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{run_dir / SAMPLES}: no sample pictures; train first")
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return {int(paths[place].stem): read_image(paths[place]) for place in places}


def check_log(rows: Sequence[LogRow], steps: int, falls: str | None = None) -> None:
    """Check that a log is that of a sound training.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`read_log` gives them.
    steps : int
        How many steps were asked for.
    falls : str, optional
        A loss whose mean over the last fifth must be below that over the first.

    Raises
    ------
    ValueError
        If a step is missing, a value is not finite, or ``falls`` did not fall.
    """
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


# ----------------------------------------------------------------------
# Training checkpoints in the original project's format: ``g``, ``d``, ``g_ema``, ``g_optim``, ``d_optim``.
#
# The original keeps all parameters of an optimiser in one group, in the network's order. Ours may have two
# groups with different learning rates; they are written as one and taken apart again, so that either project
# reads the other's files.

# These may change on resume without changing what is learned from here on.
RESUMABLE_CHANGES = {
    *("accelerator", "devices", "compile", "workers", "checkpoint_every", "evaluate_every"),
    *("run_dir", "data_dir", "init", "discriminator_init"),
}

OPTIMIZED = {"g_optim": "g", "d_optim": "d"}


class TrainingError(RuntimeError):
    """Training that cannot go on; the message names the last good checkpoint."""


def save_state(path: Path, objective: Objective, step: int) -> Path:
    """Write everything a resumed run needs, atomically.

    Raises
    ------
    TrainingError
        If a weight is not finite; the checkpoint before stays as it was.
    """
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
    state |= {
        name: one_group(optimizer, networks[OPTIMIZED[name]])
        for name, optimizer in objective.optimizers.items()
    }
    state |= {"step": step, "config": objective.config.model_dump(mode="json")}
    state["extra"] = objective.extra_state()
    with write_atomically(path) as temporary:
        torch.save(state, temporary)
    return path


def load_state(path: Path, objective: Objective) -> int:
    """Take a run up where ``path`` left it; return its step.

    Raises
    ------
    TrainingError
        If the checkpoint was made with settings that decide what is learned and now differ, or is further.
    """
    state = torch.load(path, map_location=objective.fabric.device, weights_only=True)
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
    networks = networks_of(objective)
    for name, network in networks.items():
        network.load_state_dict(state[name])
    for name, optimizer in objective.optimizers.items():
        optimizer.load_state_dict(regrouped(state[name], optimizer, networks[OPTIMIZED[name]]))
    objective.load_extra_state(state["extra"])
    return int(state["step"])


def networks_of(objective: Objective) -> dict[str, nn.Module]:
    """Return the networks under the names that the original gives them."""
    networks: dict[str, nn.Module] = {"g": objective.generator, "g_ema": objective.average}
    if objective.discriminator is not None:
        networks["d"] = objective.discriminator
    return networks


def one_group(optimizer: Optimizer, network: nn.Module) -> dict[str, Any]:
    """Return the optimiser's state dict with all parameters in the first group, in the network's order."""
    state, places = optimizer.state_dict(), _places(optimizer, network)
    group = state["param_groups"][0] | {"params": list(range(len(places)))}
    return {"state": {places[i]: s for i, s in state["state"].items()}, "param_groups": [group]}


def regrouped(state: dict[str, Any], optimizer: Optimizer, network: nn.Module) -> dict[str, Any]:
    """Return a one-group state dict with the groups (and rates) of ``optimizer``."""
    index = {place: i for i, place in enumerate(_places(optimizer, network))}
    groups = optimizer.state_dict()["param_groups"]
    return {"state": {index[place]: s for place, s in state["state"].items()}, "param_groups": groups}


def _places(optimizer: Optimizer, network: nn.Module) -> list[int]:
    """Return where each parameter of the optimiser stands among those of the network."""
    order = {parameter: place for place, parameter in enumerate(network.parameters())}
    return [order[parameter] for group in optimizer.param_groups for parameter in group["params"]]


# ----------------------------------------------------------------------
# The training loop: devices and processes through Lightning Fabric, exact resume, logs, samples.

CHECKPOINT = "checkpoint.pt"
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_objective(config: TrainConfig, fabric: Fabric) -> Objective:
    """Return the networks and the training step of a stage."""
    return PriorObjective(config, fabric) if config.stage == "prior" else RestorationObjective(config, fabric)


class Trainer:
    """Run a stage of training until ``config.steps``, or part of the way.

    Everything random depends on (seed, step, process): a killed run that goes on from its checkpoint ends
    with the same weights (on a CPU to the bit).

    Parameters
    ----------
    config : TrainConfig

    Attributes
    ----------
    step : int
        Steps done.
    objective : Objective
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run_dir = resolve_path(config.run_dir)
        self.board = TensorBoardLogger(self.run_dir, name="tensorboard", version="")
        self.fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=PRECISIONS[config.precision],
            loggers=self.board,
        )
        self.fabric.launch()
        self.objective = make_objective(config, self.fabric)
        self.step = 0

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.run_dir / CHECKPOINT

    def run(self) -> Gpen | Generator:
        """Train until ``config.steps``, resuming if a checkpoint is there; return the averaged network."""
        return self.run_until(self.config.steps)

    def run_until(self, stop: int) -> Gpen | Generator:
        """Train until step ``stop`` of the run of ``config.steps``, which fixes the learning rates.

        Raises
        ------
        TrainingError
            If a loss or weight is not finite, or a checkpoint of another configuration is in the way.
        """
        config, fabric = self.config, self.fabric
        if self.step == 0 and self.checkpoint.is_file():
            self.step = load_state(self.checkpoint, self.objective)
        faces = TrainingFaces(open_training_faces(config), config)
        batches = faces.loader(self.step, stop, fabric.global_rank, fabric.world_size)
        bar = progress(batches, initial=self.step, total=config.steps, desc=config.stage)
        started = time.perf_counter()
        for given, truth in bar:
            losses = self._train_step(given, truth)
            seconds = time.perf_counter() - started
            rate = config.batch_size / seconds
            bar.set_postfix(
                refresh=False, images_per_s=f"{rate:.1f}", **{k: f"{v:.3g}" for k, v in losses.items()}
            )
            self._log(losses | {"images_per_s": rate})
            if self.step % config.evaluate_every == 0 or self.step == stop:
                self._evaluate(faces)
            if self.step % config.checkpoint_every == 0 or self.step == stop:
                self._save()
            started = time.perf_counter()
        return self.objective.average

    def _train_step(self, given: Tensor, truth: Tensor) -> dict[str, float]:
        """Do one step with random numbers of its own; return the loss terms."""
        torch.manual_seed(_seed(self.config.seed, self.step, self.fabric.global_rank))
        self.objective.set_learning_rates(self.step)
        pair = (
            self.fabric.to_device(t).contiguous(memory_format=torch.channels_last) for t in (given, truth)
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
            picture = grid(self.objective.samples(faces).numpy())
            write_image(self.run_dir / SAMPLES / f"{self.step:07d}.png", picture)
            self.board.experiment.add_image("samples", picture, self.step, dataformats="HWC")
        self.fabric.barrier()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            save_state(self.checkpoint, self.objective, self.step)
        self.fabric.barrier()

    def save_weights(self) -> Path:
        """Write the averaged network as fp16 safetensors, with a note of what it was trained for.

        The discriminator, if there is one, goes beside it.
        """
        prior = self.config.stage == "prior"
        notes = {"stage": "prior"} if prior else {"task": self.config.task}
        path = self.run_dir / "weights.safetensors"
        if self.objective.discriminator is not None:
            save_checkpoint(self.objective.discriminator, discriminator_file(path), torch.float16)
        return save_checkpoint(self.objective.average, path, torch.float16, notes)

    def _log(self, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to ``log.jsonl``, which notebook 06 reads."""
        self.fabric.log_dict(values, step=self.step)
        if self.fabric.is_global_zero:
            with (self.run_dir / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step} | values) + "\n")


def _seed(*parts: int) -> int:
    """Return one well-mixed seed of several whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def grid(images: np.ndarray[Any, Any]) -> Image:
    """Return rows of pictures [R, C, 3, S, S] in [-1, 1] as one uint8 RGB picture [R*S, C*S, 3]."""
    return np.asarray(cv2.vconcat([cv2.hconcat(list(from_tensor(row))) for row in images]), dtype=np.uint8)
