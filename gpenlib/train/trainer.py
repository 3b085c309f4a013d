"""The training loop: devices and processes through Lightning Fabric, exact resume, logs, samples."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gpenlib.architecture import CheckpointError, Generator, Gpen, checkpoints, save_checkpoint
from gpenlib.architecture.checkpoints import TORCH_SUFFIXES, discriminator_file, onnx_digest, weights_file
from gpenlib.files import (
    fingerprint,
    keep_aside,
    links_in,
    locked,
    read_json,
    resolve_path,
    sha256,
    storing,
    write_atomically,
    write_json,
    write_text,
)
from gpenlib.images import FloatArray, Image, from_tensor, read_image, write_image
from gpenlib.jobs import LONGEST_LINE, command, keep_memory, progress
from gpenlib.settings import parse_overrides
from gpenlib.train.batches import TrainingFaces, open_training_faces
from gpenlib.train.config import TrainConfig
from gpenlib.train.objectives import PriorObjective, RestorationObjective
from gpenlib.train.objectives import TrainingError as TrainingError

CHECKPOINT, LOG, SAMPLES, INPUTS = "checkpoint.pt", "log.jsonl", "samples", "inputs.json"
LOCK = ".training.lock"
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}
LogRow = dict[str, float]
Objective = PriorObjective | RestorationObjective


class Trainer:
    """Run a stage of training; what is killed and goes on ends with the same weights (on a CPU to the bit).

    All that is random depends on (seed, step, process); the checkpoint holds the rest.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run_dir = resolve_path(config.run_dir)
        self.checkpoint = self.run_dir / CHECKPOINT
        # Imported here: it takes seconds, and this module is also imported to read a log
        from lightning_fabric import Fabric
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

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
        keep_memory()  # every step asks for the same arrays
        if self.step == 0:
            self._begin()
        faces = TrainingFaces(open_training_faces(config), config)
        batches = faces.loader(self.step, stop, fabric.global_rank, fabric.world_size)
        bar = progress(batches, initial=self.step, total=config.steps, desc=config.stage)
        started = time.perf_counter()
        for batch in bar:
            losses = self._train_step(batch)
            rate = config.batch_size / (time.perf_counter() - started)
            shown = {name: f"{value:.3g}" for name, value in losses.items()}
            bar.set_postfix(refresh=False, images_per_s=f"{rate:.1f}", **shown)
            self._log(losses | {"images_per_s": rate})
            if fabric.is_global_zero and (self.step % config.evaluate_every == 0 or self.step == stop):
                self._evaluate(faces)
            if fabric.is_global_zero and (self.step % config.checkpoint_every == 0 or self.step == stop):
                save_state(self.checkpoint, self.objective, self.step)
            started = time.perf_counter()
        fabric.barrier()
        return self.objective.average

    def _begin(self) -> None:
        """Take up the checkpoint and the log, if there are any."""
        if self.checkpoint.is_file():
            try:
                self.step = load_state(self.checkpoint, self.objective)
            except (AttributeError, LookupError, TypeError) as error:
                what = f"no checkpoint of this run ({type(error).__name__}: {error!s:.150})"
                raise TrainingError(f"{self.checkpoint}: {what}; remove it to begin anew") from error
        elif self.config.init:
            take_moments(weights_file(self.config.init), self.objective)
        log = self.run_dir / LOG
        if self.fabric.is_global_zero and log.is_file():  # without a line that was cut off, or undone steps
            rows = [row for row in read_log(self.run_dir) if row["step"] <= self.step]
            write_text(log, "".join(json.dumps(row) + "\n" for row in rows))

    def _train_step(self, batch: Sequence[Tensor]) -> dict[str, float]:
        """Do one step with random numbers of its own; return the loss terms."""
        parts = (self.config.seed, self.step, self.fabric.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.objective.set_learning_rates(self.step)
        pair = [self.fabric.to_device(t).contiguous(memory_format=torch.channels_last) for t in batch]
        losses = {name: value.item() for name, value in self.objective.train_step(self.step, *pair).items()}
        if wrong := {name: value for name, value in losses.items() if not math.isfinite(value)}:
            last = self.checkpoint if self.checkpoint.is_file() else "none yet"
            raise TrainingError(f"loss {wrong} at step {self.step}; last good checkpoint: {last}")
        self.objective.update_average(self.step)
        self.step += 1
        return losses

    def _evaluate(self, faces: TrainingFaces) -> None:
        """Score and show the averaged network on held-out faces."""
        self._log(self.objective.evaluate(faces))
        rows = [cv2.hconcat(list(from_tensor(row))) for row in self.objective.samples(faces).numpy()]
        picture = np.asarray(cv2.vconcat(rows), dtype=np.uint8)
        write_image(self.run_dir / SAMPLES / f"{self.step:07d}.png", picture)
        self.board.experiment.add_image("samples", picture, self.step, dataformats="HWC")

    def _log(self, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to ``log.jsonl``, which notebook 06 reads."""
        self.fabric.log_dict(values, step=self.step)
        if self.fabric.is_global_zero:
            path = self.run_dir / LOG
            with storing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step} | values) + "\n")

    def refuse(self) -> NoReturn:
        """Say that another process has the folder: both would write its log and its checkpoint."""
        raise TrainingError(f"{self.run_dir}: another process trains there; let it end, or change run_dir")

    def save_weights(self) -> Path:
        """Write the averaged network (and its discriminator beside it) as fp16, with a note of its task."""
        notes = {"stage": "prior"} if self.config.stage == "prior" else {"task": self.config.task}
        path = self.run_dir / "weights.safetensors"
        if self.objective.discriminator is not None:
            save_checkpoint(self.objective.discriminator, discriminator_file(path), torch.float16)
        return save_checkpoint(self.objective.average, path, torch.float16, notes)


# Checkpoints hold the original project's entries ``g``, ``d``, ``g_ema``, ``g_optim``, ``d_optim`` and what
# resuming takes. The original keeps all parameters of an optimiser in one group, in the network's order; ours
# may have two, which are written as one and taken apart again: either project reads the other's files.
OPTIMIZED = {"g_optim": "g", "d_optim": "d"}
# These may change on resume without changing what is learned from here on.
RESUMABLE_CHANGES = {
    *("accelerator", "devices", "compile", "workers", "checkpoint_every", "evaluate_every"),
    *("run_dir", "data_dir", "init", "key", "discriminator_init"),
}


def save_state(path: Path, objective: Objective, step: int) -> None:
    """Write everything a resumed run needs, atomically; weights that are not finite replace no checkpoint."""
    networks = networks_of(objective)
    state: dict[str, Any] = {name: network.state_dict() for name, network in networks.items()}
    entries = {f"{name}.{key}": tensor for name in networks for key, tensor in state[name].items()}
    if broken := [entry for entry, tensor in entries.items() if not bool(torch.isfinite(tensor).all())]:
        what = f"weights not finite after step {step} ({', '.join(broken[:3])})"
        raise TrainingError(f"{what}; last good checkpoint: {path if path.is_file() else 'none yet'}")
    for name, optimizer in objective.optimizers.items():
        parameters = list(networks[OPTIMIZED[name]].parameters())
        moments = {i: optimizer.state[p] for i, p in enumerate(parameters) if p in optimizer.state}
        group = optimizer.state_dict()["param_groups"][0] | {"params": list(range(len(parameters)))}
        state[name] = {"state": moments, "param_groups": [group]}
    state |= {"step": step, "config": objective.config.model_dump(mode="json")}
    state["extra"] = objective.extra_state()
    with write_atomically(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, objective: Objective) -> int:
    """Take a run up where ``path`` left it; return its step."""
    state, config, networks = read_state(path), objective.config, networks_of(objective)
    needed = (*networks, *objective.optimizers, "step", "config", "extra")
    if missing := [name for name in needed if name not in state]:
        advice = "to start from its weights move it out of run_dir and give it as init"
        raise TrainingError(f"{path}: no checkpoint of this run, it lacks {', '.join(missing)}; {advice}")
    # Nothing but a decay depends on where the run ends.
    may_change = RESUMABLE_CHANGES | ({"steps"} if config.learning_rates.decay == "constant" else set())
    now = config.model_dump(mode="json")
    then = TrainConfig.parse(state["config"], str(path)).model_dump(mode="json")  # with newer keys
    if changed := [key for key in now if key not in may_change and then[key] != now[key]]:
        advice = "choose another run_dir, or start from its weights with init"
        raise TrainingError(f"{path} was made with other settings ({', '.join(changed)}); {advice}")
    if state["step"] > config.steps:
        raise TrainingError(f"{path} is at step {state['step']}, beyond steps={config.steps}; ask for more")
    try:
        for name, network in networks.items():
            checkpoints.load_strict(network, state[name], f"{name} is of another run")
    except CheckpointError as error:  # such as a discriminator whose width came from another init
        raise TrainingError(f"{path}: {error}; give its first init") from error
    for name, optimizer in objective.optimizers.items():
        load_moments(optimizer, state[name]["state"], networks[OPTIMIZED[name]])
    objective.load_extra_state(state["extra"])
    return int(state["step"])


def take_moments(path: Path, objective: Objective) -> None:
    """Take Adam's moments from an original checkpoint that training starts from, where their shapes fit."""
    state = read_state(path) if path.is_file() and path.suffix in TORCH_SUFFIXES else {}
    if "step" in state:
        return  # ours: what starts from it has always begun with new moments
    elsewhere = {"g_optim": objective.config.stage == "embed", "d_optim": objective.config.discriminator_init}
    for name in objective.optimizers.keys() & state.keys():
        network = networks_of(objective)[OPTIMIZED[name]]
        shapes = {place: parameter.shape for place, parameter in enumerate(network.parameters())}
        with suppress(AttributeError, KeyError, TypeError):  # another optimiser's
            moments = state[name]["state"]
            if not elsewhere[name] and {i: m["exp_avg"].shape for i, m in moments.items()} == shapes:
                load_moments(objective.optimizers[name], moments, network)


def load_moments(optimizer: torch.optim.Optimizer, moments: Mapping[int, Any], network: nn.Module) -> None:
    """Give an optimiser Adam's moments by place in the network; its groups and rates stay."""
    places = {parameter: place for place, parameter in enumerate(network.parameters())}
    listed = [places[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: moments[place] for index, place in enumerate(listed) if place in moments}
    state = copy.deepcopy(state)  # out of the file, which the next checkpoint replaces
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def networks_of(objective: Objective) -> dict[str, nn.Module]:
    """Return the networks under the names that the original gives them."""
    networks: dict[str, nn.Module] = {"g": objective.generator, "g_ema": objective.average}
    return networks | ({"d": objective.discriminator} if objective.discriminator is not None else {})


def read_state(path: Path) -> Mapping[str, Any]:
    """Read the entries of a training checkpoint onto the CPU."""
    try:
        return checkpoints.read_entries(path)
    except CheckpointError as error:
        raise TrainingError(f"{error}. Put a copy in its place, or remove it to begin anew") from error


def read_log(run_dir: Path) -> list[LogRow]:
    """Return one row per step, in order: ``step``, the loss terms, and what was measured at that step.

    Of steps done again the last ones count; what a killed process had begun to write is passed over.
    """
    path = run_dir / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no log; train first, with run_dir={run_dir}")
    rows: dict[int, LogRow] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(LONGEST_LINE):
            if row := _log_row(line):
                rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _log_row(line: str) -> LogRow | None:
    """Return the step and the numbers in a line of the log, or None if it holds anything else."""
    with suppress(ValueError, RecursionError, OverflowError, TypeError, AttributeError, KeyError):
        row = json.loads(line)
        step, values = row["step"], {name: value / 1 for name, value in row.items() if name != "step"}
        if 0 <= step < 2**53 and {type(step), *map(type, row.values())} <= {int, float}:
            return {"step": int(step), **values}
    return None


def series(rows: Sequence[LogRow], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which ``name`` was logged, and its values."""
    return [row["step"] for row in rows if name in row], [row[name] for row in rows if name in row]


def smooth(values: Sequence[float], window: int | None = None) -> FloatArray:
    """Return the centred moving mean over ``window`` values (default: a tenth, at least 3)."""
    width = min(len(values), window or max(3, len(values) // 10))
    return pd.Series(values).rolling(width, min_periods=1, center=True).mean().to_numpy(np.float32)


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
    """Refuse a log that lacks a step, holds a value that is not finite, or whose term ``falls`` did not."""
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise ValueError(f"the log has {len(rows)} steps, not each of 1 to {steps}")
    wrong = [(name, row["step"]) for row in rows for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError("{} is not finite at step {}".format(*wrong[0]))
    first, last = beginning_and_end(rows, falls) if falls else (1.0, 0.0)
    if last >= first:
        raise ValueError(f"nothing was learned: {falls} was {first:.4g} and is {last:.4g}")


def clear_training(folder: Path) -> None:
    """Remove what a training wrote, by its own names; anything else in the folder is refused."""
    ours = (CHECKPOINT, INPUTS, LOG, "manifest.json", "results.json", "*.safetensors",
            "samples/*.png", "tensorboard/*", ".*.*", "samples/.*.*")  # fmt: skip
    files = {path for pattern in ours for path in folder.glob(pattern)}
    if links := links_in(folder):
        raise TrainingError(f"{links[0]} is a link, which no training made; move it to another place")
    folders = {folder / SAMPLES, folder / "tensorboard"}
    foreign = [p for p in folder.rglob("*") if not (p in folders if p.is_dir() else p in files)]
    if foreign:
        raise TrainingError(
            f"{folder} is to be trained anew but holds {foreign[0].relative_to(folder)}, which no training "
            "wrote; move it to another place, or choose another run"
        )
    for path in files:
        path.unlink()


def begin_training(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Note what a training begins with; a checkpoint that began with anything else is kept aside."""
    begun, there = None, (folder / CHECKPOINT).is_file()
    with suppress(OSError, ValueError):
        begun = read_json(folder / INPUTS)
    if there and begun != inputs:
        keep_aside(folder)  # hours of work, perhaps
    if not there or begun != inputs:
        clear_training(folder)
    write_json(folder / INPUTS, inputs)


def training_inputs(config: TrainConfig) -> dict[str, str]:
    """Return digests of the faces and of the weights that a training begins with."""
    faces = open_training_faces(config)
    held_out = range(max(0, len(faces) - config.holdout), len(faces))
    # Of the faces all names count, and the contents of the held-out ones: a data set of 70,000
    # photographs is not read through before the training starts.
    inputs = {"faces": fingerprint([*faces.names, faces.take(held_out).combined_digest()])}
    if config.init:
        init = weights_file(config.init)
        digest = onnx_digest if init.suffix == ".onnx" else sha256
        inputs["init"] = digest(init) if os.path.lexists(init) and init.is_file() else config.init
        inputs |= {"key": config.key} if config.key else {}
    if config.discriminator_init:
        judge = weights_file(config.discriminator_init)
        judge = discriminator_file(judge) if judge.suffix == ".safetensors" else judge
        inputs["discriminator_init"] = sha256(judge) if judge.is_file() else config.discriminator_init
    return inputs


def train(config: TrainConfig, folder: Path, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Train until the end in ``folder``, which began with the same inputs; return the metrics of a stage."""
    begin_training(folder, inputs)
    trainer = Trainer(config)
    try:
        model = trainer.run()
    except TrainingError as error:
        raise TrainingError(f"{error}. To start anew in its place set resume to False") from error
    finally:
        trainer.board.finalize("done")  # closes the file, so that its hash stays
    trainer.save_weights()
    rows = read_log(folder)
    terms = {
        term: dict(zip(("first", "last"), beginning_and_end(rows, term), strict=True))
        for term in sorted({key for row in rows for key in row} - {"step"})
    }
    results = {
        **config.model_dump(include={"stage", "task", "size", "steps", "batch_size"}),
        "data": open_training_faces(config).label,
        "parameters": sum(p.numel() for p in model.parameters()),
        "from_scratch": config.stage == "embed" or (config.stage == "finetune" and not config.init),
        "device": str(trainer.fabric.device),
        "terms": terms,
    }
    write_json(folder / "results.json", results)
    return results


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Train (or resume) and write the averaged weights as fp16 safetensors into the run folder."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib train", description=main.__doc__)
    parser.add_argument("config", help="YAML file with the keys of TrainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    options = parser.parse_args(arguments)
    trainer = Trainer(TrainConfig.from_yaml(options.config, parse_overrides(options.overrides)))
    first = trainer.fabric.is_global_zero  # of the processes of one training
    with locked(trainer.run_dir / LOCK, trainer.refuse) if first else nullcontext():
        trainer.run()
        if first:
            print(f"weights: {trainer.save_weights()}")
    return 0
