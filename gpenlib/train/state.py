"""Training checkpoints in the original project's format: ``g``, ``d``, ``g_ema``, ``g_optim``, ``d_optim``.

The original keeps all parameters of an optimiser in one group, in the network's order. Ours may have two
groups with different learning rates; they are written as one and taken apart again, so that either project
reads the other's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gpenlib.run import write_atomically
from gpenlib.train.objective import Objective

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
