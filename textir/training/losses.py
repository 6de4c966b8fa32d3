"""What each training stage minimises, as pure functions of tensors and networks; the loops that
call them live in `train_lora/`."""

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr


def diffusion_loss(
    unet,
    scheduler,
    latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """How badly the UNet, told `prompt_embeds`, predicts the noise in noised latents (Lin et al.,
    eq. 4 and 5).

    Args:
        unet: the network.
        scheduler: adds the noise and says what is predicted: `epsilon`, `v_prediction` or `sample`.
        latents: `(B, C, h, w)` of the image that the words shall describe.
        prompt_embeds: `(B, L, D)`.
        noise: `(B, C, h, w)`, standard normal.
        timesteps: `(B,)`.
        snr_gamma: weighs timesteps by min(SNR, gamma) / SNR (Hang et al., *Efficient Diffusion
            Training via Min-SNR Weighting Strategy*, ICCV 2023); `None` weighs them alike.
        start: `(B, C, h, w)`, what the noise is added to where that is not `latents`: the degraded
            image, of a UNet that shall paint from it (ours). What is predicted is then the noise
            that would have led from `latents` to the same place; little noise makes it large, so
            errors are weighed by sigma. Every timestep must have some noise.

    Raises:
        ValueError: if the scheduler predicts something else.
    """
    dtype = next(unet.parameters()).dtype
    noisy = scheduler.add_noise(latents if start is None else start, noise, timesteps)
    sigma = 1.0
    if start is not None:
        alpha = scheduler.alphas_cumprod.to(latents)[timesteps][:, None, None, None]
        sigma = (1 - alpha).sqrt()
        noise = (noisy - alpha.sqrt() * latents) / sigma
    noisy = noisy.to(dtype)
    predicted = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds.to(dtype)).sample
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    elif kind == "sample":
        target = latents
    else:
        raise ValueError(
            f"The scheduler must predict epsilon, v_prediction or sample, got {kind!r}."
        )
    error = ((predicted.float() - target.float()).square() * sigma).mean((1, 2, 3))
    if snr_gamma is None:
        return error.mean()
    snr = compute_snr(scheduler, timesteps)
    weight = snr.clamp(max=snr_gamma)
    if kind == "epsilon":
        weight = weight / snr.clamp(min=1e-8)
    elif kind == "v_prediction":
        weight = weight / (snr + 1)
    return (weight * error).mean()


def painted_in_one_step(
    unet, scheduler, noisy: torch.Tensor, prompt_embeds: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The clean latents `(B, C, h, w)` that the UNet, told `prompt_embeds` `(B, L, D)`, takes noisy
    ones for at `timesteps` `(B,)`.

    Raises:
        ValueError: if the scheduler predicts neither `epsilon`, `v_prediction` nor `sample`.
    """
    dtype = next(unet.parameters()).dtype
    predicted = unet(
        noisy.to(dtype), timesteps, encoder_hidden_states=prompt_embeds.to(dtype)
    ).sample.float()
    alpha = scheduler.alphas_cumprod.to(noisy)[timesteps][:, None, None, None]
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    if kind == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
    if kind == "sample":
        return predicted
    raise ValueError(f"The scheduler must predict epsilon, v_prediction or sample, got {kind!r}.")


def word_loss(words: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Distance of pseudo-words `(B, N, D)` from those of the clean twin, in units of their
    variance; it trains a cleaner without a UNet."""
    return F.mse_loss(words.float(), target.float()) / target.float().var().clamp(min=1e-8)


def restoration_loss(
    restored: torch.Tensor | list[torch.Tensor],
    clean: torch.Tensor,
    kind: str = "l1",
    fft_weight: float = 0.0,
) -> torch.Tensor:
    """Distance of restored images from their clean twins.

    Args:
        restored: `(B, C, H, W)`; or the same images at several scales, coarsest first, each twice
            the size of the one before (rounded up): then the distance is the sum over scales, each
            from the clean images reduced to it.
        clean: `(B, C, H, W)` in [0, 1].
        kind: `l1` (the paper), or `psnr`: the mean logarithm of each image's squared error (Chen et
            al. 2022), which weighs slight and heavy degradations alike; errors below 47 dB count
            less and less.
        fft_weight: weight of the mean absolute distance of the Fourier coefficients (Cho et al.,
            *Rethinking Coarse-to-Fine Approach in Single Image Deblurring*, ICCV 2021; SFNet takes
            0.1).

    Returns:
        a scalar.

    Raises:
        ValueError: if `kind` is neither.
    """
    if not torch.is_tensor(restored):
        halvings = range(len(restored))[::-1]
        return sum(
            restoration_loss(scale, halved(clean, n), kind, fft_weight)
            for scale, n in zip(restored, halvings)
        )
    error = restored.float() - clean.float()
    if kind == "l1":
        loss = error.abs().mean()
    elif kind == "psnr":
        loss = (error.square().mean((1, 2, 3)) + 2e-5).log().mean() / 2
    else:
        raise ValueError(f"`kind` must be l1 or psnr, got {kind!r}.")
    if fft_weight:
        loss = loss + fft_weight * torch.view_as_real(torch.fft.rfft2(error)).abs().mean()
    return loss


def halved(image: torch.Tensor, times: int) -> torch.Tensor:
    """Images `(B, C, H, W)` at a half, quarter, ... of their size, rounded up: bilinear, from the
    middle of each square, as SFNet and its kin reduce their targets."""
    factor = 2**times
    if factor == 1:
        return image
    missing = (0, -image.shape[-1] % factor, 0, -image.shape[-2] % factor)
    return F.interpolate(
        F.pad(image, missing, mode="replicate"), scale_factor=1 / factor, mode="bilinear"
    )


def detection_loss(
    logits: torch.Tensor, predicted_severity: torch.Tensor, severity: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each degradation's presence, and the squared error of its severity where it
    is present.

    Args:
        logits: `(B, L)`.
        predicted_severity: `(B, L)` in [0, 1].
        severity: `(B, L)`, 0 where the degradation is absent.
    """
    present = (severity > 0).float()
    presence = F.binary_cross_entropy_with_logits(logits.float(), present)
    error = (predicted_severity.float() - severity).square() * present
    return presence + error.sum() / present.sum().clamp(min=1)


def reconstruction_loss(
    decoded: torch.Tensor, image: torch.Tensor, gradient_weight: float = 0.5
) -> torch.Tensor:
    """Mean absolute distance of images `(B, C, H, W)` and, with a weight, of their differences
    between neighbouring pixels."""
    error = decoded.float() - image.float()
    return (
        error.abs().mean()
        + gradient_weight * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    )


def bag_of_words_loss(
    words: torch.Tensor, vocabulary: torch.Tensor, present: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Cross-entropy of the question which tokens the pseudo-words of an image come near: each token
    takes the nearest word's cosine.

    Args:
        words: `(B, N, D)`.
        vocabulary: embeddings of the tokens asked for `(V, D)`.
        present: `(B, V)`, 1 where a token describes the image, 0 where it does not, NaN where that
            is not known.
        temperature: a cosine of this much is worth one unit of the logit.
    """
    # (B, N, V)
    cosine = F.normalize(words.float(), dim=-1) @ F.normalize(vocabulary.float(), dim=-1).T
    logits = (cosine.amax(1) - 0.5) / temperature
    known = present.isfinite()
    loss = F.binary_cross_entropy_with_logits(logits, present.nan_to_num(), reduction="none")
    positive = loss[known & (present == 1)]
    negative = loss[known & (present == 0)]
    return positive.sum() / max(len(positive), 1) + negative.sum() / max(len(negative), 1)
