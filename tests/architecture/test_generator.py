import pytest
import torch

from gpenlib.architecture import Discriminator, Gpen, GpenConfig
from gpenlib.architecture.model import ModulatedConv2d, NoiseInjection

TINY = GpenConfig(64, 64, 1, 0.03125)
TINY_SR = GpenConfig(64, 128, 1, 0.03125)


def small_network(config=TINY):
    torch.manual_seed(0)
    model = Gpen(config)
    for module in model.modules():
        if isinstance(module, NoiseInjection):
            torch.nn.init.constant_(module.weight, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    return small_network()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_size": 500}, "in_size=500"),
        ({"in_size": 16}, "from 32 to 2048"),
        ({"out_size": 4096}, "out_size=4096"),
        ({"in_size": 512.0}, "in_size=512.0"),
        ({"in_size": 512, "out_size": 256}, "smaller than in_size"),
        ({"channel_multiplier": 0}, "channel_multiplier=0"),
        ({"channel_multiplier": 1.5}, "channel_multiplier=1.5"),
        ({"narrow": 0.0}, "narrow=0.0"),
        ({"narrow": -1.0}, "narrow=-1.0"),
        ({"narrow": 0.001}, "without channels"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        GpenConfig(**fields)


def test_config_is_a_plain_dictionary_and_back():
    config = GpenConfig(64, 256, 1, 0.5)
    assert GpenConfig(**config.to_dict()) == config


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024, 2048])
def test_every_size_has_the_channels_of_stylegan2(size):
    config = GpenConfig(size, size)
    with torch.device("meta"):
        model, critic = Gpen(config), Discriminator(config)
        output = model(torch.empty(2, 3, size, size))
        logits = critic(output)
    assert output.shape == (2, 3, size, size)
    assert logits.shape == (2, 1)
    assert len(model.encoder) == config.log_in - 1
    expected = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32, 2048: 16}
    for level, stage in zip(range(config.log_in, 1, -1), model.encoder, strict=True):
        assert stage[0][-1].bias.shape == (expected[2**level],)
    for index, level in enumerate(range(3, config.log_out + 1)):
        for conv in model.generator.convs[2 * index : 2 * index + 2]:
            assert conv.conv.weight.shape[1] == expected[2**level]
            assert conv.activate.bias.shape == (2 * expected[2**level],)


def test_512_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Gpen(GpenConfig())
    assert sum(p.numel() for p in model.parameters()) == 71_005_223


@pytest.mark.parametrize("impl", ["weights", "activations"])
@pytest.mark.parametrize("config", [TINY, TINY_SR])
def test_batch_size_is_free(impl, config):
    model = small_network(config).set_modulation(impl)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 3, config.out_size, config.out_size)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_differ(tiny):
    with torch.inference_mode():
        first, second = tiny(torch.stack((torch.zeros(3, 64, 64), torch.ones(3, 64, 64))))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, TINY_SR])
def test_modulations_agree_in_value_and_gradient(config):
    model = small_network(config)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    results = {}
    for impl in ("weights", "activations"):
        model.set_modulation(impl).zero_grad()
        output = model(image)
        output.square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results[impl] = (output.detach(), gradients)
    (output_w, grads_w), (output_a, grads_a) = results["weights"], results["activations"]
    torch.testing.assert_close(output_w, output_a, rtol=1e-4, atol=1e-5)
    assert len(grads_w) == len(grads_a) == len(list(model.parameters()))
    for ours, theirs in zip(grads_a, grads_w, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item() + 1e-9)


def test_demodulated_weights_have_unit_energy():
    torch.manual_seed(0)
    conv = ModulatedConv2d(64, 8, 3)
    x, w = torch.randn(1, 64, 32, 32), torch.randn(1, 512)
    with torch.inference_mode():
        y = conv(x, 5.0 * w)  # whatever the style, unit variance in gives unit variance out
    assert float(y[:, :, 1:-1, 1:-1].std()) == pytest.approx(1.0, abs=0.05)


def test_super_resolution_is_deterministic_in_eval_only():
    model = small_network(TINY_SR)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(image), model(image))
        model.train()
        assert not torch.equal(model(image), model(image))


def test_missing_noise_in_eval_is_zero():
    layer = NoiseInjection().eval()
    torch.nn.init.ones_(layer.weight)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x, None), torch.cat((x, torch.zeros_like(x)), dim=1))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 128)])
def test_other_inputs_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"expected \[N, 3, 64, 64\]"):
        tiny(torch.zeros(shape))


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_discriminator_takes_any_batch(batch):
    torch.manual_seed(0)
    critic = Discriminator(TINY)
    assert critic(torch.randn(batch, 3, 64, 64)).shape == (batch, 1)
