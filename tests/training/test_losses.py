"""Losses are what their formula says, finite where images are perfect or all noise, and have
gradients where they should."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from tests.tools import tiny
from tests.tools.tiny import image
from textir.training.losses import (
    detection_loss,
    diffusion_loss,
    halved,
    painted_in_one_step,
    restoration_loss,
    word_loss,
)

TIMESTEPS = torch.tensor([3, 500, 999])


def noised(prediction_type: str, **options):
    """A UNet, a scheduler and what `diffusion_loss` takes, and the same computed from the
    definition: alpha, sigma, prediction."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type=prediction_type, **options)
    unet, latents = tiny.unet(), torch.randn(3, 4, 8, 12)
    noise, words = torch.randn(3, 4, 8, 12), torch.randn(3, 7, tiny.WORD_DIM)
    alpha, sigma = (
        x[TIMESTEPS, None, None, None].sqrt()
        for x in (scheduler.alphas_cumprod, 1 - scheduler.alphas_cumprod)
    )
    with torch.no_grad():
        predicted = unet(
            alpha * latents + sigma * noise, TIMESTEPS, encoder_hidden_states=words
        ).sample
    target = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * latents,
        "sample": latents,
    }.get(prediction_type)
    return (unet, scheduler, latents, words, noise, TIMESTEPS), alpha, sigma, predicted, target


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_loss_is_the_squared_error_of_what_the_scheduler_predicts(kind):
    arguments, _, _, predicted, target = noised(kind)
    assert diffusion_loss(*arguments).item() == pytest.approx(
        (predicted - target).square().mean().item(), rel=1e-4
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_image_alike_for_every_kind_of_prediction(kind):
    arguments, alpha, sigma, predicted, target = noised(kind)
    error = (predicted - target).square().mean((1, 2, 3))
    snr = (alpha / sigma).square().flatten()
    weight = (
        snr.clamp(max=5) / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(3)}[kind]
    )
    expected = (weight * error).mean().item()
    assert diffusion_loss(*arguments, snr_gamma=5.0).item() == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(error.mean().item(), rel=1e-2)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_loss_is_finite_where_the_last_step_is_pure_noise(kind, gamma):
    arguments, alpha, *_ = noised(kind, rescale_betas_zero_snr=True)
    assert alpha[-1] < 1e-3
    unet, _, _, words, *_ = arguments
    words.requires_grad_()
    loss = diffusion_loss(*arguments, snr_gamma=gamma)
    loss.backward()
    assert loss.isfinite() and words.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in unet.parameters())


def test_diffusion_loss_has_a_gradient_to_the_words():
    arguments, *_ = noised("epsilon")
    words = arguments[3].requires_grad_()
    diffusion_loss(*arguments).backward()
    assert (words.grad != 0).any(-1).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_painting_from_another_image_aims_at_the_noise_that_leads_there_from_the_target(kind):
    (unet, scheduler, latents, words, noise, steps), alpha, sigma, _, _ = noised(kind)
    start = torch.randn_like(latents)
    noisy = alpha * start + sigma * noise
    with torch.no_grad():
        predicted = unet(noisy, steps, encoder_hidden_states=words).sample
    as_if = (noisy - alpha * latents) / sigma
    target = {"epsilon": as_if, "v_prediction": alpha * as_if - sigma * latents, "sample": latents}[
        kind
    ]
    loss = diffusion_loss(unet, scheduler, latents, words, noise, steps, start=start)
    assert loss.item() == pytest.approx(
        (sigma * (predicted - target).square()).mean().item(), rel=1e-3
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_unet_that_predicts_rightly_paints_the_clean_latents_in_one_step(kind):
    (_, scheduler, latents, words, noise, steps), alpha, sigma, _, target = noised(kind)

    class Right(torch.nn.Linear):  # any parameters, for their dtype
        def forward(self, noisy, timesteps, encoder_hidden_states):
            return UNet2DConditionOutput(sample=target)

    painted = painted_in_one_step(
        Right(1, 1), scheduler, alpha * latents + sigma * noise, words, steps
    )
    assert torch.allclose(painted, latents, atol=1e-3)


def test_what_one_step_paints_is_what_the_scheduler_of_the_pipeline_steps_to():
    (unet, _, latents, words, _, _), *_ = noised("v_prediction")
    kinds = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    scheduler = DDIMScheduler(**kinds, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    last = scheduler.timesteps[:1]
    with torch.no_grad():
        predicted = unet(latents, last, encoder_hidden_states=words).sample
        stepped = scheduler.step(predicted, last, latents).prev_sample
        painted = painted_in_one_step(
            unet, DDPMScheduler.from_config(scheduler.config), latents, words, last.expand(3)
        )
    assert torch.allclose(painted, stepped, atol=1e-4)


def test_painting_in_one_step_refuses_an_unknown_prediction():
    (unet, scheduler, latents, words, _, steps), *_ = noised("epsilon")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="epsilon, v_prediction or sample, got 'score'"):
        painted_in_one_step(unet, scheduler, latents, words, steps)


def test_diffusion_loss_refuses_an_unknown_prediction():
    arguments, *_ = noised("epsilon")
    arguments[1].register_to_config(prediction_type="flow")
    with pytest.raises(
        ValueError, match="must predict epsilon, v_prediction or sample, got 'flow'"
    ):
        diffusion_loss(*arguments)


def test_word_loss_is_one_for_words_that_are_all_the_mean():
    target = torch.randn(4, 5, 16) * 3 + 1
    assert word_loss(target, target) == 0
    assert word_loss(target.mean().expand_as(target), target).item() == pytest.approx(1, rel=1e-2)
    other = torch.randn(4, 5, 16)
    assert word_loss(other, target).item() == pytest.approx(
        ((other - target).square().mean() / target.var()).item(), rel=1e-5
    )
    assert word_loss(other, torch.ones(4, 5, 16)).isfinite()


def test_l1_is_the_mean_distance():
    restored, clean = image(batch=2), image(batch=2, seed=1)
    assert restoration_loss(restored, clean).item() == pytest.approx(
        (restored - clean).abs().mean().item()
    )


@pytest.mark.parametrize("error", [0.1, 0.3])
def test_the_psnr_loss_is_the_logarithm_of_each_images_error(error):
    clean = torch.full((2, 3, 16, 24), 0.5)
    restored = clean + torch.tensor([error, error / 10])[:, None, None, None]
    expected = sum(math.log(e**2 + 2e-5) for e in (error, error / 10)) / 4
    assert restoration_loss(restored, clean, "psnr").item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_fourier_term_is_added_with_its_weight(kind):
    restored, clean = image(batch=2), image(batch=2, seed=1)
    spectrum = torch.fft.rfft2(restored - clean)
    distance = (spectrum.real.abs().mean() + spectrum.imag.abs().mean()).item() / 2
    plain = restoration_loss(restored, clean, kind).item()
    assert restoration_loss(restored, clean, kind, 0.1).item() == pytest.approx(
        plain + 0.1 * distance, rel=1e-4
    )


@pytest.mark.parametrize("fft_weight", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_loss_falls_with_the_error_and_has_a_gradient(kind, fft_weight):
    clean, noise = image(batch=2), image(batch=2, seed=1) - 0.5
    near, far = (
        restoration_loss(clean + scale * noise, clean, kind, fft_weight) for scale in (0.1, 0.2)
    )
    assert near.shape == () and near < far
    restored = (clean + noise).requires_grad_()
    restoration_loss(restored, clean, kind, fft_weight).backward()
    assert restored.grad.isfinite().all() and (restored.grad != 0).any()


@pytest.mark.parametrize("fft_weight", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_perfect_image_has_a_finite_loss_and_gradient(kind, fft_weight):
    restored = image().requires_grad_()
    loss = restoration_loss(restored, image(), kind, fft_weight)
    loss.backward()
    assert loss.isfinite() and restored.grad.isfinite().all()


@pytest.mark.parametrize("fft_weight", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_loss_is_taken_in_single_precision(kind, fft_weight):
    restored, clean = image().bfloat16(), image(seed=1).bfloat16()
    loss = restoration_loss(restored, clean, kind, fft_weight)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, restoration_loss(restored.float(), clean.float(), kind, fft_weight))


@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_loss_on_several_scales_is_the_sum_over_them(kind):
    clean = image(16, 24, batch=2)
    scales = [
        image(4, 6, batch=2, seed=1),
        image(8, 12, batch=2, seed=2),
        image(16, 24, batch=2, seed=3),
    ]
    middles = clean.unflatten(3, (6, 4)).unflatten(2, (4, 4))[:, :, :, 1:3, :, 1:3].mean((3, 5))
    halves = clean.unflatten(3, (12, 2)).unflatten(2, (8, 2)).mean((3, 5))
    expected = sum(
        restoration_loss(s, c, kind, 0.1).item()
        for s, c in zip(scales, (middles, halves, clean), strict=True)
    )
    assert restoration_loss(scales, clean, kind, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_scales_of_odd_sizes_are_compared_where_they_lie():
    ramp = torch.arange(31.0).expand(1, 3, 17, 31) / 31  # a pixel's value is its place
    places = (torch.arange(8.0) * 4 + 1.5).clamp(max=30) / 31
    places[-1] = (29 + 30) / 2 / 31  # the last square is half beyond the border, which repeats
    coarse = restoration_loss([places.expand(1, 3, 5, 8), halved(ramp, 1), ramp], ramp)
    assert coarse.item() == pytest.approx(0, abs=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="`kind` must be l1 or psnr, got 'l2'"):
        restoration_loss(image(), image(), "l2")


def test_detection_loss_judges_presence_everywhere_and_severity_where_something_is_present():
    logits, predicted = (
        torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]]),
        torch.tensor([[0.5, 0.9, 0.1], [0.3, 0.2, 0.8]]),
    )
    severity = torch.tensor([[0.7, 0.0, 0.0], [0.0, 0.6, 0.0]])
    p = logits.sigmoid()
    presence = (
        -(
            p[0, 0].log()
            + p[1, 1].log()
            + sum((1 - p[at]).log() for at in [(0, 1), (0, 2), (1, 0), (1, 2)])
        )
        / 6
    )
    expected = presence + (0.2**2 + 0.4**2) / 2
    assert detection_loss(logits, predicted, severity).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_severity_of_what_is_absent_does_not_matter():
    logits, nothing = torch.randn(2, 3), torch.zeros(2, 3)
    losses = [detection_loss(logits, torch.full((2, 3), value), nothing) for value in (0.0, 0.9)]
    assert losses[0].isfinite() and torch.equal(*losses)
