"""The trainer: every stage learns, resumes exactly, and stops when it must."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gpenlib.architecture import Generator, load_checkpoint, load_discriminator, load_generator
from gpenlib.architecture.checkpoints import (
    discriminator_file,
    find_discriminator,
    shipped_weights,
    weights_file,
)
from gpenlib.architecture.model import MIN_SIZE
from gpenlib.data.faces import DataError
from gpenlib.images import read_image
from gpenlib.settings import SettingsError, TrainConfig
from gpenlib.train.batches import DRAWN_FACES, open_training_faces
from gpenlib.train.trainer import Trainer, TrainingError, regrouped
from tests.train.conftest import CONTENT_ONLY, FACES, MakeConfig

EVERY_TERM = {  # both penalties within the few steps of a test
    "losses": {"r1_every": 2, "path_length_every": 2},
    "augmentation": {"target": 0.6, "adapt_images": 100},
}


def log(run_dir: str, name: str) -> list[float]:
    rows = [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_content_loss_falls_and_the_checkpoint_loads(configure: MakeConfig) -> None:
    rates = {"generator": "2e-3", "beta1": 0.9, "warmup": 2, "decay": "cosine"}  # 2e-3 as YAML gives it
    config = configure(steps=40, batch_size=4, losses=CONTENT_ONLY, learning_rates=rates)
    trainer = Trainer(config)
    trainer.run()
    history = log(config.run_dir, "content")
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5])
    model = load_checkpoint(trainer.checkpoint)  # picks g_ema
    assert model.config.in_size == 64
    with pytest.raises(KeyError):
        torch.load(trainer.checkpoint, weights_only=True)["d"]


@pytest.mark.parametrize("task", ["color", "restore-mild", "inpaint"])
def test_every_task_trains_against_a_discriminator(configure: MakeConfig, task: str) -> None:
    config = configure(task=task, steps=2, evaluate_every=2)
    trainer = Trainer(config)
    trainer.run()
    for term in ("content", "adversarial", "feature_matching", "discriminator", "r1"):
        assert log(config.run_dir, term), term
    assert log(config.run_dir, "held_out_psnr")
    assert load_discriminator(trainer.checkpoint, key="d").config.out_size == 64
    picture = read_image(trainer.run_dir / "samples" / "0000002.png")
    assert picture.shape == (3 * 64, 2 * 64, 3)  # input, output, truth of the two held-out faces


def test_prior_trains_and_feeds_the_next_stages(configure: MakeConfig, tmp_path: Path) -> None:
    prior = Trainer(configure(stage="prior", steps=4, batch_size=4, evaluate_every=4, **EVERY_TERM))
    prior.run()
    for term in ("adversarial", "discriminator", "r1", "path_length", "held_out_logit"):
        assert log(str(prior.run_dir), term), term
    assert prior.objective.extra_state()["mean_path_length"] > 0
    assert prior.objective.extra_state()["augmentation"] < 1.0  # D is not that sure after 4 steps
    trained = load_generator(prior.checkpoint)

    embedded = Trainer(configure(stage="embed", init=str(prior.checkpoint), run_dir=str(tmp_path / "embed")))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, embedded.objective.generator.state_dict()[f"generator.{name}"]), name
    start = embedded.objective.generator.state_dict()["generator.conv1.conv.weight"].clone()
    embedded.run()
    assert not torch.equal(start, embedded.objective.generator.state_dict()["generator.conv1.conv.weight"])

    tuned = Trainer(configure(init=str(embedded.checkpoint), run_dir=str(tmp_path / "tuned")))
    for name, tensor in embedded.objective.average.state_dict().items():
        assert torch.equal(tensor, tuned.objective.generator.state_dict()[name]), name


def test_weights_to_ship_bring_their_discriminator(configure: MakeConfig, tmp_path: Path) -> None:
    prior = Trainer(configure(stage="prior", steps=1, losses={"path_length": 0}))
    prior.run()
    file = prior.save_weights()
    embedded = Trainer(configure(stage="embed", init=str(file), run_dir=str(tmp_path / "embed")))
    start = embedded.objective.discriminator.state_dict()
    for name, tensor in prior.objective.discriminator.state_dict().items():
        torch.testing.assert_close(start[name], tensor, rtol=1e-3, atol=1e-4, msg=name)  # fp16
    discriminator_file(file).unlink()
    assert find_discriminator(file) is None
    trained = find_discriminator(weights_file("demo-prior"))
    assert trained is not None and trained.config == load_generator(weights_file("demo-prior")).config
    assert "demo-prior" in shipped_weights() and not any(
        "discriminator" in name for name in shipped_weights()
    )


def test_a_discriminator_of_another_width_can_judge(configure: MakeConfig, tmp_path: Path) -> None:
    judge = Trainer(configure(stage="prior", size=32, narrow=0.125, steps=1, losses={"path_length": 0}))
    judge.run()
    file = judge.save_weights()
    tuned = Trainer(configure(discriminator_init=str(file), steps=1, run_dir=str(tmp_path / "tuned")))
    shape = tuned.objective.discriminator.config
    assert shape.narrow == 0.125 != tuned.config.narrow and shape.out_size == 64
    last = tuned.objective.discriminator.state_dict()["final_conv.0.weight"].clone()
    trained = judge.objective.discriminator.state_dict()["final_conv.0.weight"]
    torch.testing.assert_close(last, trained, rtol=1e-3, atol=1e-4)  # fp16
    tuned.run()
    kept = load_discriminator(tuned.checkpoint, key="d")
    assert kept.config == shape and not torch.equal(kept.state_dict()["final_conv.0.weight"], last)


@pytest.mark.parametrize("stage", ["prior", "finetune"])
def test_a_resumed_run_ends_with_the_same_weights(configure: MakeConfig, tmp_path: Path, stage: str) -> None:
    def make(name: str) -> Trainer:
        return Trainer(configure(stage=stage, run_dir=str(tmp_path / name), batch_size=4, **EVERY_TERM))

    whole = make("whole")
    whole.run()
    make("half").run_until(2)
    resumed = make("half")
    resumed.run()
    states = [torch.load(t.checkpoint, weights_only=True) for t in (whole, resumed)]
    assert states[0]["extra"] == states[1]["extra"]
    for key in ("g", "d", "g_ema"):
        for name, tensor in states[0][key].items():
            assert torch.equal(tensor, states[1][key][name]), (key, name)


def test_a_grown_prior_resumes_in_the_middle_of_its_fade_in(configure: MakeConfig, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"stage": "prior", "batch_size": 2, "losses": {"path_length": 0}}
    small = Trainer(configure(size=32, steps=1, run_dir=str(tmp_path / "small"), **shared))
    small.run()

    def make(name: str) -> Trainer:
        run_dir, init = str(tmp_path / name), str(small.checkpoint)
        return Trainer(configure(fade_in=3, init=init, run_dir=run_dir, **shared))

    whole = make("whole")
    whole.run()
    make("half").run_until(2)
    resumed = make("half")
    resumed.run_until(3)
    assert resumed.objective.judge.share == pytest.approx(2 / 3), "the share depends on the step alone"
    resumed.run()
    assert resumed.objective.judge.share == whole.objective.judge.share == 1.0
    for name, tensor in whole.objective.discriminator.state_dict().items():
        assert torch.equal(tensor, resumed.objective.discriminator.state_dict()[name]), name


def test_a_killed_process_goes_on_from_its_checkpoint(configure: MakeConfig, tmp_path: Path) -> None:
    whole = Trainer(configure(losses=CONTENT_ONLY, run_dir=str(tmp_path / "whole"))).run()
    config = configure(losses=CONTENT_ONLY)
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    kill = (
        "import os, sys; from gpenlib.train import trainer as t, __main__ as m\n"
        "save = t.Trainer._save\n"
        "t.Trainer._save = lambda self: (save(self), os._exit(9))\n"
        f"sys.argv = ['train', {str(file)!r}]; m.main()"
    )
    assert subprocess.run([sys.executable, "-c", kill], capture_output=True).returncode == 9
    assert torch.load(Path(config.run_dir) / "checkpoint.pt", weights_only=True)["step"] == 2
    resumed = Trainer(config).run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_two_processes_compute_the_gradients_of_one(configure: MakeConfig, tmp_path: Path) -> None:
    """After one step of Adam with beta1=0 its first moment is the gradient."""
    settings: dict[str, Any] = {
        "steps": 1,
        "batch_size": 8,
        "holdout": 2,
        "losses": {"r1": 0},
        # A discriminator that hardly moves: both runs see the same one when the generator learns.
        "learning_rates": {"discriminator": 1e-12},
    }
    Trainer(configure(run_dir=str(tmp_path / "one"), **settings)).run()
    file = tmp_path / "two.yaml"
    two = configure(run_dir=str(tmp_path / "two"), devices=2, **settings)
    file.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "gpenlib.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(file)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("one", "two"))
    for optimizer in ("g_optim", "d_optim"):
        for index, state in one[optimizer]["state"].items():
            gradient = state["exp_avg"]
            error = (gradient - other[optimizer]["state"][index]["exp_avg"]).abs().max()
            assert error <= 1e-4 * gradient.abs().max() + 1e-9, (optimizer, index)


def test_resuming_with_other_settings_is_refused(configure: MakeConfig) -> None:
    Trainer(configure(losses=CONTENT_ONLY)).run()
    with pytest.raises(TrainingError, match="batch_size"):
        Trainer(configure(losses=CONTENT_ONLY, batch_size=3)).run()


def test_more_steps_are_allowed_where_the_rate_is_constant(configure: MakeConfig) -> None:
    Trainer(configure(losses=CONTENT_ONLY, steps=2)).run()
    longer = Trainer(configure(losses=CONTENT_ONLY, steps=3))
    longer.run()
    assert longer.step == 3
    with pytest.raises(TrainingError, match="is at step 3, beyond steps=2"):
        Trainer(configure(losses=CONTENT_ONLY, steps=2)).run()
    with pytest.raises(TrainingError, match="steps"):
        Trainer(configure(losses=CONTENT_ONLY, steps=9, learning_rates={"decay": "cosine"})).run()


def test_embedded_faces_need_no_folder(configure: MakeConfig) -> None:
    source = open_training_faces(configure(data_dir="embedded", holdout=5))
    assert len(source.names) == DRAWN_FACES + 5
    assert source.read(0).shape == (128, 128, 3)  # twice the side of the network
    folder = configure()
    assert len(open_training_faces(folder).names) == FACES
    with pytest.raises(DataError):
        open_training_faces(configure(data_dir="no/such/folder"))


def test_a_loss_that_is_not_finite_stops(configure: MakeConfig) -> None:
    trainer = Trainer(configure(losses=CONTENT_ONLY))
    trainer.run_until(2)
    good = trainer.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.objective.generator.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 2; last good checkpoint: .*checkpoint.pt"):
        trainer.run()
    with pytest.raises(TrainingError, match=r"not finite after step 2 .*last good checkpoint: .*pt"):
        trainer._save()
    assert trainer.checkpoint.read_bytes() == good


def test_optimisers_are_written_as_the_original_keeps_them(configure: MakeConfig) -> None:
    """One group over the parameters in the network's order, which plain Adam takes."""
    rates = {"generator": 2e-3, "decoder_factor": 0.1}
    trainer = Trainer(configure(losses=CONTENT_ONLY, learning_rates=rates, steps=2))
    trainer.run()
    saved = torch.load(trainer.checkpoint, weights_only=True)
    assert {"g", "g_ema", "g_optim"} <= set(saved)
    network = load_checkpoint(trainer.checkpoint, key="g")
    plain = torch.optim.Adam(network.parameters(), lr=2e-3)
    plain.load_state_dict(saved["g_optim"])
    moments = [plain.state[p]["exp_avg"].shape for p in network.parameters()]
    assert moments == [p.shape for p in network.parameters()]
    ours = trainer.objective.optimizers["g_optim"]
    back = regrouped(saved["g_optim"], ours, trainer.objective.generator)
    assert [g["initial_lr"] for g in back["param_groups"]] == [2e-4, 2e-3]
    for index, moments in ours.state_dict()["state"].items():
        assert torch.equal(back["state"][index]["exp_avg"], moments["exp_avg"]), index


def test_noise_weights_learn_at_the_rate_of_the_encoder(configure: MakeConfig) -> None:
    """A prior may have closed them, and the encoder's features come in there."""
    rates = {"generator": 2e-3, "decoder_factor": 0.1}
    objective = Trainer(configure(losses=CONTENT_ONLY, learning_rates=rates)).objective
    names = {parameter: name for name, parameter in objective.generator.named_parameters()}
    slow, fast = (
        {names[p] for p in group["params"]} for group in objective.optimizers["g_optim"].param_groups
    )
    assert slow | fast == set(names.values()) and not slow & fast
    doors = {name for name in names.values() if name.endswith("noise.weight")}
    assert doors and doors < fast
    assert {name for name in fast - doors if name.startswith("generator.")} == set()


def test_too_few_images_are_counted(configure: MakeConfig) -> None:
    with pytest.raises(DataError, match=f"{FACES} images"):
        Trainer(configure(batch_size=9)).run()


def test_impossible_settings_are_named(configure: MakeConfig) -> None:
    with pytest.raises(SettingsError, match="did you mean 'learning_rates'"):
        configure(learning_rate=1.0)
    with pytest.raises(SettingsError, match="embed needs init"):
        configure(stage="embed")
    with pytest.raises(SettingsError, match="not a multiple of devices=4"):
        configure(devices=4)
    with pytest.raises(SettingsError, match="identity_model"):
        configure(losses={"identity": 0.1})
    with pytest.raises(SettingsError, match="did you mean 'color'"):
        configure(task="colour")


def test_every_shipped_configuration_is_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "params" / "train").glob("*.yaml"))
    assert files
    for file in files:
        assert TrainConfig.from_yaml(file).network.out_size >= MIN_SIZE


def test_prior_samples_are_those_of_its_generator(configure: MakeConfig) -> None:
    trainer = Trainer(configure(stage="prior", batch_size=4, steps=1, losses={"path_length": 0}))
    assert isinstance(trainer.run(), Generator)
    from gpenlib.data.faces import open_folder
    from gpenlib.train.batches import TrainingFaces

    faces = TrainingFaces(open_folder(trainer.config.data_dir), trainer.config)
    images = trainer.objective.samples(faces)
    assert images.shape == (3, 8, 3, 64, 64)
    assert torch.equal(images, trainer.objective.samples(faces))
