"""The parts of training: losses, augmentation, seeding, faces, identity."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, Gpen, GpenConfig
from gpenlib.architecture.checkpoints import seed_discriminator, seed_generator, seed_gpen
from gpenlib.data.faces import open_folder
from gpenlib.settings import Augmentation, Jitter
from gpenlib.train.batches import BatchOrder, TrainingFaces, jittered
from gpenlib.train.objectives import (
    TRANSFORMATIONS,
    Augment,
    FadeIn,
    IdentityError,
    IdentityLoss,
    discriminator_loss,
    feature_matching,
    nonsaturating_loss,
    path_lengths,
    r1_penalty,
)
from tests.train.conftest import MakeConfig

SMALL, LARGE = GpenConfig(64, 64, 1, 0.0625), GpenConfig(128, 128, 1, 0.0625)


def test_adversarial_losses_at_known_logits() -> None:
    zero = torch.zeros(3, 1)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert nonsaturating_loss(torch.full((2, 1), 20.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert nonsaturating_loss(torch.full((2, 1), -20.0)).item() == pytest.approx(20.0, abs=1e-6)


def test_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    weight = torch.randn(3, 4, 4)
    penalty = r1_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3))[:, None], torch.randn(5, 3, 4, 4))
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


def test_path_length_of_a_linear_generator() -> None:
    """images = a * w[:, :, :, None] gives J^T y = a y: mean squared length a^2 |y|^2 / layers."""
    torch.manual_seed(0)
    latents = torch.randn(4000, 1, 12, requires_grad=True)
    images = 3.0 * latents.view(4000, 3, 2, 2)
    lengths = path_lengths(images, latents)
    # |y|^2 has mean 12 / (2 * 2): twelve normal numbers, divided by the side.
    assert lengths.square().mean().item() == pytest.approx(9.0 * 12 / 4, rel=0.05)
    curved = path_lengths(latents.square().view(4000, 3, 2, 2), latents)
    assert curved.requires_grad  # its penalty trains the generator


def grown_discriminators() -> tuple[Discriminator, Discriminator]:
    torch.manual_seed(0)
    small, large = Discriminator(SMALL), Discriminator(LARGE)
    seed_discriminator(large, small)
    return small, large


def test_a_grown_discriminator_begins_as_the_small_one_and_ends_as_itself() -> None:
    small, large = grown_discriminators()
    judge = FadeIn(large, small.convs[0], levels=1)
    image = torch.rand(4, 3, 128, 128) * 2 - 1
    reduced = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(judge(image), small(reduced))
    judge.share = 0.5
    halfway = judge(image)
    judge.share = 1.0
    torch.testing.assert_close(judge(image), large(image))
    assert not torch.allclose(halfway, large(image)) and not torch.allclose(halfway, small(reduced))


def test_fading_in_trains_the_new_blocks_and_never_the_old_first_layer() -> None:
    small, large = grown_discriminators()
    judge = FadeIn(large, small.convs[0], levels=1)
    judge.share = 0.25
    judge(torch.rand(2, 3, 128, 128)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in large.convs[1].parameters())
    assert all(p.grad is None for p in small.convs[0].parameters())


def test_nothing_to_fade_in_is_the_discriminator_alone() -> None:
    _, large = grown_discriminators()
    image = torch.rand(2, 3, 128, 128)
    assert torch.equal(FadeIn(large)(image), large(image))


def test_feature_matching_is_zero_for_equal_features_and_trains_the_output_only() -> None:
    real = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, requires_grad=True)]
    assert feature_matching(real, real).item() == 0.0
    fake = [f.detach().add(2.0).requires_grad_(True) for f in real]
    loss = feature_matching(fake, real)
    assert loss.item() == pytest.approx(2.0)
    loss.backward()
    assert all(f.grad is not None for f in fake)
    assert all(f.grad is None for f in real)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_augmentations_change_each_image_on_its_own_and_pass_gradients(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32).repeat(6, 1, 1, 1).requires_grad_(True)
    changed = TRANSFORMATIONS[name](images)
    assert changed.shape == images.shape
    assert not torch.equal(changed[0], changed[1])
    changed.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_translation_moves_whole_pixels() -> None:
    torch.manual_seed(1)
    images = torch.zeros(8, 3, 32, 32)
    images[:, :, 16, 16] = 1.0
    moved = TRANSFORMATIONS["translation"](images)
    assert torch.equal(moved.sum(dim=(2, 3)), torch.ones(8, 3))
    places = {tuple(p.nonzero()[0].tolist()) for p in moved[:, 0]}
    assert len(places) > 1
    assert all(abs(y - 16) <= 4 and abs(x - 16) <= 4 for y, x in places)


def test_the_share_of_augmented_images_is_the_probability_and_adapts() -> None:
    torch.manual_seed(0)
    augment = Augment(Augmentation(policy=("color",), probability=0.25, target=0.6, adapt_images=1000))
    images = torch.rand(2000, 3, 2, 2)
    changed = (augment(images) != images).flatten(1).any(dim=1).float().mean()
    assert changed.item() == pytest.approx(0.25, abs=0.04)
    augment.adapt(0.9, 100)  # D too sure of the training faces
    assert augment.probability == pytest.approx(0.35)
    augment.adapt(0.1, 1000)
    assert augment.probability == 0.0
    assert augment(images) is images


def test_a_larger_prior_starts_with_the_picture_of_the_smaller() -> None:
    torch.manual_seed(0)
    small, large = Generator(SMALL), Generator(LARGE)
    seed_generator(large, small)
    z = torch.randn(2, 512)
    with torch.no_grad():
        a, b = small.eval()(z), large.eval()(z)
    # The new level adds nothing, so the larger picture is the smaller one, enlarged by the FIR filter.
    wanted = large.to_rgbs[-1].upsample(a)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(b, wanted)


def test_discriminator_blocks_keep_their_size_in_pixels() -> None:
    small, large = Discriminator(SMALL), Discriminator(LARGE)
    seed_discriminator(large, small)
    x = torch.randn(2, SMALL.channels(64), 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(large.convs[2](x), small.convs[1](x))


def test_encoder_stages_keep_their_size_in_pixels() -> None:
    small, large = Gpen(SMALL), Gpen(LARGE)
    seed_gpen(large, small)
    x = torch.randn(2, SMALL.channels(64), 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(large.encoder[2](x), small.encoder[1](x))
    assert torch.equal(small.final_linear[0].weight, large.final_linear[0].weight)  # type: ignore[arg-type]


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="128 px cannot seed a network of 64 px"):
        seed_generator(Generator(SMALL), Generator(LARGE))
    with pytest.raises(ValueError, match="another width"):
        seed_generator(Generator(SMALL), Generator(GpenConfig(64, 64, 1, 0.125)))


def test_faces_depend_on_step_and_position_alone(configure: MakeConfig, faces: Path) -> None:
    data = TrainingFaces(open_folder(faces), configure(task="inpaint", batch_size=4))
    given, truth = data[5, 1]
    again, _ = TrainingFaces(open_folder(faces), configure(task="inpaint", batch_size=4))[5, 1]
    assert torch.equal(given, again)
    assert not torch.equal(given, data[6, 1][0])
    assert given.shape == truth.shape == (3, 64, 64)
    held = {p.tobytes() for p in data.held_out[1]}
    seen = {data.source.names[i] for step in range(2) for i in range(data.count)}
    assert len(held) == 2
    assert not seen & set(data.source.names[data.count :])


def test_processes_share_a_batch_without_overlap() -> None:
    parts = [list(BatchOrder(3, 5, 6, rank, 3)) for rank in range(3)]
    assert sorted(s for part in parts for s in part[0]) == [(3, p) for p in range(6)]
    assert len(parts[0]) == 2


def test_jitter_stays_inside_its_ranges() -> None:
    rng = np.random.default_rng(0)
    image = np.tile(np.array([160, 120, 100], np.uint8), (32, 32, 1))
    plain = jittered(image, 16, Jitter(mirror=False), rng)
    assert np.array_equal(plain, image[:16, :16])
    spreads = [np.ptp(jittered(image, 16, Jitter(saturation=(1.2, 1.5)), rng)[0, 0]) for _ in range(50)]
    assert min(spreads) >= 60 * 1.2 - 1
    assert max(spreads) <= 60 * 1.5 + 1
    assert max(spreads) > 60 * 1.4


def test_sharpness_jitter_steepens_edges_and_nothing_else() -> None:
    image = np.full((16, 16, 3), 100, np.uint8)
    image[:, 8:] = 150
    steps = [
        np.ptp(jittered(image, 16, Jitter(sharpness=(0.5, 1.5)), np.random.default_rng(seed)).astype(int))
        for seed in range(20)
    ]
    # One pixel beside the edge, a Gaussian of one pixel takes 31 % of the step; half of all is overshoot.
    assert min(steps) >= 50 * (1 + 2 * 0.5 * 0.3) and max(steps) <= 50 * (1 + 2 * 1.5 * 0.32)
    assert len(set(steps)) > 5, "the amount is drawn"
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert np.array_equal(jittered(flat, 16, Jitter(sharpness=(1.0, 1.0)), np.random.default_rng(0)), flat)


class Embedding(nn.Module):
    """A stand-in for a face recogniser: channel means."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 3]."""
        return x.mean(dim=(2, 3))


def test_identity_loss_is_the_cosine_distance_of_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "recogniser.pt"
    torch.jit.script(Embedding()).save(str(path))  # type: ignore[no-untyped-call]
    loss = IdentityLoss(path, torch.device("cpu"), side=16)
    red, green = torch.zeros(2, 1, 3, 32, 32).unbind()
    red[:, 0], green[:, 1] = 1.0, 1.0
    assert loss(red, red).item() == pytest.approx(0.0, abs=1e-6)
    output = green.requires_grad_(True)
    distance = loss(output, red)
    assert distance.item() == pytest.approx(1.0, abs=1e-6)
    distance.backward()
    assert output.grad is not None


def test_recognisers_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no such face-recognition model"):
        IdentityLoss(tmp_path / "absent.pt", torch.device("cpu"))
    (tmp_path / "bad.pt").write_bytes(b"no model")
    with pytest.raises(IdentityError, match="not a TorchScript file"):
        IdentityLoss(tmp_path / "bad.pt", torch.device("cpu"))
