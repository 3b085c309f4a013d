"""Averaged weights: the mean of networks of one kind, and nothing else."""

import pytest
import torch

from gpenlib.architecture import GpenConfig, load_checkpoint, read_notes, save_checkpoint
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.train.average import average_weights, main


@pytest.mark.parametrize(("shares", "factors"), [(None, [1 / 3] * 3), ([3, 1, 4], [0.375, 0.125, 0.5])])
def test_every_weight_is_the_mean(shares, factors):
    models = [random_network(TINY, seed) for seed in range(3)]
    mean = average_weights(models, shares)
    assert mean.config == TINY and not mean.training
    for name, tensor in mean.state_dict().items():
        parts = [share * model.state_dict()[name] for share, model in zip(factors, models, strict=True)]
        torch.testing.assert_close(tensor, sum(parts), msg=name)


@pytest.mark.parametrize(
    ("configs", "shares", "named"),
    [
        *(
            [(TINY, TINY), shares, "one positive number for each of 2"]
            for shares in ([1.0], [1.0, 0.0], [1] * 3)
        ),
        [(TINY,), None, "1 networks.*at least two"],
        [(TINY, GpenConfig(64, 64, 2, 0.0625)), None, "channel_multiplier=2"],
    ],
)
def test_networks_and_shares_that_do_not_fit_are_refused(configs, shares, named):
    with pytest.raises(ValueError, match=named):
        average_weights([random_network(config) for config in configs], shares)


def test_the_command_keeps_the_task_and_refuses_another(tmp_path, capsys):
    files = [str(tmp_path / f"{seed}.safetensors") for seed in range(3)]
    for seed, task in enumerate(("restore-mild", "restore-mild", "color")):
        save_checkpoint(random_network(TINY, seed), files[seed], notes={"task": task})
    target = tmp_path / "mean.safetensors"
    for shares in ([], ["--shares", "1", "2"]):
        assert main([str(target), *files[:2], *shares]) == 0
        assert read_notes(target)["task"] == "restore-mild"
        expected = average_weights([load_checkpoint(f) for f in files[:2]], [1, 2] if shares else None)
        for name, tensor in load_checkpoint(target).state_dict().items():
            torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-3, atol=1e-4)
    capsys.readouterr()
    for words, named in (
        ([str(target), *files], "different tasks"),
        ([str(target), files[0], "nothing.safetensors"], "nothing.safetensors"),
        ([str(tmp_path / "mean.pt"), *files[:2]], "mean.pt"),
    ):
        assert main(words) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and named in printed
