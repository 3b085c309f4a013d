"""The trainer: every stage learns, resumes exactly, and stops when it must; what a run writes of itself."""

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
from filelock import FileLock
from torch.utils._pytree import tree_flatten

from gpenlib.architecture import Discriminator, Generator, Gpen, load_checkpoint, load_generator
from gpenlib.architecture.checkpoints import CheckpointError, discriminator_file, find_discriminator
from gpenlib.architecture.model import MIN_SIZE
from gpenlib.images import read_image, write_image
from gpenlib.train import trainer as module
from gpenlib.train.batches import TrainingFaces, open_training_faces
from gpenlib.train.config import TrainConfig
from gpenlib.train.trainer import Trainer, TrainingError, read_log, series
from tests.train.conftest import CONTENT_ONLY, SMALL, MakeConfig

EVERY_TERM: dict[str, Any] = {  # both penalties within the few steps of a test
    "losses": {"r1_every": 2, "path_length_every": 2},
    "augmentation": {"target": 0.6, "adapt_images": 100},
}
NO_PATH = {"path_length": 0}


def log(run_dir: Path | str, name: str) -> list[float]:
    return series(read_log(Path(run_dir)), name)[1]


def entries(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Compare nested entries of checkpoints bit for bit."""
    (one, form), (two, other) = tree_flatten(first), tree_flatten(second)
    same = [bool(np.array_equal(a, b)) for a, b in zip(one, two, strict=True)]
    assert form == other and all(same), f"{where}: {same.count(False)} of {len(same)} differ"


def test_content_loss_falls_and_what_is_not_finite_stops(configure: MakeConfig) -> None:
    rates = {"generator": "2e-3", "beta1": 0.9, "warmup": 2, "decay": "cosine"}  # 2e-3 as YAML gives it
    trainer = Trainer(configure(steps=40, batch_size=4, losses=CONTENT_ONLY, learning_rates=rates))
    trainer.run_until(39)
    history = log(trainer.run_dir, "content")
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5])
    assert load_checkpoint(trainer.checkpoint).config.in_size == 64  # picks g_ema
    saved, parameters = entries(trainer.checkpoint), list(Gpen(SMALL).parameters())
    assert "d" not in saved
    plain = torch.optim.Adam(parameters)  # takes moments as the original writes them: one group, in order
    plain.load_state_dict(saved["g_optim"])
    assert [plain.state[p]["exp_avg"].shape for p in parameters] == [p.shape for p in parameters]
    good = trainer.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.objective.generator.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 39; last good checkpoint: .*checkpoint.pt"):
        trainer.run()
    with pytest.raises(TrainingError, match=r"not finite after step 39 .*last good checkpoint: .*pt"):
        module.save_state(trainer.checkpoint, trainer.objective, trainer.step)
    assert trainer.checkpoint.read_bytes() == good


@pytest.mark.parametrize("task", ["color", "restore-mild", "inpaint"])
def test_every_task_trains_against_a_discriminator(configure: MakeConfig, task: str) -> None:
    trainer = Trainer(configure(task=task, steps=2, evaluate_every=2))
    trainer.run()
    for term in ("content", "adversarial", "feature_matching", "discriminator", "r1", "held_out_psnr"):
        assert log(trainer.run_dir, term), term
    picture = read_image(trainer.run_dir / "samples" / "0000002.png")
    assert picture.shape == (3 * 64, 2 * 64, 3)  # input, output, truth of the two held-out faces


def test_a_prior_feeds_the_next_stages(configure: MakeConfig, tmp_path: Path) -> None:
    prior = Trainer(configure(stage="prior", steps=4, batch_size=4, **EVERY_TERM))
    assert isinstance(prior.run(), Generator)
    for term in ("adversarial", "discriminator", "r1", "path_length", "held_out_logit"):
        assert log(prior.run_dir, term), term
    shipped = prior.save_weights()
    judge = prior.objective.discriminator.state_dict()
    for init, error in ((prior.checkpoint, 0.0), (shipped, 1e-3)):  # shipped in fp16
        embedded = Trainer(configure(stage="embed", init=str(init), run_dir=str(tmp_path / init.stem)))
        start = embedded.objective.generator.generator.state_dict()
        assert_equal(load_generator(init).state_dict(), start)
        for name, tensor in embedded.objective.discriminator.state_dict().items():
            torch.testing.assert_close(tensor, judge[name], rtol=error, atol=error / 10, msg=name)
    discriminator_file(shipped).unlink()
    assert find_discriminator(shipped) is None
    before = start["conv1.conv.weight"].clone()
    embedded.run()
    assert not torch.equal(before, embedded.objective.generator.generator.state_dict()["conv1.conv.weight"])
    tuned = Trainer(configure(init=str(embedded.checkpoint), run_dir=str(tmp_path / "tuned")))
    assert_equal(embedded.objective.average.state_dict(), tuned.objective.generator.state_dict())


def test_a_discriminator_of_another_width_can_judge(configure: MakeConfig, tmp_path: Path) -> None:
    judge = Trainer(configure(stage="prior", size=32, narrow=0.125, steps=1, losses=NO_PATH))
    judge.run()
    init, run_dir = str(judge.save_weights()), str(tmp_path / "tuned")
    tuned = Trainer(configure(discriminator_init=init, steps=1, run_dir=run_dir))
    shape = tuned.objective.discriminator.config
    assert shape.narrow == 0.125 != tuned.config.narrow and shape.out_size == 64
    last = tuned.objective.discriminator.state_dict()["final_conv.0.weight"].clone()
    trained = judge.objective.discriminator.state_dict()["final_conv.0.weight"]
    torch.testing.assert_close(last, trained, rtol=1e-3, atol=1e-4)  # fp16
    tuned.run()
    assert not torch.equal(entries(tuned.checkpoint)["d"]["final_conv.0.weight"], last)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: d "):  # the narrow one of the configuration
        Trainer(configure(steps=1, run_dir=run_dir)).run()


@pytest.mark.parametrize(
    ("stage", "stops"), [("prior", (1, 2, 3, 4, 5, 6, 7)), ("embed", (3,)), ("finetune", (3,))]
)
def test_a_resumed_run_ends_with_the_same_bits_wherever_it_was_stopped(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, stops: tuple[int, ...]
) -> None:
    """The prior adapts its augmentation every 4 steps, and a smaller discriminator fades out over 6."""
    monkeypatch.setattr(Trainer, "_evaluate", lambda *_: None)
    small = Trainer(configure(stage="prior", size=32, steps=1, losses=NO_PATH, run_dir=str(tmp_path / "s")))
    small.run()
    init = None if stage == "finetune" else str(small.checkpoint)
    shared = EVERY_TERM | {"stage": stage, "steps": 8, "fade_in": 6, "checkpoint_every": 1}
    whole, kept = Trainer(configure(run_dir=str(tmp_path / "whole"), init=init, **shared)), {}
    save = module.save_state
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", lambda *_: kept.update({_[2]: (save(*_), entries(_[0]))[1]}))
        whole.run()
    for step in stops:
        state, run_dir = dict(kept[step]), tmp_path / f"from_{step}"
        if stage == "prior" and step == 4:  # as it was saved before; after each fourth step that was enough
            state["extra"] = {name: state["extra"][name] for name in ("mean_path_length", "augmentation")}
        run_dir.mkdir()
        torch.save(state, run_dir / "checkpoint.pt")
        # A prior needs its init no more: what fades out is in the checkpoint.
        now = None if stage == "prior" and step != 4 else init
        stop = min(8, step + 1 + step % 2)  # before and after the adaptations, at 4 and 8
        Trainer(configure(run_dir=str(run_dir), init=now, **shared)).run_until(stop)
        state = entries(run_dir / "checkpoint.pt")
        assert_equal(kept[stop] | {"config": None}, state | {"config": None}, f"from step {step}")
        assert log(run_dir, "discriminator") == log(whole.run_dir, "discriminator")[step:stop]
    if stage == "prior":
        assert 0 < kept[8]["extra"]["augmentation"] < 1 and kept[8]["extra"]["mean_path_length"] > 0
        assert whole.objective.fade.share == 1.0 and whole.objective.fade.levels == 1


def test_a_killed_process_goes_on_from_its_checkpoint_and_log(configure: MakeConfig, tmp_path: Path) -> None:
    whole = Trainer(configure(losses=CONTENT_ONLY, run_dir=str(tmp_path / "whole"))).run()
    config, file = configure(losses=CONTENT_ONLY), tmp_path / "train.yaml"
    run_dir = Path(config.run_dir)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    kill = (
        "import os, torch; from gpenlib.train import trainer as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # sums depend on their number
        "save = t.save_state\n"
        "t.save_state = lambda *all: (save(*all), os._exit(9))\n"
        f"t.main([{str(file)!r}])"
    )
    assert subprocess.run([sys.executable, "-c", kill], capture_output=True).returncode == 9
    assert entries(run_dir / "checkpoint.pt")["step"] == 2
    with (run_dir / "log.jsonl").open("a") as half:
        half.write('{"step": 3, "content": 5.0}\n{"step": 7, "content": 5.0}\n{"step": 3, "cont')
    assert module.main([str(file)]) == 0
    assert_equal(whole.state_dict(), load_checkpoint(run_dir / "checkpoint.pt").state_dict())
    module.check_log(read_log(run_dir), 4)
    assert log(run_dir, "content") == log(tmp_path / "whole", "content")


def test_two_processes_compute_the_gradients_of_one(configure: MakeConfig, tmp_path: Path) -> None:
    """After one step of Adam with beta1=0 its first moment is the gradient."""
    settings: dict[str, Any] = {"steps": 1, "batch_size": 8, "holdout": 2, "losses": {"r1": 0}}
    # A discriminator that hardly moves: both runs see the same one when the generator learns.
    settings["learning_rates"] = {"discriminator": 1e-12}
    Trainer(configure(run_dir=str(tmp_path / "one"), **settings)).run()
    file = tmp_path / "two.yaml"
    two = configure(run_dir=str(tmp_path / "two"), devices=2, **settings)
    file.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "gpenlib.train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (entries(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    for optimizer in ("g_optim", "d_optim"):
        for index, state in one[optimizer]["state"].items():
            gradient = state["exp_avg"]
            error = (gradient - other[optimizer]["state"][index]["exp_avg"]).abs().max()
            assert error <= 1e-4 * gradient.abs().max() + 1e-9, (optimizer, index)


def test_what_may_change_on_resume(configure: MakeConfig) -> None:
    Trainer(configure(losses=CONTENT_ONLY, steps=2)).run()
    for changes, named in (
        ({"batch_size": 3}, "batch_size"),
        ({"steps": 1}, "is at step 2, beyond steps=1"),
        ({"steps": 9, "learning_rates": {"decay": "cosine"}}, "steps"),
    ):
        with pytest.raises(TrainingError, match=named):
            Trainer(configure(losses=CONTENT_ONLY, **{"steps": 2} | changes)).run()
    longer = Trainer(configure(losses=CONTENT_ONLY, steps=3))  # the rate is constant
    longer.run()
    assert longer.step == 3


@pytest.mark.parametrize(
    ("stage", "kind", "goes_on"),
    [
        ("finetune", Gpen, {"g_optim", "d_optim"}),
        ("embed", Gpen, {"d_optim"}),  # its encoder is new
        ("embed", Generator, {"d_optim"}),
        ("prior", Generator, {"g_optim", "d_optim"}),
    ],
)
def test_every_stage_starts_from_a_checkpoint_of_the_original(
    configure: MakeConfig, tmp_path: Path, stage: str, kind: type, goes_on: set[str]
) -> None:
    original = {"g": kind(SMALL), "g_ema": kind(SMALL), "d": Discriminator(SMALL)}
    content = {name: network.state_dict() for name, network in original.items()}
    for name in ("g", "d"):
        adam = torch.optim.Adam(original[name].parameters(), lr=0.5)
        sum(p.square().sum() for p in original[name].parameters()).backward()
        adam.step()
        content[f"{name}_optim"] = adam.state_dict()
    torch.save(content, tmp_path / "000100.pth")
    init = str(tmp_path / "000100.pth")
    trainer = Trainer(configure(stage=stage, init=init, losses={"path_length": 0, "r1": 0}, steps=1))
    trainer.run_until(0)  # takes everything up
    objective = trainer.objective
    decoder = objective.generator if stage == "prior" else objective.generator.generator
    assert_equal(
        getattr(original["g_ema"], "generator", original["g_ema"]).state_dict(), decoder.state_dict()
    )
    assert_equal(original["d"].state_dict(), objective.discriminator.state_dict())
    for name, network in (("g_optim", objective.generator), ("d_optim", objective.discriminator)):
        ours = objective.optimizers[name]
        moments = [ours.state[p]["exp_avg"] for p in network.parameters() if p in ours.state]
        theirs = [entry["exp_avg"] for entry in content[name]["state"].values()]
        assert_equal(theirs if name in goes_on else [], moments)
        assert all(group["lr"] < 0.5 for group in ours.param_groups)
    assert trainer.run() is objective.average and trainer.step == 1
    torch.save(content, trainer.checkpoint)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt.*step, config, extra.*init"):
        Trainer(trainer.config).run()


def test_one_process_trains_in_a_folder(
    configure: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, file = configure(losses=CONTENT_ONLY, steps=1), tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_dir = Path(config.run_dir)
    run_dir.mkdir()
    with FileLock(run_dir / module.LOCK):
        assert module.main([str(file)]) == 1
        assert f"{run_dir}: another process trains there" in capsys.readouterr().err
        assert [path.name for path in run_dir.iterdir()] == [module.LOCK]
    assert module.main([str(file)]) == 0
    module.clear_training(run_dir)  # the lock is no file of the user's
    assert not any(path.is_file() for path in run_dir.rglob("*"))


def test_damaged_files_are_named_and_the_command_says_so(
    configure: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trainer, file = Trainer(configure(losses=CONTENT_ONLY, steps=1)), tmp_path / "train.yaml"
    trainer.run()
    good = trainer.checkpoint.read_bytes()
    for damaged in (good[: len(good) // 2], good[:100], b"", b"\x80\x04N."):
        trainer.checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
            Trainer(trainer.config).run()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        Trainer(configure(init=str(trainer.checkpoint), run_dir=str(tmp_path / "next")))
    file.write_text(yaml.safe_dump(trainer.config.model_dump(mode="json")))
    for words, named in (
        ("", "checkpoint.pt"),
        ("learning_rate=1", "did you mean 'learning_rates'"),
        ("stage=embed", "init"),
        ("devices=4", "devices=4"),
        ("losses.identity=0.1", "identity_model"),
        (f"run_dir={tmp_path}/a data_dir=no/such", "no/such"),
        (f"run_dir={tmp_path}/b init=absent.pt", "absent.pt"),
    ):
        assert module.main([str(file), *words.split()]) == 1
        printed = capsys.readouterr().err.splitlines()[-1]
        assert printed.startswith("error: ") and named in printed


def test_prior_samples_are_drawn_one_by_one_and_the_same(configure: MakeConfig) -> None:
    trainer = Trainer(configure(stage="prior", steps=1, losses=NO_PATH, seed=3))
    average, batches = trainer.run(), []
    average.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    images = trainer.objective.samples(TrainingFaces(open_training_faces(trainer.config), trainer.config))
    assert images.shape == (3, 8, 3, 64, 64) and set(batches) == {1}
    z = torch.randn(24, 512, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        together = average(z, average.noise_maps(24, 3))
    torch.testing.assert_close(images.flatten(0, 1), together, rtol=0, atol=1e-5)


def test_every_shipped_configuration_is_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "params" / "train").glob("*.yaml"))
    assert files and all(TrainConfig.from_yaml(file).network.out_size >= MIN_SIZE for file in files)


def test_repeated_steps_count_once_and_torn_lines_are_passed_over(tmp_path: Path) -> None:
    lines = [{"step": 1, "content": 3.0}, {"step": 2, "content": 9.0}]
    lines += [{"step": 2, "content": 2.0}, {"step": 2, "held_out_psnr": 20.0}]
    text = "\n".join(json.dumps(line) for line in lines) + '\nnull\n[]\n{}\n\x00\n{"step": 3, "cont'
    (tmp_path / "log.jsonl").write_text(text)
    rows = read_log(tmp_path)
    assert rows == [{"step": 1, "content": 3.0}, {"step": 2, "content": 2.0, "held_out_psnr": 20.0}]
    assert series(rows, "held_out_psnr") == ([2], [20.0])
    with pytest.raises(FileNotFoundError, match="train first"):
        read_log(tmp_path / "absent")


def test_a_log_is_smoothed_and_judged() -> None:
    assert module.smooth([2.0] * 7) == pytest.approx([2.0] * 7)
    assert module.smooth([0.0, 3.0, 6.0, 9.0], window=3) == pytest.approx([1.5, 3.0, 6.0, 7.5])
    assert module.smooth([0.0, 2.0, 4.0, 6.0], window=2) == pytest.approx([0.0, 1.0, 3.0, 5.0])
    assert len(module.smooth([1.0, 3.0])) == 2 and len(module.smooth(list(range(200)))) == 200
    rows = [{"step": i, "content": 5.0 - i} for i in range(1, 11)]
    module.check_log(rows, 10, "content")
    assert module.beginning_and_end(rows, "content") == (3.5, -4.5)  # of fifths
    rising, broken = ([row | {"content": value} for row in rows] for value in (1.0, float("nan")))
    for log_rows, steps, falls, named in (
        (rows, 10, "r1", "'r1' was never logged; logged were content"),
        (rows, 11, None, "10 steps, not each of 1 to 11"),
        (rising, 10, "content", "content was 1 and is 1"),
        (broken, 10, None, "content is not finite at step 1"),
    ):
        with pytest.raises(ValueError, match=named):
            module.check_log(log_rows, steps, falls)


def test_samples_are_spread_over_the_run(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        write_image(tmp_path / "samples" / f"{step:07d}.png", np.full((4, 4, 3), step, np.uint8))
    pictures = module.read_samples(tmp_path, 3)
    assert list(pictures) == [10, 40, 70] and (pictures[40] == 40).all()
    assert len(module.read_samples(tmp_path, 99)) == 7
    with pytest.raises(FileNotFoundError, match="no sample pictures"):
        module.read_samples(tmp_path / "absent", 3)
