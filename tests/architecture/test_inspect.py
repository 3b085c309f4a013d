import pytest
import torch

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.inspect import record_forward, strongest_channels
from gpenlib.architecture.model import NoiseInjection


@pytest.fixture(scope="module", params=[(64, 64), (64, 128)], ids=["same size", "super-resolution"])
def recorded(request):
    torch.manual_seed(0)
    model = Gpen(GpenConfig(*request.param, channel_multiplier=1, narrow=0.0625)).eval()
    for module in model.modules():
        if isinstance(module, NoiseInjection):
            torch.nn.init.constant_(module.weight, 0.3)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    return model, image, record_forward(model, image)


def test_shapes(recorded):
    model, _, seen = recorded
    config = model.config
    into = [2**level for level in range(2, config.log_in + 1)]
    out = [2**level for level in range(2, config.log_out + 1)]
    assert {side: tuple(x.shape) for side, x in seen.encoder.items()} == {
        side: (config.channels(side), side, side) for side in into
    }
    assert {side: tuple(x.shape) for side, x in seen.decoder.items()} == {
        side: (config.channels(side), side, side) for side in out
    }
    assert sorted(seen.rgb) == sorted(seen.rgb_added) == out
    assert all(x.shape == (3, side, side) for side, x in seen.rgb.items())


def test_values_are_those_of_the_forward_pass(recorded):
    model, image, seen = recorded
    with torch.inference_mode():
        output, (_, features) = model(image), model.encode(image)
    assert torch.equal(seen.output, output)
    assert torch.equal(seen.rgb[model.config.out_size], output[0])
    for feature in features:
        assert torch.equal(seen.encoder[feature.shape[-1]], feature[0])


def test_the_image_is_the_sum_of_what_the_levels_add(recorded):
    model, _, seen = recorded
    image = seen.rgb_added[4][None]
    for index, to_rgb in enumerate(model.generator.to_rgbs):
        image = to_rgb.upsample(image) + seen.rgb_added[8 * 2**index][None]
    torch.testing.assert_close(image, seen.output, rtol=1e-4, atol=1e-5)


def test_model_is_left_as_it_was(recorded):
    model, image, _ = recorded
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="expected"):
        record_forward(model, torch.zeros(1, 3, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())
    assert not model.training
    assert image.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (3, 64, 64)])
def test_one_image_at_a_time(recorded, shape):
    with pytest.raises(ValueError, match="one image"):
        record_forward(recorded[0], torch.zeros(shape))


def test_strongest_channels():
    flat, weak, strong = torch.full((4, 4), 9.0), torch.eye(4), -5.0 * torch.eye(4)
    features = torch.stack((flat, weak, strong))
    assert torch.equal(strongest_channels(features, 2), torch.stack((strong, weak)))
    assert strongest_channels(features, 7).shape == (3, 4, 4)
