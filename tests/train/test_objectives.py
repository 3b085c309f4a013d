"""The parts of training: losses, augmentation, growing, seeding, identity."""

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, Gpen, GpenConfig
from gpenlib.architecture.checkpoints import (
    CheckpointError,
    open_skips,
    seed_discriminator,
    seed_generator,
    seed_gpen,
)
from gpenlib.architecture.model import FusedLeakyReLU, fir_kernel, upfirdn2d
from gpenlib.data.faces import embedded_faces
from gpenlib.images import to_tensor
from gpenlib.metrics import detail, psnr
from gpenlib.train import objectives
from gpenlib.train.config import Augmentation
from gpenlib.train.objectives import TRANSFORMATIONS, FadeIn, IdentityLoss, TrainingError
from gpenlib.train.trainer import Trainer
from tests.train.conftest import CONTENT_ONLY, LARGE, SMALL, MakeConfig


def test_adversarial_losses_at_known_logits() -> None:
    zero, sure = torch.zeros(3, 1), torch.full((2, 1), 20.0)
    assert objectives.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert objectives.nonsaturating_loss(sure).item() == pytest.approx(0.0, abs=1e-6)
    assert objectives.nonsaturating_loss(-sure).item() == pytest.approx(20.0, abs=1e-6)


def test_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    weight, real = torch.randn(3, 4, 4), torch.randn(5, 3, 4, 4)
    penalty = objectives.r1_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3))[:, None], real)
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


def test_path_length_of_a_linear_generator() -> None:
    """images = a * w[:, :, :, None] gives J^T y = a y: mean squared length a^2 |y|^2 / layers."""
    torch.manual_seed(0)
    latents = torch.randn(4000, 1, 12, requires_grad=True)
    lengths = objectives.path_lengths(3.0 * latents.view(4000, 3, 2, 2), latents)
    # |y|^2 has mean 12 / (2 * 2): twelve normal numbers, divided by the side.
    assert lengths.square().mean().item() == pytest.approx(9.0 * 12 / 4, rel=0.05)
    curved = objectives.path_lengths(latents.square().view(4000, 3, 2, 2), latents)
    assert curved.requires_grad  # its penalty trains the generator


def test_chroma_may_vary_where_the_truth_does_and_where_luma_has_an_edge() -> None:
    grey = torch.zeros(1, 3, 64, 64)
    colour = torch.tensor([0.587, -0.299, 0.0]).view(1, 3, 1, 1)  # without luma
    red = grey.clone()
    red[..., 32:] += colour
    edge = grey.clone()
    edge[..., 32:] = 1.0
    excess = objectives.excess_of_chroma
    assert excess(red, red) == excess(grey, red) == 0, "neither the truth's colour nor the want of it costs"
    blotch = excess(red, grey)
    assert blotch > 0 and excess(2 * red, grey) == pytest.approx(2 * blotch.item())
    assert excess(red + edge, edge) < 1e-6 * blotch, "across an edge colours may differ"
    given = red.clone().requires_grad_(True)
    excess(given, grey).backward()
    assert (
        given.grad is not None and given.grad[..., :16].abs().max() == 0 < given.grad[..., 31:33].abs().max()
    )
    passage = grey + colour * torch.linspace(0, 1, 64)
    assert excess(passage, grey) > 0.5 * blotch, "a wall that slowly changes its colour costs, too"
    assert excess(red[..., 24:40, 24:40], grey[..., :16, :16]).isfinite(), "pictures of few squares"


def test_contrast_of_chroma_sees_lips_and_no_tint_of_the_whole() -> None:
    torch.manual_seed(0)
    face = torch.rand(1, 3, 64, 64) - 0.5
    tint = torch.tensor([0.2, 0.0, -0.1]).view(1, 3, 1, 1)
    lips = torch.zeros_like(face)
    lips[..., 0, 40:44, 28:36] = 0.3  # red
    contrast = objectives.contrast_of_chroma
    assert contrast(face, face) == 0 and contrast(face + tint, face) < 1e-6, "one tint has no contrast"
    assert contrast(face + 0.1, face) < 1e-6, "nor has luma"
    faint = contrast(face, face + lips)
    assert faint > 0 and contrast(face, face + 2 * lips) > 2 * faint
    smooth = torch.zeros_like(face)
    assert contrast(smooth, lips) > 5 * contrast(lips, smooth), "what the truth has weighs more"


def test_mean_decibels_is_psnr_and_counts_each_picture_alike() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(60, 200, (2, 32, 32, 3), dtype=np.uint8)
    output = (truth + np.array([2, 40], dtype=np.uint8)[:, None, None, None]).astype(np.uint8)
    scores = [psnr(a, b) for a, b in zip(output, truth, strict=True)]
    a, b = (torch.from_numpy(to_tensor(list(pictures))) for pictures in (output, truth))
    range_of_two = 20 * math.log10(2)  # the loss sees pictures in [-1, 1]
    assert objectives.mean_decibels(a, b).item() == pytest.approx(range_of_two - np.mean(scores), abs=0.02)
    given = a.clone().requires_grad_(True)
    objectives.mean_decibels(given, b).backward()
    assert given.grad is not None
    good, bad = (float(((a - b)[i] * given.grad[i]).sum()) for i in (0, 1))
    assert good == pytest.approx(bad, rel=0.02), "a tenth off either's error is worth the same"
    assert torch.isfinite(objectives.decibels(b, b)).all()


def test_harm_counts_answers_that_are_worse_than_their_input_alone() -> None:
    truth = torch.zeros(2, 3, 8, 8)
    given, made = truth + 0.1, truth + 0.1
    made[0] *= 0.5
    made[1] *= 2.0
    assert objectives.harm(made, given, truth).item() == pytest.approx(20 * math.log10(2) / 2, abs=1e-3)
    assert objectives.harm(given, given, truth) == 0


def test_missing_detail_is_what_the_metric_says_and_nothing_where_enough_is_shown() -> None:
    truth = embedded_faces(1, size=128).read(0)
    soft = cv2.GaussianBlur(truth, (0, 0), 1.0)
    made, true = (torch.from_numpy(to_tensor([picture])) for picture in (soft, truth))
    share = detail(soft, truth)
    assert 0.2 < share < 0.7
    assert objectives.missing_detail(made, true).item() == pytest.approx(0.75 - share, abs=0.01)
    assert objectives.missing_detail(true, true) == 0
    both = objectives.missing_detail(torch.cat([made, true]), torch.cat([true, true]))
    assert both.item() == pytest.approx((0.75 - share) / 2, abs=0.01), "by picture"
    flat = torch.zeros_like(true).requires_grad_(True)
    objectives.missing_detail(flat, flat.detach()).backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()
    given = made.clone().requires_grad_(True)
    objectives.missing_detail(given, true).backward()
    assert given.grad is not None
    assert objectives.missing_detail(made - 1e4 * given.grad, true) < 0.75 - share


def test_feature_matching_is_zero_for_equal_features_and_trains_the_output_only() -> None:
    real = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, requires_grad=True)]
    assert objectives.feature_matching(real, real).item() == 0.0
    fake = [f.detach().add(2.0).requires_grad_(True) for f in real]
    loss = objectives.feature_matching(fake, real)
    assert loss.item() == pytest.approx(2.0)
    loss.backward()
    assert all(f.grad is not None for f in fake) and all(f.grad is None for f in real)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_augmentations_change_each_image_on_its_own_and_pass_gradients(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32).repeat(6, 1, 1, 1).requires_grad_(True)
    changed = TRANSFORMATIONS[name](images)
    assert changed.shape == images.shape and not torch.equal(changed[0], changed[1])
    changed.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_translation_moves_whole_pixels_and_cutout_takes_half_a_side() -> None:
    torch.manual_seed(1)
    images = torch.zeros(8, 3, 32, 32)
    images[:, :, 16, 16] = 1.0
    moved = TRANSFORMATIONS["translation"](images)
    assert torch.equal(moved.sum(dim=(2, 3)), torch.ones(8, 3))
    places = {tuple(p.nonzero()[0].tolist()) for p in moved[:, 0]}
    assert len(places) > 1 and all(abs(y - 16) <= 4 and abs(x - 16) <= 4 for y, x in places)
    holes = TRANSFORMATIONS["cutout"](torch.ones(64, 3, 24, 32)) == 0
    assert holes.any(3).sum(2).max() == 12 and holes.any(2).sum(2).max() == 16


def test_the_share_of_augmented_images_is_the_probability_and_adapts() -> None:
    torch.manual_seed(0)
    config = Augmentation(policy=("color",), target=0.6, adapt_images=1000)
    images = torch.rand(2000, 3, 2, 2)
    changed = (objectives.augment(images, config.policy, 0.25) != images).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert objectives.augment(images, config.policy, 0.0) is images
    assert objectives.adapted(0.25, config, 0.9, 100) == pytest.approx(0.35)  # D too sure of training faces
    assert objectives.adapted(0.25, config, 0.1, 1000) == 0.0
    assert objectives.adapted(0.25, Augmentation(), 0.9, 100) == 0.25


def test_a_grown_discriminator_begins_as_the_small_one_and_ends_as_itself() -> None:
    torch.manual_seed(0)
    small, large = Discriminator(SMALL), Discriminator(LARGE)
    seed_discriminator(large, small)
    image, x = torch.rand(4, 3, 128, 128) * 2 - 1, torch.randn(2, SMALL.channels(64), 64, 64)
    torch.testing.assert_close(large.convs[2](x), small.convs[1](x))  # blocks keep their size in pixels
    assert torch.equal(FadeIn(large)(image), large(image)), "nothing to fade in"
    judge = FadeIn(large, small.convs[0], levels=1)
    reduced = small(torch.nn.functional.avg_pool2d(image, 2))
    torch.testing.assert_close(judge(image), reduced)
    judge.share = 0.5
    halfway = judge(image)
    assert not torch.allclose(halfway, large(image)) and not torch.allclose(halfway, reduced)
    halfway.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in large.convs[1].parameters())
    assert all(p.grad is None for p in small.convs[0].parameters())
    judge.share = 1.0
    torch.testing.assert_close(judge(image), large(image))


@torch.no_grad()
def test_a_larger_network_starts_with_what_the_smaller_one_has_learned() -> None:
    torch.manual_seed(0)
    small, large = Gpen(SMALL).eval(), Gpen(LARGE).eval()
    seed_gpen(large, small)
    z, x = torch.randn(2, 512), torch.randn(2, SMALL.channels(64), 64, 64)
    # The new level adds nothing, so the larger picture is the smaller one, enlarged by the FIR filter.
    enlarged = large.generator.to_rgbs[-1].upsample(small.generator(z))  # type: ignore[operator,union-attr]
    torch.testing.assert_close(large.generator(z), enlarged)
    torch.testing.assert_close(large.encoder[2](x), small.encoder[1](x))
    assert torch.equal(small.final_linear[0].weight, large.final_linear[0].weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="128 px cannot seed a network of 64 px"):
        seed_generator(small.generator, large.generator)
    with pytest.raises(ValueError, match="another width"):
        seed_generator(small.generator, Generator(GpenConfig(64, 64, 1, 0.125)))


@torch.no_grad()
@pytest.mark.parametrize(("size", "multiplier"), [(128, 2), (128, 4), (256, 2), (512, 4)])
def test_a_wider_or_larger_gpen_begins_by_answering_as_the_trained_one(size: int, multiplier: int) -> None:
    torch.manual_seed(0)
    trained = Gpen(replace(LARGE, narrow=0.25)).eval()
    open_skips(trained, 0.7)
    for module in trained.modules():
        if isinstance(module, FusedLeakyReLU):
            torch.nn.init.normal_(module.bias, std=0.3)
    model = Gpen(replace(trained.config, in_size=size, out_size=size, channel_multiplier=multiplier)).eval()
    seed_gpen(model, trained)
    picture = torch.rand(1, 3, size, size) * 2 - 1
    reduced, enlarge = picture, model.generator.to_rgbs[-1].upsample
    while reduced.shape[-1] > 128:
        reduced = upfirdn2d(reduced, fir_kernel(), pad=(1, 1))[..., ::2, ::2]
    expected = trained(reduced)
    assert expected.std() > 0.1
    while expected.shape[-1] < size:
        expected = enlarge(expected)  # type: ignore[operator]
    torch.testing.assert_close(model(picture), expected, atol=1e-5, rtol=1e-4)


def test_only_more_channels_can_be_seeded() -> None:
    wide, narrow = Gpen(replace(LARGE, channel_multiplier=2)), Gpen(LARGE)
    with pytest.raises(ValueError, match="another width"):
        seed_gpen(narrow, wide)
    with pytest.raises(ValueError, match="another width"):
        seed_gpen(Gpen(replace(LARGE, narrow=2 * LARGE.narrow)), narrow)


def test_frozen_modules_stay_and_all_others_learn(configure: MakeConfig) -> None:
    changes = {"losses": CONTENT_ONLY, "frozen": ["generator.style", "generator.convs.[13]", "ecd0"]}
    trainer = Trainer(configure(**changes, steps=2))
    before = {name: p.clone() for name, p in trainer.objective.generator.named_parameters()}
    trainer.run()
    again = Trainer(configure(**changes, steps=2))
    again.run()  # takes up the moments of those that learn
    for name, parameter in again.objective.generator.named_parameters():
        stays = name.startswith(("generator.style.", "generator.convs.1.", "generator.convs.3.", "ecd0."))
        assert torch.equal(before[name], parameter) == stays == (not parameter.requires_grad), name
    everything = ["generator", *(f"ecd{i}" for i in range(5))]
    for frozen, told in ((["ecd"], "frozen=ecd:"), (everything, "nothing is left to learn")):
        with pytest.raises(TrainingError, match=told):
            Trainer(configure(losses=CONTENT_ONLY, frozen=[*frozen, "final_linear"]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage": "prior", "init": "absent.pt"}, "absent.pt"),
        ({"stage": "prior", "init": "demo-prior"}, "demo-prior"),  # 128 px
        ({"discriminator_init": "absent.safetensors"}, "absent.safetensors"),  # and no new one instead
    ],
)
def test_beginnings_that_cannot_be_used_are_named(configure: MakeConfig, changes: dict, named: str) -> None:
    with pytest.raises((TrainingError, CheckpointError), match=named):
        Trainer(configure(**changes))


def test_noise_weights_learn_at_the_rate_of_the_encoder(configure: MakeConfig) -> None:
    """A prior may have closed them, and the encoder's features come in there."""
    rates = {"generator": 2e-3, "decoder_factor": 0.1}
    objective = Trainer(configure(losses=CONTENT_ONLY, learning_rates=rates)).objective
    names = {parameter: name for name, parameter in objective.generator.named_parameters()}
    groups = objective.optimizers["g_optim"].param_groups
    assert [group["initial_lr"] for group in groups] == [2e-4, 2e-3]
    slow, fast = ({names[p] for p in group["params"]} for group in groups)
    assert slow | fast == set(names.values()) and not slow & fast
    doors = {name for name in names.values() if name.endswith("noise.weight")}
    assert doors and doors == {name for name in fast if name.startswith("generator.")}


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
    distance = loss(green.requires_grad_(True), red)
    assert distance.item() == pytest.approx(1.0, abs=1e-6)
    distance.backward()
    assert green.grad is not None
    path.write_bytes(b"no model")
    for name in ("recogniser.pt", "absent.pt"):
        with pytest.raises(TrainingError, match=name):
            IdentityLoss(tmp_path / name, torch.device("cpu"))
