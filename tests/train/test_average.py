"""Averaged weights: the mean of networks of one kind, and nothing else."""

import pytest
import torch

from gpenlib.architecture import GpenConfig, load_checkpoint, read_notes, save_checkpoint
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.train.average import average_weights, main


def test_every_weight_is_the_mean():
    first, second, third = (random_network(TINY, seed) for seed in range(3))
    mean = average_weights([first, second, third])
    assert mean.config == TINY and not mean.training
    for (name, found), *own in zip(
        mean.state_dict().items(), *(m.state_dict().values() for m in (first, second, third)), strict=True
    ):
        torch.testing.assert_close(found, sum(own) / 3, msg=name)


def test_shares_count_by_their_ratio():
    first, second = (random_network(TINY, seed) for seed in range(2))
    mean = average_weights([first, second], shares=[3, 1])
    for (name, found), a, b in zip(
        mean.state_dict().items(), first.state_dict().values(), second.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, 0.75 * a + 0.25 * b, msg=name)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, 1.0, 1.0]])
def test_shares_that_do_not_fit_are_refused(shares):
    with pytest.raises(ValueError, match="one positive number for each of 2"):
        average_weights([random_network(TINY, seed) for seed in range(2)], shares)


def test_one_network_or_networks_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match="1 networks.*at least two"):
        average_weights([random_network(TINY)])
    other = random_network(GpenConfig(64, 64, 2, 0.0625))
    with pytest.raises(ValueError, match="channel_multiplier=2"):
        average_weights([random_network(TINY), other])


def test_the_command_keeps_the_task_and_refuses_another(tmp_path, capsys):
    files = []
    for seed, task in enumerate(("restore-mild", "restore-mild", "color")):
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_checkpoint(random_network(TINY, seed), files[-1], notes={"task": task})
    target = tmp_path / "mean.safetensors"
    main([str(target), *files[:2]])
    assert read_notes(target)["task"] == "restore-mild"
    expected = average_weights([load_checkpoint(file) for file in files[:2]])
    for name, tensor in load_checkpoint(target).state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-3, atol=1e-4)
    main([str(target), *files[:2], "--shares", "1", "2"])
    bias = "to_rgbs.0.bias"
    own = [load_checkpoint(file).generator.state_dict()[bias] for file in files[:2]]
    found = load_checkpoint(target).generator.state_dict()[bias]
    torch.testing.assert_close(found, own[0] / 3 + 2 * own[1] / 3, rtol=1e-3, atol=1e-4)
    for wrong, words in (
        (files, "different tasks"),
        ([files[0], "nothing.safetensors"], "nothing.safetensors does not exist"),
    ):
        with pytest.raises(SystemExit):
            main([str(target), *wrong])
        assert words in capsys.readouterr().err
