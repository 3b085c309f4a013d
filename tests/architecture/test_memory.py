import pytest
import torch

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.inspect import (
    LiveBytes,
    block_costs,
    eager_peak_bytes,
    live_activations,
    total_cost,
)

SMALL = GpenConfig(64, 64, 1, 0.0625)
SMALL_SR = GpenConfig(64, 128, 1, 0.0625)
MIB = 2**20


def test_live_bytes_follows_tensors_views_and_frees():
    parameter = torch.zeros(256)
    with LiveBytes([parameter]) as memory:
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
@pytest.mark.parametrize("config", [SMALL, SMALL_SR], ids=["same size", "super-resolution"])
def test_eager_peak_on_meta_is_that_of_a_real_run(config, impl):
    model = Gpen(config).eval().set_modulation(impl)
    image = torch.zeros(1, 3, config.in_size, config.in_size)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as memory:
        memory.track(image)
        model(image)
    assert eager_peak_bytes(config, impl) == memory.peak


def test_eager_peak_of_the_512_network():
    assert eager_peak_bytes(GpenConfig()) == pytest.approx(638.4 * MIB, rel=0.01)


@pytest.mark.parametrize("size", [64, 256, 512, 1024, 2048])
def test_peak_lies_between_its_bounds(size):
    config = GpenConfig(size, size)
    peak = total_cost(config).peak_activation_bytes
    largest = max(block.activation_bytes for block in block_costs(config))
    assert 2 * largest <= peak <= eager_peak_bytes(config) <= total_cost(config).activation_bytes * 4


def test_encoder_features_wait_for_their_decoder_level():
    config = GpenConfig()
    steps = {step.name: step for step in live_activations(config)}
    sizes = {side: 4 * side**2 * config.channels(side) for side in (4, 8, 16, 32, 64, 128, 256, 512)}
    assert steps["ecd0"].skip_bytes == sizes[512]
    assert steps["ecd7"].skip_bytes == sum(sizes.values())
    assert steps["generator.conv1"].skip_bytes == sum(sizes.values())
    assert steps["generator.to_rgb1"].skip_bytes == sum(sizes.values()) - sizes[4]
    assert steps["generator.convs.13"].skip_bytes == sizes[512]
    assert steps["generator.to_rgbs.6"].skip_bytes == 0


def test_working_set_of_the_widest_steps():
    steps = {step.name: step for step in live_activations(GpenConfig())}
    maps, image = 4 * 512**2 * 64, 4 * 3 * 256**2
    assert steps["generator.convs.12"].working_bytes == 3 * maps + image  # upsampled, and twice as wide out
    assert steps["generator.convs.13.conv"].working_bytes == 3 * maps + image
    assert steps["generator.to_rgbs.6"].working_bytes == 2 * maps + 2 * 4 * image


def test_super_resolution_has_no_features_above_its_input():
    steps = {step.name: step for step in live_activations(SMALL_SR)}
    assert steps["generator.convs.7"].skip_bytes == 4 * 64**2 * SMALL_SR.channels(64)
    assert steps["generator.convs.9"].skip_bytes == 0
