"""Interpolation, style mixing and truncation in a prior's latent space."""

import pytest
import torch

from gpenlib.architecture import Generator, GpenConfig
from gpenlib.architecture.inspect import (
    draw_latents,
    generate,
    interpolate,
    mean_latent,
    mix_styles,
    per_layer,
    to_pictures,
)
from gpenlib.architecture.model import NoiseInjection


@pytest.fixture(scope="module")
def prior() -> Generator:
    torch.manual_seed(0)
    prior = Generator(GpenConfig(64, 64, 1, 0.0625)).eval()
    for module in prior.modules():
        if isinstance(module, NoiseInjection):
            torch.nn.init.constant_(module.weight, 0.3)  # noise that is not the same for all would show
    return prior


def test_ends_of_a_walk_are_the_faces_of_its_latents(prior: Generator) -> None:
    walks = interpolate(prior, seed=3, rows=2, columns=4, truncation=0.8)
    assert walks.shape == (2, 4, 3, 64, 64)
    faces = generate(prior, per_layer(prior, draw_latents(prior, 4, 3, truncation=0.8)), seed=3)
    torch.testing.assert_close(walks[:, [0, -1]].flatten(0, 1), faces)
    assert (walks[0, 1] - walks[0, 0]).abs().mean() > 1e-4


def test_no_truncation_gives_the_generators_own_samples(prior: Generator) -> None:
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        noise = [m.expand(2, -1, -1, -1) for m in prior.noise_maps(1, 5)]
        wanted = prior(z, noise)
    faces = generate(prior, per_layer(prior, draw_latents(prior, 2, 5)), seed=5)
    torch.testing.assert_close(faces, wanted)


def test_noise_has_a_strength_and_without_it_seeds_do_not_matter(prior: Generator) -> None:
    latents = per_layer(prior, draw_latents(prior, 1, 0))
    with torch.inference_mode():
        silent = prior.synthesis(latents)  # evaluation takes zeros where there is no noise
    torch.testing.assert_close(generate(prior, latents, seed=1, noise=0.0), silent)
    half, full = (generate(prior, latents, seed=1, noise=noise) for noise in (0.5, 1.0))
    assert 0 < (half - silent).abs().mean() < (full - silent).abs().mean()
    walk = interpolate(prior, seed=3, rows=1, columns=2, noise=0.0)
    ends = generate(prior, per_layer(prior, draw_latents(prior, 2, 3)), seed=9, noise=0.0)
    torch.testing.assert_close(walk[0], ends)


def test_truncation_0_is_the_mean_face_for_all(prior: Generator) -> None:
    walks = interpolate(prior, seed=1, rows=2, columns=2, truncation=0.0).flatten(0, 1)
    mean = generate(prior, per_layer(prior, mean_latent(prior)), seed=1)
    for face in walks:
        torch.testing.assert_close(face, mean, atol=1e-5, rtol=1e-4)


def test_pure_styles_give_the_pure_sources(prior: Generator) -> None:
    layers = prior.config.num_latents
    fine = mix_styles(prior, seed=2, rows=2, columns=3, crossover=0)
    coarse = mix_styles(prior, seed=2, rows=2, columns=3, crossover=layers)
    assert fine.mixed.shape == (2, 3, 3, 64, 64)
    for row in range(2):
        torch.testing.assert_close(fine.mixed[row], fine.top)
    for column in range(3):
        torch.testing.assert_close(coarse.mixed[:, column], coarse.left)
    torch.testing.assert_close(fine.left, coarse.left)
    half = mix_styles(prior, seed=2, rows=2, columns=3, crossover=layers // 2).mixed
    assert (half - fine.mixed).abs().mean() > 1e-4 and (half - coarse.mixed).abs().mean() > 1e-4


def test_out_of_range_is_explained(prior: Generator) -> None:
    with pytest.raises(ValueError, match="crossover=99: allowed are 0 to 10"):
        mix_styles(prior, 0, 1, 1, crossover=99)
    with pytest.raises(ValueError, match="columns=1"):
        interpolate(prior, 0, rows=1, columns=1)


def test_pictures_keep_the_grid() -> None:
    images = torch.full((2, 3, 3, 8, 8), -1.0)
    images[1, 2, 0] = 1.0
    pictures = to_pictures(images)
    assert pictures.shape == (2, 3, 8, 8, 3) and pictures.dtype == "uint8"
    assert pictures[1, 2, 4, 4].tolist() == [255, 0, 0]
    assert not pictures[0].any()
