"""06_train: one folder per configuration, resumed when stopped, trained anew when its beginnings changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpenlib import run as run_module
from gpenlib.architecture.checkpoints import load_weights
from gpenlib.run import Run
from gpenlib.settings import SettingsError
from gpenlib.train.config import TrainSettings
from gpenlib.train.trainer import Trainer, TrainingError, training_inputs

TINY = {
    **{"data_dir": "embedded", "size": 64, "channel_multiplier": 1, "narrow": 0.0625, "batch_size": 2},
    **{"holdout": 2, "steps": 2, "checkpoint_every": 1, "accelerator": "cpu", "evaluate_every": 100},
    "seed": 3,
}
TERMS = {"adversarial": 0, "feature_matching": 0}
PARTS = {
    "a_prior": {"stage": "prior", "run_dir": "somewhere/prior"},
    "b_embed": {"stage": "embed", "run_dir": "x", "init": "somewhere/prior/checkpoint.pt", "losses": TERMS},
}


@pytest.fixture
def files(tmp_path: Path, outputs_root: Path) -> list[str]:
    """Two small configurations, the second on top of the first."""
    paths = [tmp_path / f"{name}.yaml" for name in PARTS]
    for path in paths:
        path.write_text(yaml.safe_dump(TINY | PARTS[path.stem]), encoding="utf-8")
    return [str(path) for path in paths]


def train(files: list[str], **changes: Any) -> dict[str, dict[str, Any]]:
    settings = TrainSettings.parse({"run": "t", "train": ",".join(files)} | changes)
    return Run(settings).train()


def test_parts_feed_one_another_and_stand(
    files: list[str], outputs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = train(files)
    assert [part["built"] for part in parts.values()] == [True, True]
    folder = outputs_root / "t/06_train/b_embed"
    results = json.loads((folder / "results.json").read_text())
    assert results == parts["b_embed"]["metrics"]
    assert (results["stage"], results["steps"], results["from_scratch"]) == ("embed", 2, True)
    assert set(results["terms"]["content"]) == {"first", "last"}
    assert load_weights(str(folder / "weights.safetensors")).model.config.in_size == 64
    monkeypatch.setattr(run_module, "train", pytest.fail)
    assert [part["built"] for part in train(files).values()] == [False, False]


def test_more_steps_go_on_and_another_prior_starts_its_successor_anew(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(files)
    starts = []
    run = Trainer.run_until

    def recorded(self: Trainer, stop: int) -> Any:
        starts.append((self.config.stage, self.checkpoint.is_file()))
        return run(self, stop)

    monkeypatch.setattr(Trainer, "run_until", recorded)
    parts = train(files, steps=3)
    assert starts == [("prior", True), ("embed", False)]
    assert [len(part["metrics"]["terms"]) > 0 for part in parts.values()] == [True, True]
    train(files, steps=3, resume=False)
    assert starts[2:] == [("prior", False), ("embed", False)]


def test_a_checkpoint_in_the_way_is_named_with_the_way_out(files: list[str]) -> None:
    train(files[:1])
    with pytest.raises(TrainingError, match=r"batch_size.*resume to False"):
        train(files[:1], batch_size=4)
    with pytest.raises(TrainingError, match=r"at step 2, beyond steps=1"):
        train(files[:1], steps=1)


def test_values_of_the_notebook_replace_those_of_the_file(files: list[str], outputs_root: Path) -> None:
    unset = {"data_dir": "", "task": "", "steps": 0, "size": "0", "batch_size": 0, "seed": -1}
    same, other = (
        TrainSettings.parse({"run": "t", "train": ",".join(files)} | changes).configs()
        for changes in (unset, {"task": "inpaint", "size": 128, "seed": 7})
    )
    assert (same["b_embed"].steps, same["b_embed"].size, same["b_embed"].task) == (2, 64, "color")
    assert (same["b_embed"].seed, same["a_prior"].seed) == (3, 3)
    assert same["b_embed"].init == str(outputs_root / "t/06_train/a_prior/checkpoint.pt")
    assert (other["b_embed"].task, other["a_prior"].size, other["a_prior"].seed) == ("inpaint", 128, 7)


def test_a_discriminator_of_an_earlier_part_is_taken_from_there_and_counts(
    files: list[str], outputs_root: Path
) -> None:
    values = TINY | PARTS["b_embed"] | {"losses": {"r1": 0}, "steps": 1}
    values |= {
        "init": "tiny-random",
        "stage": "finetune",
        "discriminator_init": "somewhere/prior/checkpoint.pt",
    }
    Path(files[1]).write_text(yaml.safe_dump(values), encoding="utf-8")
    config = TrainSettings.parse({"run": "t", "train": ",".join(files)}).configs()["b_embed"]
    assert config.discriminator_init == str(outputs_root / "t/06_train/a_prior/checkpoint.pt")
    before = train(files[:1])["a_prior"]["outputs"]["checkpoint.pt"]
    assert training_inputs(config)["discriminator_init"] == before
    assert train(files[:1], steps=3)["a_prior"]["built"]
    assert training_inputs(config)["discriminator_init"] != before


def test_unusable_lists_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name different files"):
        TrainSettings.parse({"train": "a/x.yaml,b/x.yaml"})
    with pytest.raises(SettingsError, match="no such file"):
        TrainSettings.parse({"train": "a/x.yaml"}).configs()


def test_another_start_removes_what_training_wrote_and_nothing_else(
    files: list[str], outputs_root: Path
) -> None:
    train(files[:1])
    folder = outputs_root / "t/06_train/a_prior"
    (folder / "samples" / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"mine\.txt"):
        train(files[:1], resume=False)
    assert (folder / "samples" / "mine.txt").read_text() == "mine" and (folder / "checkpoint.pt").is_file()
    (folder / "samples" / "mine.txt").unlink()
    assert train(files[:1], resume=False)["a_prior"]["built"]
