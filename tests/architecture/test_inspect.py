"""Captured maps, walks through a prior's latents, and costs against a network that really runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpenlib.architecture import Gpen, GpenConfig, inspect
from gpenlib.architecture.checkpoints import random_network
from gpenlib.architecture.model import Blur, EqualConv2d, EqualLinear, ModulatedConv2d, Upsample

SMALL, SMALL_SR = GpenConfig(64, 64, 1, 0.0625), GpenConfig(64, 128, 1, 0.0625)
BOTH = pytest.mark.parametrize("config", [SMALL, SMALL_SR], ids=["same size", "super-resolution"])
CONFIGS = [GpenConfig(), GpenConfig(2048, 2048), GpenConfig(256, 256, 1, 0.5), GpenConfig(64, 256, 2, 0.25)]


@pytest.fixture(scope="module", params=[SMALL, SMALL_SR], ids=["same size", "super-resolution"])
def recorded(request):
    model = random_network(request.param)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model, image, inspect.record_forward(model, image)


def test_capture_gives_outputs_or_what_is_asked_for_and_removes_its_hooks(recorded):
    model, image, _ = recorded
    names = ["final_linear", "ecd1", "ecd1.0.0"]
    with torch.no_grad(), inspect.capture(model, names) as outputs:
        assert outputs == {}
        model(image)
    assert list(outputs) == ["ecd1.0.0", "ecd1", "final_linear"]  # as they finish
    assert torch.equal(outputs["ecd1"], model.encode(image)[1][-2])
    shapes = inspect.capture(model, names, lambda name, inputs, output: (name, inputs[0].shape))
    with torch.no_grad(), shapes as seen:
        model(image)
    assert seen["ecd1"] == ("ecd1", (1, model.config.channels(64), 64, 64))
    with pytest.raises(AttributeError, match="nothing"), inspect.capture(model, ["ecd1", "nothing"]):
        pass
    with pytest.raises(ValueError, match="expected"), inspect.capture(model, names):
        model(torch.zeros(1, 3, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())
    for shape in [(2, 3, 64, 64), (3, 64, 64)]:
        with pytest.raises(ValueError, match="one image"):
            inspect.record_forward(model, torch.zeros(shape))


def test_shapes_and_values_are_those_of_the_forward_pass(recorded):
    model, image, seen = recorded
    config = model.config
    into, out = ([2**level for level in range(2, log + 1)] for log in (config.log_in, config.log_out))
    shapes = {side: (config.channels(side), side, side) for side in out}
    assert {side: tuple(x.shape) for side, x in seen.encoder.items()} == {side: shapes[side] for side in into}
    assert {side: tuple(x.shape) for side, x in seen.decoder.items()} == shapes
    assert list(seen.rgb) == list(seen.rgb_added) == out
    assert all(x.shape == (3, side, side) for side, x in seen.rgb.items())
    with torch.inference_mode():
        output, (_, features) = model(image), model.encode(image)
    assert torch.equal(seen.output, output)
    assert torch.equal(seen.rgb[model.config.out_size], output[0])
    for feature in features:
        assert torch.equal(seen.encoder[feature.shape[-1]], feature[0])
    grown = seen.rgb_added[4][None]
    for index, to_rgb in enumerate(model.generator.to_rgbs):
        grown = to_rgb.upsample(grown) + seen.rgb_added[8 * 2**index][None]
    torch.testing.assert_close(grown, seen.output, rtol=1e-4, atol=1e-5)


def test_strongest_channels():
    flat, weak, strong = torch.full((4, 4), 9.0), torch.eye(4), -5.0 * torch.eye(4)
    features = torch.stack((flat, weak, strong))
    assert torch.equal(inspect.strongest_channels(features, 2), torch.stack((strong, weak)))
    assert inspect.strongest_channels(features, 7).shape == (3, 4, 4)


@pytest.fixture(scope="module")
def prior():
    return random_network(SMALL).generator  # its noise weights are not 0: noise that differs would show


def faces(prior, count, seed, noise=1.0, noise_seed=None, **how):
    latents = inspect.per_layer(prior, inspect.draw_latents(prior, count, seed, **how))
    return inspect.generate(prior, latents, seed if noise_seed is None else noise_seed, noise)


def test_ends_of_a_walk_are_the_faces_of_its_latents(prior):
    walks = inspect.interpolate(prior, seed=3, rows=2, columns=4, truncation=0.8)
    assert walks.shape == (2, 4, 3, 64, 64)
    torch.testing.assert_close(walks[:, [0, -1]].flatten(0, 1), faces(prior, 4, 3, truncation=0.8))
    assert (walks[0, 1] - walks[0, 0]).abs().mean() > 1e-4
    with pytest.raises(ValueError, match="columns=1"):
        inspect.interpolate(prior, 0, rows=1, columns=1)


def test_noise_has_a_strength_and_without_it_seeds_do_not_matter(prior):
    latents = inspect.per_layer(prior, inspect.draw_latents(prior, 1, 0))
    with torch.inference_mode():
        silent = prior.synthesis(latents)  # evaluation takes zeros where there is no noise
    torch.testing.assert_close(inspect.generate(prior, latents, seed=1, noise=0.0), silent)
    half, full = (inspect.generate(prior, latents, seed=1, noise=noise) for noise in (0.5, 1.0))
    assert 0 < (half - silent).abs().mean() < (full - silent).abs().mean()
    walk = inspect.interpolate(prior, seed=3, rows=1, columns=2, noise=0.0)
    torch.testing.assert_close(walk[0], faces(prior, 2, 3, noise=0.0, noise_seed=9))


def test_truncation_1_gives_the_generators_own_samples_and_0_the_mean_face(prior):
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = prior(z, [m.expand(2, -1, -1, -1) for m in prior.noise_maps(1, 5)])
    torch.testing.assert_close(faces(prior, 2, 5), expected)
    mean = inspect.generate(prior, inspect.per_layer(prior, inspect.mean_latent(prior)), seed=5)
    for face in faces(prior, 2, 5, truncation=0.0):
        torch.testing.assert_close(face, mean, atol=1e-5, rtol=1e-4)


def test_pure_styles_give_the_pure_sources(prior):
    layers = prior.config.num_latents
    fine, coarse, half = (
        inspect.mix_styles(prior, seed=2, rows=2, columns=3, crossover=crossover)
        for crossover in (0, layers, layers // 2)
    )
    assert fine.mixed.shape == (2, 3, 3, 64, 64)
    torch.testing.assert_close(fine.mixed, fine.top[None].expand_as(fine.mixed))
    torch.testing.assert_close(coarse.mixed, coarse.left[:, None].expand_as(coarse.mixed))
    torch.testing.assert_close(fine.left, coarse.left)
    for pure in (fine, coarse):
        assert (half.mixed - pure.mixed).abs().mean() > 1e-4
    with pytest.raises(ValueError, match="crossover=99: allowed are 0 to 10"):
        inspect.mix_styles(prior, 0, 1, 1, crossover=99)


def test_pictures_keep_the_grid():
    images = torch.full((2, 3, 3, 8, 8), -1.0)
    images[1, 2, 0] = 1.0
    pictures = inspect.to_pictures(images)
    assert pictures.shape == (2, 3, 8, 8, 3) and pictures.dtype == "uint8"
    assert pictures[1, 2, 4, 4].tolist() == [255, 0, 0]
    assert not pictures[0].any()


def innermost(name, rows):
    return max((row for row in rows if f"{name}.".startswith(f"{row}.")), key=len)


@BOTH
def test_every_block_is_what_the_running_network_does(config):
    model = Gpen(config).eval()
    shapes, macs = {}, {}

    def look(name, inputs, output):
        shapes[name] = tuple(output.shape)
        module = model.get_submodule(name)
        if isinstance(module, EqualLinear):
            macs[name] = module.weight.numel()
        elif isinstance(module, EqualConv2d):
            macs[name] = module.weight.numel() * output.shape[-2:].numel()
        elif isinstance(module, ModulatedConv2d):  # transposed: every input position meets every weight
            macs[name] = module.weight.numel() * inputs[0].shape[-2:].numel()
        elif isinstance(module, Blur):  # or Upsample, which is one
            macs[name] = 16 * (inputs[0] if isinstance(module, Upsample) else output).numel()

    names = [name for name, _ in model.named_modules() if name]
    with torch.inference_mode(), inspect.capture(model, names, look):
        model(torch.zeros(1, 3, config.in_size, config.in_size))
    blocks = inspect.block_costs(config)
    parameters, counted = ({block.name: 0 for block in blocks} for _ in range(2))
    for name, parameter in model.named_parameters():
        parameters[innermost(name, parameters)] += parameter.numel()
    for name, value in macs.items():
        counted[innermost(name, counted)] += value
    assert {block.name: block.parameters for block in blocks} == parameters
    assert {block.name: block.macs for block in blocks} == counted
    for block in blocks:
        shape = shapes[block.name]
        assert (block.channels, block.resolution) == (shape[1], shape[-1] if len(shape) == 4 else 1)
        assert block.activation_bytes == 4 * torch.Size(shape).numel(), block.name


@pytest.mark.parametrize("config", [SMALL, SMALL_SR, *CONFIGS], ids=str)
def test_blocks_and_stages_add_up(config):
    blocks, total = inspect.block_costs(config), inspect.total_cost(config)
    stages = inspect.stage_costs(blocks)
    for field in ("parameters", "macs", "activation_bytes"):
        sums = {sum(getattr(row, field) for row in rows) for rows in (blocks, stages)}
        assert sums == {getattr(total, field)}
    with torch.device("meta"):
        model = Gpen(config).set_modulation("weights").requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, config.in_size, config.in_size))
    assert total.parameters == sum(p.numel() for p in model.parameters()) == total.weight_bytes // 4
    assert 2 * total.macs == counter.get_total_flops()
    assert len(stages) == (config.log_in - 1) + 2 + (config.log_out - 1)
    widest = {stage.name: (stage.resolution, stage.channels) for stage in stages}
    assert widest[f"decoder {config.out_size} px"] == (config.out_size, 2 * config.channels(config.out_size))
    assert widest[f"encoder {config.in_size} px"] == (config.in_size, config.channels(config.in_size))


def test_the_published_512_network():
    total = inspect.total_cost(GpenConfig())
    assert total.parameters == 71_005_223
    assert total.macs == 138_097_875_712
    assert total.gflops == pytest.approx(276.2, rel=1e-4)
    assert total.peak_activation_bytes == 269_221_888
    assert inspect.eager_peak_bytes(GpenConfig()) == pytest.approx(638.4 * 2**20, rel=0.01)


def test_live_bytes_follows_tensors_views_and_frees():
    parameter = torch.zeros(256)
    with inspect.LiveBytes([parameter]) as memory:
        assert parameter.view(16, 16).sum().numel() == 1  # a view of what exists, and a scalar that is gone
        assert memory.live == 0
        a = torch.zeros(1024)
        b = a.view(32, 32)[1:]  # shares the storage
        assert memory.live == 4096
        c = a + 1
        del a
        assert memory.live == 8192  # b still holds it
        del b
        assert memory.live == 4096
        del c
    assert memory.live == 0
    assert memory.peak == 8192


@pytest.mark.parametrize("impl", ["weights", "activations"])
@BOTH
def test_eager_peak_on_meta_is_that_of_a_real_run(config, impl):
    model = Gpen(config).eval().set_modulation(impl)
    image = torch.zeros(1, 3, config.in_size, config.in_size)
    with torch.no_grad(), inspect.LiveBytes([*model.parameters(), *model.buffers()]) as memory:
        memory.track(image)
        model(image)
    assert inspect.eager_peak_bytes(config, impl) == memory.peak


def test_encoder_features_wait_for_their_decoder_level():
    config = GpenConfig()
    steps = {step.name: step for step in inspect.live_activations(config)}
    sizes = {side: 4 * side**2 * config.channels(side) for side in (4, 8, 16, 32, 64, 128, 256, 512)}
    assert steps["ecd0"].skip_bytes == sizes[512]
    assert steps["ecd7"].skip_bytes == steps["generator.conv1"].skip_bytes == sum(sizes.values())
    assert steps["generator.to_rgb1"].skip_bytes == sum(sizes.values()) - sizes[4]
    assert steps["generator.convs.13"].skip_bytes == sizes[512]
    assert steps["generator.to_rgbs.6"].skip_bytes == 0
    maps, image = 4 * 512**2 * 64, 4 * 3 * 256**2
    assert steps["generator.convs.12"].working_bytes == 3 * maps + image  # upsampled, and twice as wide out
    assert steps["generator.convs.13.conv"].working_bytes == 3 * maps + image
    assert steps["generator.to_rgbs.6"].working_bytes == 2 * maps + 2 * 4 * image
    steps = {step.name: step for step in inspect.live_activations(SMALL_SR)}
    assert steps["generator.convs.7"].skip_bytes == 4 * 64**2 * SMALL_SR.channels(64)
    assert steps["generator.convs.9"].skip_bytes == 0  # above the input the encoder has no features
