"""What can be wrong with a photograph, as functions of a clean one.

Every degradation takes images `(B, C, H, W)` in [0, 1], draws each random number from `generator`
on the CPU (the same seed gives the same picture on every device) and gives every image of the batch
its own draw. A *recipe* is text: `noise:25`, `rain:heavy+haze:0.8`, `noise:0..50` (a range: uniform
per image). `degrade` applies one; `RECIPES` lists what can stand in it.

`EDITS` take something away that no restorer can find again: a hole, all colour, pixels. They have
recipes too (`mask:0.25`, `gray`, `down:4`), for the text-editable restorer alone; `take_away` also
tells where the holes are.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import filter2d, gaussian_blur2d, guided_blur
from kornia.geometry import rotate
from PIL import Image, ImageDraw

Range = tuple[float, float]
# Weights of bilinear demosaicking.
BILINEAR = torch.tensor([[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]) / 4


def gaussian_noise(
    image: torch.Tensor,
    sigma: float = 25.0,
    eight_bit: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Additive white Gaussian noise, the standard of the denoising literature.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        sigma: standard deviation on the 0-255 scale.
        eight_bit: clip to [0, 1] and round to 8 bits, as a file would; otherwise values may leave
            [0, 1].
        generator: source of randomness.

    Returns:
        `(B, C, H, W)`.
    """
    noisy = image + sigma / 255 * _normal(image.shape, generator).to(image)
    return (noisy.clamp(0, 1) * 255).round() / 255 if eight_bit else noisy


def poisson_gaussian_noise(
    image: torch.Tensor,
    peak: float = 100.0,
    read_sigma: float = 2.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Signal-dependent sensor noise (Foi et al., *Practical Poissonian-Gaussian noise modeling*,
    2008).

    Args:
        image: `(B, C, H, W)` in [0, 1].
        peak: photons that a white pixel collects; fewer is noisier.
        read_sigma: read-out noise on the 0-255 scale.
        generator: source of randomness.
    """
    photons = (
        torch.poisson((image.detach().float().cpu().clamp(0, 1) * peak), generator=generator) / peak
    )
    return (photons.to(image) + read_sigma / 255 * _normal(image.shape, generator).to(image)).clamp(
        0, 1
    )


def camera_noise(
    image: torch.Tensor,
    peak: float = 100.0,
    read_sigma: float = 2.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sensor noise as a camera hands it on: shot and read noise in linear light on a Bayer mosaic,
    spread over neighbouring pixels by demosaicking and stretched in the shadows by the display
    curve (after Brooks et al., *Unprocessing images for learned raw denoising*, CVPR 2019). The
    picture itself is not demosaicked, so nothing but noise is added.

    Args:
        image: `(B, C, H, W)` in [0, 1]; with other than three channels the sensor has no mosaic.
        peak: photons that a white pixel collects; fewer is noisier.
        read_sigma: read-out noise on the 0-255 scale of linear light.
        generator: source of randomness.
    """
    linear = image.detach().float().cpu().clamp(0, 1) ** 2.2
    noise = _sensor_noise(linear, peak, read_sigma, generator)
    return ((linear + noise).clamp(0, 1) ** (1 / 2.2)).to(image)


def developed_noise(
    image: torch.Tensor,
    peak: float = 100.0,
    read_sigma: float = 0.7,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sensor noise as it stands in a developed photo: amplified by white balance, its colours
    smoothed more than its brightness, in clumps of several sizes. What `camera_noise` hands on is
    only the first step of this.

    In real pairs (Nam et al., *A holistic approach to cross-channel image noise modeling*, CVPR
    2016) neighbouring pixels of the noise correlate by 0.7, pixels three apart by 0.2, and its
    channels by 0.4: a network trained on independent pixels takes it for texture.

    Args:
        image: `(B, C, H, W)` in [0, 1]; with other than three channels there are no colours to
            smooth.
        peak: photons that a white pixel collects; fewer is noisier.
        read_sigma: read-out noise on the 0-255 scale of linear light.
        generator: source of randomness.
    """
    noisy = []
    for single in image.split(1):
        linear = single.detach().float().cpu().clamp(0, 1) ** 2.2
        gains = torch.ones(1, image.shape[1], 1, 1)
        if image.shape[1] == 3:
            gains[:, 0], gains[:, 2] = (
                _uniform((1.0, 2.2), generator),
                _uniform((1.0, 2.2), generator),
            )
        noise = gains * _sensor_noise(linear / gains, peak, read_sigma, generator)
        brightness = noise.mean(1, keepdim=True)
        colours = _clumped(noise - brightness, _uniform((0.5, 2.5), generator)) * _uniform(
            (0.3, 1.0), generator
        )
        fine, coarse = _uniform((0.2, 1.0), generator), _uniform((0.2, 1.0), generator)
        brightness = fine * brightness + coarse * _clumped(
            brightness, _uniform((0.6, 2.0), generator)
        )
        noisy.append((linear + brightness + colours).clamp(0, 1) ** (1 / 2.2))
    return torch.cat(noisy).to(image)


def rain(
    image: torch.Tensor,
    intensity: float = 0.6,
    layers: int = 3,
    direction: Range = (-35.0, 35.0),
    veil: Range = (0.0, 0.45),
    additive: float = 0.5,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Rain in several layers, from single drops to long streaks, under a veil of distant ones.

    Near layers are sparse, long, wide and bright; far ones dense, short and faint; how far drops
    travel during the exposure (shutter and zoom) is drawn for each image. A layer is sparse noise
    drawn out along the direction of fall (Garg and Nayar, *Vision and rain*, 2007); the veil is the
    accumulation term of Li et al. (*Heavy rain image restoration*, CVPR 2019). Drops cover the
    scene, or add their light to it as in the sets that deraining is measured on (Yang et al., *Deep
    joint rain detection and removal*, CVPR 2017).

    Args:
        image: `(B, C, H, W)` in [0, 1].
        intensity: 0 (none) to 1 (downpour): number and opacity of streaks and thickness of the
            veil.
        layers: number of streak layers.
        direction: range of the angle of fall in degrees from the vertical.
        veil: range of the veil's opacity at intensity 1.
        additive: share of images whose rain adds its light; of the others it covers.
        generator: source of randomness.
    """
    rainy = []
    for single in image.split(1):
        height, width = single.shape[-2:]
        adds = _uniform((0, 1), generator) < additive
        angle, travel = _uniform(direction, generator), 4 * 30 ** _uniform((0, 1), generator)
        fog = (
            intensity
            * _uniform(veil, generator)
            * (0.3 + 0.7 * smooth_field(height, width, generator)).to(image)
        )
        single = single + _cast_light(single, fog, _uniform((0.6, 1.0), generator), adds)
        for layer in range(layers):
            nearness = (layer + _uniform((0.2, 1.0), generator)) / layers
            tilt = angle + _uniform((-4, 4), generator)
            streaks = _streak_layer(height, width, tilt, travel, nearness, intensity, generator)
            opacity = (streaks * (0.4 + 0.6 * smooth_field(height, width, generator))).to(image)
            single = single + _cast_light(
                single, opacity, _uniform((0.75, 1.0), generator), adds
            ).clamp(min=0)
        rainy.append(single)
    return torch.cat(rainy).clamp(0, 1)


def haze(
    image: torch.Tensor,
    beta: float = 1.5,
    airlight: Range = (0.7, 1.1),
    depth: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Atmospheric scattering `I = J t + A (1 - t)`, `t = exp(-beta * depth)` (Koschmieder; He et
    al. 2009).

    Without `depth` a plausible one is made by `random_depth`: its edges follow the edges of the
    photo.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        beta: scattering per unit of depth; 0.5 is a light mist, 3 hides most of the far scene.
        airlight: range of the airlight A, clipped at 1, where the haze is overexposed; a slight
            tint is added per channel.
        depth: `(B, 1, H, W)`, 0 (camera) to 1 (horizon).
        generator: source of randomness.
    """
    if depth is None:
        depth = random_depth(image, generator)
    elif depth.shape != (image.shape[0], 1, *image.shape[-2:]):
        expected = (image.shape[0], 1, *image.shape[-2:])
        raise ValueError(f"`depth` must be {expected} for this image, got {tuple(depth.shape)}.")
    transmission = torch.exp(-beta * depth.to(image))
    light = torch.stack(
        [torch.full((image.shape[1], 1, 1), _uniform(airlight, generator)) for _ in image]
    )
    tint = 0.015 * _normal(light.shape, generator)
    return (image * transmission + (light + tint).clamp(0, 1).to(image) * (1 - transmission)).clamp(
        0, 1
    )


def motion_blur(
    image: torch.Tensor, length: float = 15.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Blur by a random path of the camera during the exposure (Boracchi and Foi, *Modeling the
    performance of image restoration from motion blur*, 2012).

    Args:
        image: `(B, C, H, W)` in [0, 1].
        length: extent of the path in pixels.
        generator: source of randomness.
    """
    kernels = torch.cat([camera_path_kernel(length, generator) for _ in image]).to(image)
    return _blur(image, kernels)


def defocus(
    image: torch.Tensor,
    radius: float = 4.0,
    varying: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Blur by the circle of confusion of a lens out of focus (Potmesil and Chakravarty, 1981).

    Args:
        image: `(B, C, H, W)` in [0, 1].
        radius: largest radius of the disc in pixels.
        varying: let the radius follow a random depth between a sharp plane and `radius`; otherwise
            the same everywhere.
        generator: source of randomness.
    """
    if not varying:
        return _blur(image, disc_kernel(radius).to(image))
    steps = 4
    stack = torch.stack(
        [image]
        + [_blur(image, disc_kernel(radius * (i + 1) / steps).to(image)) for i in range(steps)]
    )
    focus = torch.tensor([_uniform((0, 1), generator) for _ in image])[:, None, None, None]
    distance = (random_depth(image, generator).cpu() - focus).abs()
    position = (distance / distance.amax((1, 2, 3), keepdim=True).clamp(min=1e-6) * steps).to(image)
    weights = torch.stack([(1 - (position - i).abs()).clamp(0, 1) for i in range(steps + 1)])
    return (stack * weights).sum(0).clamp(0, 1)


def low_light(
    image: torch.Tensor,
    stops: float = 2.5,
    peak: Range = (300.0, 3000.0),
    cast: float = 0.08,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Under-exposure: less light on the sensor, a colour cast, shot and read noise, then the
    display curve (gamma 2.2).

    After the pipeline of Wei et al. (*A physics-based noise formation model for extreme low-light
    raw denoising*, 2020), reduced to display-referred images.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        stops: photographic stops of light that are missing; each halves it.
        peak: range of the photons that white would collect in full light; fewer is noisier.
        cast: standard deviation of the gain of each channel.
        generator: source of randomness.
    """
    dark = []
    for single in image.split(1):
        gain = torch.exp(cast * _normal((1, image.shape[1], 1, 1), generator)).to(image)
        light = single.clamp(0, 1) ** 2.2 * gain * 2.0**-stops
        noisy = poisson_gaussian_noise(
            light, peak=_uniform(peak, generator), read_sigma=0.2, generator=generator
        )
        dark.append(noisy.clamp(min=0) ** (1 / 2.2))
    return torch.cat(dark).clamp(0, 1)


def dim(
    image: torch.Tensor, amount: float = 0.5, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Darkness as files show it, whatever made it: a gain and a gamma of display values, a colour
    cast, light shot and read noise.

    `low_light` takes light away before the display curve; cameras, editors and screens darken what
    comes after it as well.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        amount: 0 (a little dark) to 1 (very dark).
        generator: source of randomness.
    """
    dark = []
    for single in image.split(1):
        gamma = 1 + (0.3 + 1.7 * amount) * _uniform((0.2, 1.0), generator)
        stops = (0.5 + 2.0 * amount) * _uniform((0.2, 1.2), generator)
        cast = torch.exp(0.06 * _normal((1, image.shape[1], 1, 1), generator)).to(image)
        peak = 10 ** _uniform((2.7, 4.2), generator)
        read_sigma = _uniform((0.0, 1.5), generator)
        darkened = (single.clamp(0, 1) ** gamma * 2.0**-stops * cast).clamp(0, 1)
        dark.append(poisson_gaussian_noise(darkened, peak, read_sigma, generator))
    return torch.cat(dark)


def room_haze(
    image: torch.Tensor,
    beta: float = 1.0,
    airlight: Range = (0.7, 1.0),
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Haze in a room, as in the indoor sets that dehazing is measured on: walls, floor and ceiling
    recede to a far wall.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        beta: scattering per unit of depth; 0.5 is light, 3 hides the far wall.
        airlight: see `haze`.
        generator: source of randomness.
    """
    hazy = []
    for single in image.split(1):
        depth = room_depth(single, generator)
        hazy.append(haze(single, beta, airlight, depth.to(single), generator))
    return torch.cat(hazy)


def mist(
    image: torch.Tensor,
    beta: float = 0.5,
    airlight: Range = (0.75, 1.05),
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Haze over a far scene: the distance hardly varies, so the whole picture is pale and flat.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        beta: scattering over the whole distance; 0.3 is a slight veil, 1.5 leaves a fifth of the
            contrast.
        airlight: see `haze`.
        generator: source of randomness.
    """
    near = [_uniform((0.5, 0.95), generator) for _ in image]
    nearness = torch.tensor(near)[:, None, None, None].to(image)
    depth = nearness + (1 - nearness) * random_depth(image, generator)
    return haze(image, beta, airlight, depth, generator)


def jpeg(
    image: torch.Tensor, quality: float = 30.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Compression by the JPEG encoder of Pillow (libjpeg, 4:2:0 chroma): the artefacts of real
    files.

    Args:
        image: `(B, C, H, W)` in [0, 1] with one or three channels.
        quality: libjpeg quality, 1 to 95.
        generator: unused; every degradation takes one.
    """
    if image.shape[1] not in (1, 3):
        raise ValueError(f"JPEG stores 1 or 3 channels, got {image.shape[1]}.")
    decoded = []
    for array in (
        (image.detach().float().clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy()
    ):
        buffer = io.BytesIO()
        Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(
            buffer, "JPEG", quality=max(1, min(95, round(quality)))
        )
        decoded.append(np.asarray(Image.open(buffer)).reshape(array.shape))
    return torch.from_numpy(np.stack(decoded)).movedim(-1, 1).to(image) / 255


def down_up(
    image: torch.Tensor, factor: float = 2.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Loss of resolution: bicubic reduction with anti-aliasing, then bicubic enlargement to the old
    size.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        factor: reduction of each side, at least 1.
        generator: unused; every degradation takes one.
    """
    size = image.shape[-2:]
    small = F.interpolate(
        image.float(),
        [max(1, round(side / factor)) for side in size],
        mode="bicubic",
        antialias=True,
    )
    return (
        F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(0, 1).to(image.dtype)
    )


# ---- what an edit gives back


def gray(
    image: torch.Tensor, amount: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Loss of colour: the luma of Rec. 601 in every channel, as Pillow and JPEG have it.

    Args:
        image: `(B, 3, H, W)` in [0, 1]; with another number of channels nothing is lost.
        amount: share of the colour that goes, 0 to 1.
        generator: unused; every degradation takes one.
    """
    if image.shape[1] != 3:
        return image.clone()
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image)[None, :, None, None]
    return torch.lerp(image, (weights * image).sum(1, keepdim=True).expand_as(image), amount)


def lightness(
    image: torch.Tensor, amount: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Loss of colour as image editors have it: the gray of the same lightness L of CIE Lab.

    Args:
        image: `(B, 3, H, W)` in [0, 1]; with another number of channels nothing is lost.
        amount: share of the colour that goes, 0 to 1.
        generator: unused; every degradation takes one.
    """
    if image.shape[1] != 3:
        return image.clone()
    linear = torch.where(
        image <= 0.04045, image / 12.92, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )
    weights = torch.tensor([0.2126, 0.7152, 0.0722]).to(image)[None, :, None, None]
    light = (weights * linear).sum(1, keepdim=True)
    curved = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    tone = torch.where(light <= 0.0031308, 12.92 * light, curved)
    return torch.lerp(image, tone.expand_as(image), amount)


def down(
    image: torch.Tensor, factor: float = 4.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Loss of pixels: bicubic reduction with antialiasing, equal to Pillow's in floating point.
    The result is smaller.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        factor: reduction of each side, at least 1.
        generator: unused; every degradation takes one.

    Returns:
        `(B, C, round(H / factor), round(W / factor))` in [0, 1], at least a pixel a side.
    """
    size = [max(1, round(side / factor)) for side in image.shape[-2:]]
    small = F.interpolate(image.float(), size, mode="bicubic", antialias=True)
    return small.clamp(0, 1).to(image.dtype)


def draw_mask(
    height: int,
    width: int,
    share: float = 0.25,
    kind: str = "mixed",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A hole of about a share of the picture.

    Strokes and boxes are added until there is enough; of several such drawings the one nearest to
    the share is taken, the first that misses it by less than a tenth.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        share: part of the pixels that are hole, 0 to 1; one pixel at least is hole, one is not.
        kind: `wide`, wide strokes of LaMa (Suvorov et al., WACV 2022); `strokes`, those of DeepFill
            (Yu et al., *Free-form image inpainting*, ICCV 2019); `boxes`; `box`, a single one;
            `mixed`, one of the first three.
        generator: source of randomness.

    Returns:
        `(1, 1, height, width)` bool.

    Raises:
        ValueError: if the kind is unknown, the share lies outside 0 to 1 or the picture has fewer
            than two pixels.
    """
    kinds = (*ELEMENTS, "box", "mixed")
    if kind not in kinds or not 0 <= share <= 1 or height * width < 2:
        raise ValueError(
            f"A mask takes a kind of {', '.join(kinds)}, a share from 0 to 1 and at least two "
            f"pixels, got {kind!r}, {share:g} and {height} x {width}."
        )
    if kind == "mixed":
        kind = tuple(ELEMENTS)[int(torch.randint(len(ELEMENTS), (), generator=generator))]
    wanted = min(max(round(share * height * width), 1), height * width - 1)
    if kind == "box":
        return _one_box(height, width, wanted, generator)
    nearest, least = None, math.inf
    for _ in range(MASK_DRAWINGS):
        for hole in _grow_drawing(height, width, wanted, ELEMENTS[kind], generator):
            missed = abs(int(hole.sum()) - wanted)
            if missed < least and 0 < hole.sum() < hole.size:
                nearest, least = hole, missed
        if least <= 0.1 * wanted:
            break
    if nearest is None:  # the picture is smaller than a brush
        return _one_box(height, width, wanted, generator)
    return torch.from_numpy(nearest)[None, None]


MASK_DRAWINGS = 20
MOST_ELEMENTS = 100
# Of pictures of this side, from which LaMa and DeepFill give their brushes.
MASK_SIDE = 256


def _grow_drawing(
    height: int,
    width: int,
    wanted: int,
    element: Callable[[ImageDraw.ImageDraw, torch.Generator | None], None],
    generator: torch.Generator | None,
) -> Sequence[np.ndarray]:
    """Add elements, at most `MOST_ELEMENTS`, to an empty drawing until so many pixels are covered;
    the drawing before the last one, and with it: `(height, width)` bool."""
    drawing = Image.new("L", (width, height))
    canvas = ImageDraw.Draw(drawing)
    after: np.ndarray = np.zeros((height, width), bool)
    before = after
    for _ in range(MOST_ELEMENTS):
        before = after
        element(canvas, generator)
        after = np.asarray(drawing) > 0
        if after.sum() >= wanted:
            break
    return before, after


def _one_box(
    height: int, width: int, wanted: int, generator: torch.Generator | None
) -> torch.Tensor:
    """A box of about so many pixels, its sides up to 1 : 2, anywhere."""
    aspect = 2 ** _uniform((-1.0, 1.0), generator)
    tall = min(max(round(math.sqrt(wanted * aspect)), math.ceil(wanted / width), 1), height)
    wide = min(max(round(wanted / tall), 1), width)
    if tall * wide == height * width:
        wide, tall = (wide - 1, tall) if wide > 1 else (wide, tall - 1)
    top = int(torch.randint(height - tall + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    hole = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hole[..., top : top + tall, left : left + wide] = True
    return hole


def _wide_stroke(canvas: ImageDraw.ImageDraw, generator: torch.Generator | None) -> None:
    """A line of one to five straight parts in any direction, by a brush of 5 to 104 pixels."""
    width, height = canvas.im.size
    scale = math.sqrt(height * width) / MASK_SIDE
    brush = _uniform((5, 104), generator) * scale
    points = [(_uniform((0, width), generator), _uniform((0, height), generator))]
    for _ in range(int(torch.randint(1, 6, (), generator=generator))):
        heading = _uniform((0, 2 * math.pi), generator)
        points.append(_step(points[-1], heading, _uniform((10, 209), generator) * scale, canvas))
    _stroke(canvas, points, brush)


def _folded_stroke(canvas: ImageDraw.ImageDraw, generator: torch.Generator | None) -> None:
    """A line of 4 to 12 corners that turns to and fro, by a brush of 12 to 40 pixels."""
    width, height = canvas.im.size
    scale = math.sqrt(height * width) / MASK_SIDE
    brush = _uniform((12, 40), generator) * scale
    points = [(_uniform((0, width), generator), _uniform((0, height), generator))]
    mean = math.hypot(height, width) / 8
    turn = 2 * math.pi / 5
    spread = 2 * math.pi / 15
    for number in range(int(torch.randint(4, 13, (), generator=generator))):
        heading = _uniform((turn - spread, turn + spread), generator)
        heading = 2 * math.pi - heading if number % 2 == 0 else heading
        length = mean + mean / 2 * float(torch.randn((), generator=generator))
        points.append(_step(points[-1], heading, min(max(length, 0), 2 * mean), canvas))
    _stroke(canvas, points, brush)


def _some_box(canvas: ImageDraw.ImageDraw, generator: torch.Generator | None) -> None:
    """A box of 30 to 150 pixels a side."""
    width, height = canvas.im.size
    tall, wide = (side * _uniform((30, 150), generator) / MASK_SIDE for side in (height, width))
    top, left = _uniform((0, height - tall), generator), _uniform((0, width - wide), generator)
    canvas.rectangle((left, top, left + max(wide - 1, 0), top + max(tall - 1, 0)), fill=255)


def _step(
    point: tuple[float, float], heading: float, length: float, canvas: ImageDraw.ImageDraw
) -> tuple[float, float]:
    """Where a step from a point leads, at most to the edge of the canvas."""
    width, height = canvas.im.size
    across = min(max(point[0] + length * math.sin(heading), 0), width)
    return across, min(max(point[1] + length * math.cos(heading), 0), height)


def _stroke(
    canvas: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], brush: float
) -> None:
    """A line with round corners and ends."""
    canvas.line(list(points), fill=255, width=max(round(brush), 1))
    for across, along in points:
        half = brush / 2
        canvas.ellipse((across - half, along - half, across + half, along + half), fill=255)


ELEMENTS = {"wide": _wide_stroke, "strokes": _folded_stroke, "boxes": _some_box}


def _hide(kind: str) -> Callable[..., torch.Tensor]:
    """The degradation that draws holes of a kind and blackens them."""

    def hide(
        image: torch.Tensor, share: float = 0.25, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return image.masked_fill(_draw_masks(image, share, kind, generator), 0)

    return hide


def _draw_masks(
    image: torch.Tensor, share: float, kind: str, generator: torch.Generator | None
) -> torch.Tensor:
    """A hole for each image `(B, C, H, W)`: `(B, 1, H, W)` bool."""
    height, width = image.shape[-2:]
    holes = [draw_mask(height, width, share, kind, generator) for _ in image]
    return torch.cat(holes).to(image.device)


# ---- fields and kernels that the degradations are made of


def smooth_field(height: int, width: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """A smooth random field `(1, 1, height, width)` that spans [0, 1]: a coarse random grid,
    enlarged."""
    cells = int(torch.randint(2, 6, (), generator=generator))
    coarse = torch.rand(1, 1, cells, cells, generator=generator)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (field - field.amin()) / (field.amax() - field.amin()).clamp(min=1e-6)


def random_depth(image: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """A plausible depth map `(B, 1, H, W)` in [0, 1] for a photo: ground that recedes upwards,
    smooth masses and flat objects, with the edges of the photo pressed into it by a guided filter
    (He et al., *Guided image filtering*, 2010). How sharply its objects stand before each other
    differs from scene to scene."""
    height, width = image.shape[-2:]
    depths = []
    for single in image.detach().float().cpu().split(1):
        guide = single.mean(1, keepdim=True)
        depth = torch.linspace(1, 0, height)[None, None, :, None] * _uniform((0, 1), generator)
        depth = depth + smooth_field(height, width, generator) * _uniform((0, 1), generator)
        depth = depth + flat_objects(
            single, generator, int(_uniform((4, 48), generator))
        ) * _uniform((0, 2), generator)
        depth = depth + _uniform((-0.6, 0.6), generator) * guide
        size = max(3, round(min(height, width) * 2 ** -_uniform((3, 7), generator)) | 1)
        depth = guided_blur(guide, depth, size, 10 ** -_uniform((2, 4), generator))
        depth = (depth - depth.amin()) / (depth.amax() - depth.amin()).clamp(min=1e-6)
        near = _uniform((0.05, 0.5), generator)
        depths.append(near + (1 - near) * depth)
    return torch.cat(depths).to(image)


def room_depth(image: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Depth `(1, 1, H, W)` in (0, 1] of a photo `(1, C, H, W)` as if of a room seen from inside:
    side walls, floor and ceiling run towards a far wall, flat objects stand before them, and the
    edges of the photo are pressed into it by a guided filter."""
    height, width = image.shape[-2:]
    longer = max(height, width)
    y = (
        (torch.linspace(-1, 1, height) - _uniform((-0.4, 0.4), generator))[:, None]
        * height
        / longer
    )
    x = (torch.linspace(-1, 1, width) - _uniform((-0.5, 0.5), generator))[None] * width / longer
    depth = torch.full((height, width), _uniform((1.5, 5.0), generator))
    for axis in (x, -x, y, -y):  # a plane at distance d fills what lies beyond d / |axis|
        plane = _uniform((0.4, 2.0), generator) / axis.clamp(min=1e-3)
        depth = torch.minimum(depth, plane.expand(height, width))
    photo = image.detach().float().cpu()
    objects = flat_objects(photo, generator, int(_uniform((6, 40), generator)))
    standing = (objects > _uniform((0.3, 0.9), generator)).float() * objects
    depth = depth[None, None] / depth.amax() * (1 - _uniform((0, 0.8), generator) * standing)
    size = max(3, (min(height, width) // 24) | 1)
    depth = guided_blur(photo.mean(1, keepdim=True), depth, size, 1e-3)
    return (depth / depth.amax().clamp(min=1e-6)).clamp(0.02, 1)


def flat_objects(
    image: torch.Tensor, generator: torch.Generator | None = None, count: int = 24
) -> torch.Tensor:
    """A field `(1, 1, H, W)` in [0, 1] of regions of one value each that follow the objects of a
    photo `(1, C, H, W)`: every pixel belongs to the nearest of `count` random ones in place and
    colour (a step of SLIC, Achanta et al. 2012)."""
    height, width = image.shape[-2:]
    scale = min(1.0, 96 / min(height, width))
    small = F.interpolate(
        image,
        [max(1, round(side * scale)) for side in (height, width)],
        mode="bilinear",
        antialias=True,
    )
    rows, columns = small.shape[-2:]
    place = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    ) / max(rows, columns)
    pixels = torch.cat([place, _uniform((0.5, 2.0), generator) * small[0]]).flatten(1).T
    seeds = pixels[torch.randint(len(pixels), (count,), generator=generator)]
    values = torch.rand(count, generator=generator)[torch.cdist(pixels, seeds).argmin(1)]
    return F.interpolate(
        values.reshape(1, 1, rows, columns), (height, width), mode="bilinear", align_corners=False
    )


def camera_path_kernel(length: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A blur kernel `(1, K, K)` with sum 1: the trace of a point under a random smooth motion of
    about `length` pixels."""
    steps = 96
    turn = torch.cumsum(0.25 * torch.randn(steps, generator=generator), 0)
    heading = turn + 2 * math.pi * _uniform((0, 1), generator)
    speed = 0.5 + torch.rand(steps, generator=generator)
    path = torch.cumsum(torch.stack([speed * torch.sin(heading), speed * torch.cos(heading)]), 1)
    path = path - (path.amax(1, keepdim=True) + path.amin(1, keepdim=True)) / 2
    path = path * (max(length - 1, 0) / 2) / path.abs().amax().clamp(min=1e-6)
    half = math.ceil(length / 2) + 1
    kernel = torch.zeros(2 * half + 1, 2 * half + 1)
    corner = path.floor()
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - (path[0] - corner[0] - dy).abs()) * (1 - (path[1] - corner[1] - dx).abs())
        index = ((corner[0] + dy + half).long(), (corner[1] + dx + half).long())
        kernel.index_put_(index, weight, accumulate=True)
    return (kernel / kernel.sum())[None]


def disc_kernel(radius: float) -> torch.Tensor:
    """An anti-aliased disc `(1, K, K)` of `radius` pixels with sum 1."""
    half = math.ceil(radius)
    axis = torch.arange(-half, half + 1).float()
    disc = (radius + 0.5 - torch.hypot(axis[:, None], axis[None])).clamp(0, 1)
    return (disc / disc.sum())[None]


def _sensor_noise(
    linear: torch.Tensor, peak: float, read_sigma: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Shot and read noise of linear light `(B, C, H, W)`; that of three channels lies on a Bayer
    mosaic and is demosaicked."""
    noise = torch.poisson(linear * peak, generator=generator) / peak - linear
    noise = noise + read_sigma / 255 * _normal(linear.shape, generator)
    if linear.shape[1] != 3:
        return noise
    rows, columns = (torch.arange(size) % 2 for size in linear.shape[-2:])
    red, blue = rows[:, None] + columns == 0, rows[:, None] + columns == 2
    mosaic = torch.stack([red, ~(red | blue), blue])[None].float()
    noise, weights = (
        filter2d(x * mosaic, BILINEAR, border_type="reflect")
        for x in (noise, torch.ones_like(noise))
    )
    return noise / weights


def _clumped(noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Noise smoothed by a Gaussian of `sigma` pixels; half of what its deviation loses is given
    back."""
    size = min(2 * math.ceil(2.5 * sigma) + 1, 2 * (min(noise.shape[-2:]) // 2) - 1)
    smooth = gaussian_blur2d(noise, (size, size), (sigma, sigma))
    return smooth * (noise.std() / smooth.std().clamp(min=1e-9)).sqrt()


def _cast_light(
    image: torch.Tensor, opacity: torch.Tensor, light: float, adds: bool
) -> torch.Tensor:
    """How drops of that opacity and brightness change an image: they add their light, or cover
    it."""
    return 0.6 * light * opacity if adds else opacity * (light - image)


def _streak_layer(
    height: int,
    width: int,
    angle: float,
    travel: float,
    nearness: float,
    intensity: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Opacity `(1, 1, height, width)` of streaks of about `travel` pixels: drops drawn out
    downwards, then turned by `angle` degrees."""
    length = max(3, round(travel * (0.4 + 0.6 * nearness) * _uniform((0.6, 1.4), generator)))
    thickness = 0.3 + 1.3 * nearness * _uniform((0.2, 1.0), generator)
    covered = (
        0.8
        * intensity
        * min(1, 10 * intensity)
        * (1.2 - nearness)
        * _uniform((0.1, 1.0), generator)
    )
    side = math.ceil(math.hypot(height, width)) + 2
    drops = torch.rand(1, 1, side + length - 1, side, generator=generator) < covered / (
        length * max(1, 2 * thickness)
    )
    drops = drops * torch.rand(drops.shape, generator=generator)
    # Brightness where a streak begins and ends.
    ends = (
        _uniform((0, 1), generator),
        _uniform((0, 1), generator),
    )
    streaks = F.conv2d(drops, torch.linspace(*ends, length)[None, None, :, None] / max(ends))
    if thickness > 0.5:
        size = 2 * math.ceil(2 * thickness) + 1
        streaks = gaussian_blur2d(streaks, (size, size), (thickness, thickness)) * 2 * thickness
    turned = rotate(streaks, torch.tensor([angle]), padding_mode="zeros", align_corners=True)
    top, left = (side - height) // 2, (side - width) // 2
    streaks = turned[..., top : top + height, left : left + width]
    return (streaks * (0.35 + 0.55 * intensity) * _uniform((0.4, 1.0), generator)).clamp(0, 0.9)


def _blur(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    border = "reflect" if max(kernel.shape[-2:]) // 2 < min(image.shape[-2:]) else "replicate"
    return filter2d(image, kernel, border_type=border)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(bounds: Range, generator: torch.Generator | None) -> float:
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()


# ---- recipes


class Ingredient(NamedTuple):
    """What a name in a recipe means: a degradation and the one parameter that the recipe's value
    sets."""

    function: Callable[..., torch.Tensor]
    parameter: str
    unit: str
    low: float
    high: float
    levels: dict[str, float]  # light, medium, heavy
    label: str  # what a detector calls it

    def severity(self, value: float) -> float:
        """A value on a common scale: light 0.25, medium 0.5, heavy 0.75, in between and beyond
        linear, within [0, 1]."""
        light, medium, heavy = self.levels.values()
        step = (medium - light) if (value < medium) == (light < medium) else (heavy - medium)
        return min(max(0.5 + 0.25 * (value - medium) / step, 0.0), 1.0)


def _eight_bit_noise(
    image: torch.Tensor, sigma: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    return gaussian_noise(image, sigma, eight_bit=True, generator=generator)


def _levels(light: float, medium: float, heavy: float) -> dict[str, float]:
    return {"light": light, "medium": medium, "heavy": heavy}


RECIPES = {
    "noise": Ingredient(
        gaussian_noise, "sigma", "0-255 scale, unclipped", 0, 255, _levels(15, 25, 50), "noise"
    ),
    "noise8": Ingredient(
        _eight_bit_noise,
        "sigma",
        "0-255 scale, clipped to 8 bits",
        0,
        255,
        _levels(15, 25, 50),
        "noise",
    ),
    "poisson": Ingredient(
        poisson_gaussian_noise, "peak", "photons at white", 1, 1e6, _levels(300, 100, 30), "noise"
    ),
    "camera": Ingredient(
        camera_noise, "peak", "photons at white", 1, 1e6, _levels(1000, 300, 100), "noise"
    ),
    "developed": Ingredient(
        developed_noise, "peak", "photons at white", 1, 1e6, _levels(1000, 300, 100), "noise"
    ),
    "rain": Ingredient(rain, "intensity", "0 to 1", 0, 1, _levels(0.3, 0.6, 1.0), "rain"),
    "haze": Ingredient(
        haze, "beta", "scattering per unit depth", 0, 10, _levels(0.8, 1.6, 3.0), "haze"
    ),
    "room": Ingredient(
        room_haze, "beta", "scattering per unit depth", 0, 10, _levels(0.6, 1.2, 2.4), "haze"
    ),
    "mist": Ingredient(
        mist, "beta", "scattering over the distance", 0, 10, _levels(0.3, 0.7, 1.5), "haze"
    ),
    "blur": Ingredient(
        motion_blur, "length", "pixels of camera path", 0, 101, _levels(7, 15, 31), "blur"
    ),
    "defocus": Ingredient(defocus, "radius", "pixels", 0, 50, _levels(2, 4, 8), "defocus"),
    "lowlight": Ingredient(
        low_light, "stops", "stops of missing light", 0, 10, _levels(1.5, 2.5, 4.0), "lowlight"
    ),
    "dim": Ingredient(dim, "amount", "0 to 1", 0, 1, _levels(0.2, 0.5, 0.9), "lowlight"),
    "jpeg": Ingredient(jpeg, "quality", "libjpeg quality", 1, 95, _levels(50, 25, 10), "jpeg"),
    "downup": Ingredient(
        down_up, "factor", "reduction of each side", 1, 64, _levels(2, 3, 4), "downup"
    ),
}


EDITS = {
    "mask": Ingredient(
        _hide("mixed"), "share", "share of the pixels", 0, 1, _levels(0.1, 0.25, 0.5), "inpaint"
    ),
    "wide": Ingredient(
        _hide("wide"), "share", "share of the pixels", 0, 1, _levels(0.1, 0.25, 0.5), "inpaint"
    ),
    "strokes": Ingredient(
        _hide("strokes"), "share", "share of the pixels", 0, 1, _levels(0.1, 0.25, 0.5), "inpaint"
    ),
    "box": Ingredient(
        _hide("box"), "share", "share of the pixels", 0, 1, _levels(0.0625, 0.25, 0.5), "inpaint"
    ),
    "gray": Ingredient(gray, "amount", "share of colour", 0, 1, _levels(0.5, 1, 1), "colorize"),
    "lightness": Ingredient(
        lightness, "amount", "share of colour", 0, 1, _levels(0.5, 1, 1), "colorize"
    ),
    "down": Ingredient(
        down, "factor", "reduction of each side", 1, 16, _levels(2, 4, 8), "super-resolution"
    ),
}
"""What the text-editable restorer gives back; the label of each is its task."""

MASKS = {"mask": "mixed", "wide": "wide", "strokes": "strokes", "box": "box"}
"""The edits that leave holes, and their kind in `draw_mask`."""

INGREDIENTS = RECIPES | EDITS


LABELS = tuple(dict.fromkeys(ingredient.label for ingredient in RECIPES.values()))
"""What a photo can suffer from: the one vocabulary of recipes, detector, restorer and tasks."""


class Step(NamedTuple):
    """A degradation in a recipe.

    Attributes:
        name: of an ingredient.
        low: of the range that its value is drawn from.
        high: of that range.
    """

    name: str
    low: float
    high: float

    @property
    def label(self) -> str:
        return INGREDIENTS[self.name].label


class Dose(NamedTuple):
    """A degradation with the value that was drawn for it."""

    name: str
    value: float

    @property
    def label(self) -> str:
        return INGREDIENTS[self.name].label

    @property
    def severity(self) -> float:
        return INGREDIENTS[self.name].severity(self.value)


@dataclass(frozen=True)
class Recipe:
    """Degradations in the order in which they are applied; written as it was read.

    Attributes:
        text: such as `rain:heavy+haze:0.8`.
        steps: one for each degradation, none for `clean`.
    """

    text: str
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str, edits: bool = False) -> "Recipe":
        """Read a recipe such as `rain:heavy+haze:0.8` or `noise:0..50`.

        `clean` (or an empty recipe) is no degradation at all. A name alone means its medium level.

        Args:
            text: degradations, joined by +.
            edits: whether `EDITS` such as `mask:0.25` may stand in it, of which restorers know
                nothing.

        Raises:
            ValueError: if a name or a value is not known, a value lies outside its range, or an
                edit is not allowed.
        """
        parts = [part.strip() for part in text.split("+")]
        steps = tuple(_parse_step(part, text) for part in parts if part not in ("", "clean"))
        for step in steps:
            if step.name in EDITS and not edits:
                raise ValueError(
                    f"`{step.name}` in recipe {text!r} is for edits ({step.label}), not for "
                    f"restorers; here recipes hold {', '.join(RECIPES)}, clean."
                )
        return cls(text, steps)

    @property
    def labels(self) -> tuple[str, ...]:
        """What it leaves in a photo, in order; a label may come twice. Edits leave none."""
        return tuple(step.label for step in self.steps if step.name in RECIPES)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The edits that undo it, in order."""
        return tuple(step.label for step in self.steps if step.name in EDITS)

    def draw(self, generator: torch.Generator | None = None) -> list[Dose]:
        """Its degradations with one value each; where it gives a range, the value is drawn from
        that."""
        return [
            Dose(name, _uniform((low, high), generator) if low != high else low)
            for name, low, high in self.steps
        ]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Mixture:
    """Recipes to draw from.

    Attributes:
        recipes: at least one.
        shares: their probabilities.
    """

    recipes: tuple[Recipe, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], edits: bool = False) -> "Mixture":
        """Read weighted recipes such as `["noise:0..50@4", "rain:heavy@1"]`; without a weight one
        weighs 1.

        Args:
            texts: the recipes.
            edits: whether `EDITS` may stand in them, see `Recipe.parse`.

        Raises:
            ValueError: if there is no recipe, a weight is not a positive number or a recipe is not
                understood.
        """
        if not texts:
            raise ValueError(
                "At least one degradation recipe is needed, for instance `noise:0..50`."
            )
        recipes, weights = [], []
        for text in texts:
            recipe, at, weight = text.partition("@")
            recipes.append(Recipe.parse(recipe, edits))
            try:
                weights.append(float(weight) if at else 1.0)
            except ValueError:
                weights.append(0.0)
            if not 0 < weights[-1] < float("inf"):
                raise ValueError(
                    f"The weight in {text!r} must be a positive number, as in `{recipe}@2`."
                )
        return cls(tuple(recipes), tuple(weight / sum(weights) for weight in weights))

    def draw(self, generator: torch.Generator | None = None) -> Recipe:
        return self.recipes[
            int(torch.multinomial(torch.tensor(self.shares), 1, generator=generator))
        ]


def _parse_step(text: str, recipe: str) -> Step:
    name, _, value = text.partition(":")
    if name not in INGREDIENTS:
        raise ValueError(
            f"Unknown degradation {name!r} in recipe {recipe!r}; known are {', '.join(RECIPES)}, "
            f"clean, and for edits {', '.join(EDITS)}."
        )
    first, dots, last = (value or "medium").partition("..")
    low = _parse_value(name, first, recipe)
    return Step(name, low, _parse_value(name, last, recipe) if dots else low)


def _parse_value(name: str, text: str, recipe: str) -> float:
    ingredient = INGREDIENTS[name]
    try:
        value = ingredient.levels[text] if text in ingredient.levels else float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} in recipe {recipe!r} is neither a number nor one of "
            f"{', '.join(ingredient.levels)}."
        ) from None
    if not ingredient.low <= value <= ingredient.high:
        raise ValueError(
            f"{name} takes {ingredient.parameter} from {ingredient.low:g} to {ingredient.high:g} "
            f"({ingredient.unit}), got {value:g}."
        )
    return value


class Remainder(NamedTuple):
    """What a recipe leaves of photos.

    Attributes:
        image: `(B, C, H, W)`; holes are black.
        hole: `(B, 1, H, W)` bool, where nothing is known; all false without a mask.
    """

    image: torch.Tensor
    hole: torch.Tensor


def apply_doses(
    image: torch.Tensor, doses: Sequence[Dose], generator: torch.Generator | None = None
) -> torch.Tensor:
    """Degrade images `(B, C, H, W)` by what was drawn of a recipe, all alike."""
    return take_away_doses(image, doses, generator).image


def take_away_doses(
    image: torch.Tensor, doses: Sequence[Dose], generator: torch.Generator | None = None
) -> Remainder:
    """What is left of images `(B, C, H, W)` after what was drawn of a recipe, all alike."""
    hole = torch.zeros_like(image[:, :1], dtype=torch.bool)
    for name, value in doses:
        if name in MASKS:
            hole = hole | _draw_masks(image, value, MASKS[name], generator)
        else:
            ingredient = INGREDIENTS[name]
            image = ingredient.function(image, **{ingredient.parameter: value}, generator=generator)
        if hole.shape[-2:] != image.shape[-2:]:
            # A small pixel is unknown if any that it was made of is.
            hole = F.adaptive_max_pool2d(hole.float(), image.shape[-2:]) > 0
        if hole.any():
            image = image.masked_fill(hole, 0)
    return Remainder(image, hole)


def degrade(
    image: torch.Tensor, recipe: str | Recipe, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Apply a recipe to images; each image draws its own values where the recipe gives ranges.

    Args:
        image: `(B, C, H, W)` in [0, 1].
        recipe: a recipe, or its text, see `Recipe.parse`; edits may stand in it.
        generator: source of randomness; the same seed gives the same result.

    Returns:
        `(B, C, H, W)`, in [0, 1] except after unclipped `noise`; smaller after `down`.

    Raises:
        ValueError: if the recipe is not understood, the image is not `(B, C, H, W)`, or images of
            a batch would get different sizes.
    """
    return take_away(image, recipe, generator).image


def take_away(
    image: torch.Tensor, recipe: str | Recipe, generator: torch.Generator | None = None
) -> Remainder:
    """As `degrade`, and where the holes are.

    Raises:
        ValueError: as `degrade`.
    """
    if image.ndim != 4:
        raise ValueError(f"`image` must be (B, C, H, W), got shape {tuple(image.shape)}.")
    recipe = Recipe.parse(recipe, edits=True) if isinstance(recipe, str) else recipe
    remainders = [
        take_away_doses(single, recipe.draw(generator), generator) for single in image.split(1)
    ]
    sizes = sorted({tuple(remainder.image.shape[-2:]) for remainder in remainders})
    if len(sizes) > 1:
        raise ValueError(
            f"The images of a batch would get different sizes by {str(recipe)!r}, such as "
            f"{sizes[0]} and {sizes[-1]}; degrade them one at a time."
        )
    return Remainder(
        torch.cat([remainder.image for remainder in remainders]),
        torch.cat([remainder.hole for remainder in remainders]),
    )
