"""The deploy form computes what the training form computes, with constant convolution weights."""

import copy

import pytest
import torch
from torch import nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.checkpoints import random_network
from gpenlib.architecture.model import ModulatedConv2d
from gpenlib.export import deploy_form
from gpenlib.export.deploy import StyleScale
from gpenlib.export.graphs import assert_parity, example_input

TOLERANCE = 5e-5  # of the standard deviation; two orders of summation of float32 differ by about 1e-5
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
CONFIGS = {
    "32": GpenConfig(32, 32, 1, 0.0625),
    "64": GpenConfig(64, 64, 1, 0.0625),
    "64 to 128": GpenConfig(64, 128, 1, 0.0625),
    "64 to 256": GpenConfig(64, 256, 1, 0.03125),
    "128, multiplier 2": GpenConfig(128, 128, 2, 0.03125),
}


def outputs(model: nn.Module, image: torch.Tensor):
    with torch.inference_mode():
        return model(image).numpy()


def scale_styles(model: Gpen, factor: float) -> Gpen:
    """Multiply the styles of every modulated layer."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for module in scaled.modules():
            if isinstance(module, ModulatedConv2d):
                module.modulation.weight *= factor
                module.modulation.bias *= factor
    return scaled


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def network(request):
    return random_network(request.param, seed=3)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_training_form(network, batch):
    image = example_input(network.config, batch)
    expected = outputs(network, image)
    assert expected.shape == (batch, 3, network.config.out_size, network.config.out_size)
    assert_parity(expected, outputs(deploy_form(network), image), "deploy form", TOLERANCE)


def test_images_of_a_batch_do_not_mix(tiny_deploy):
    batch = example_input(tiny_deploy.config, 3)
    together = outputs(tiny_deploy, batch)
    alone = [outputs(tiny_deploy, image[None])[0] for image in batch]
    for one, other in zip(together, alone, strict=True):
        assert_parity(other, one, "batch", TOLERANCE)


@pytest.mark.parametrize("factor", [1e3, 1e-3, 1e-6])
def test_equals_the_training_form_with_extreme_styles(tiny_model, factor):
    # At 1e-6 the epsilon of demodulation outweighs the styles, so it must have followed their scale.
    scaled = scale_styles(tiny_model, factor)
    image = example_input(scaled.config)
    assert_parity(outputs(scaled, image), outputs(deploy_form(scaled), image), "scaled styles", TOLERANCE)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e-3])
def test_convolutions_see_styles_of_unit_size(tiny_model, factor):
    deploy = deploy_form(scale_styles(tiny_model, factor))
    directions = []
    for module in deploy.modules():
        if isinstance(module, StyleScale):
            module.register_forward_hook(lambda _, __, result: directions.append(result[0]))
    outputs(deploy, example_input(deploy.config, 2))
    assert len(directions) == sum(isinstance(m, ModulatedConv2d) for m in tiny_model.modules())
    for direction in directions:
        assert torch.allclose(direction.abs().amax(dim=1), torch.ones(2))


def test_an_all_zero_style_stays_finite(tiny_model):
    silent = copy.deepcopy(tiny_model)
    with torch.no_grad():
        silent.generator.convs[2].conv.modulation.weight.zero_()
        silent.generator.convs[2].conv.modulation.bias.zero_()
    image = example_input(silent.config)
    assert_parity(outputs(silent, image), outputs(deploy_form(silent), image), "zero style", TOLERANCE)


def test_every_convolution_has_constant_weights(tiny_deploy, monkeypatch):
    constants = {parameter.data_ptr() for parameter in tiny_deploy.parameters()}
    seen = []

    def recorded(original):
        def call(x, weight, *rest, **options):
            seen.append(weight.data_ptr())
            return original(x, weight, *rest, **options)

        return call

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(nn.functional, name, recorded(getattr(nn.functional, name)))
    outputs(tiny_deploy, example_input(tiny_deploy.config))
    convolutions = [module for module in tiny_deploy.modules() if isinstance(module, CONVOLUTIONS)]
    assert len(seen) == len(convolutions) == len(set(seen))
    assert set(seen) <= constants


def test_is_a_frozen_copy(tiny_model):
    model = copy.deepcopy(tiny_model).train()
    before = copy.deepcopy(model.state_dict())
    deploy = deploy_form(model)
    assert model.training and not any(module.training for module in deploy.modules())
    assert not any(parameter.requires_grad for parameter in deploy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    image = example_input(deploy.config)
    expected = outputs(deploy, image)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (outputs(deploy, image) == expected).all()


def test_decoder_convolutions_keep_their_names(tiny_model, tiny_deploy):
    modulated = {name for name, module in tiny_model.named_modules() if isinstance(module, ModulatedConv2d)}
    plain = {name for name, module in tiny_deploy.named_modules() if isinstance(module, CONVOLUTIONS)}
    assert modulated and modulated <= plain


def test_refuses_another_module(tiny_deploy):
    with pytest.raises(TypeError, match="takes a Gpen, not DeployGpen"):
        deploy_form(tiny_deploy)
