"""How results are measured, as one object: a score without its protocol means little.

Presets are those of published code. `plain` is how Restormer's colour denoising is scored: noise
stays a float, and all channels of 8-bit images are compared. `promptir` is that of AirNet and
PromptIR (`utils/val_utils.py`): crops to a multiple of 16, noisy images cut to 8 bits, floats
compared, SSIM with uniform windows. `restormer-y` is that of deraining tables since MPRNet
(`evaluate_PSNR_SSIM.m`): the luma of 8-bit images, itself rounded to 8 bits.
"""

import zlib
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from skimage.color import rgb2ycbcr

CHOICES = {
    "color": ("rgb", "y"),
    "noise": ("float", "clipped"),
    "window": ("gaussian", "uniform"),
    "rounding": ("none", "image", "luma"),
}


@dataclass(frozen=True)
class Protocol:
    """How images are degraded and compared.

    Attributes:
        color: `rgb`, or `y` for the luma of ITU-R BT.601 in [16, 235].
        border: pixels left out on every side.
        multiple: crop the centre to a multiple of this many pixels (16 in the PromptIR family); 1
            keeps everything. Test images are cropped before they are degraded.
        noise: of images degraded by a recipe: `float` as it is, or `clipped` to [0, 1] and cut to 8
            bits (fractions are dropped, as published code does).
        window: of SSIM: `gaussian` (Wang et al. 2004, sigma 1.5), or `uniform`, 7 x 7.
        rounding: `image` rounds images to 8 bits, `luma` also their luma (as MATLAB's `rgb2ycbcr`),
            `none` neither.
    """

    color: str = "rgb"
    border: int = 0
    multiple: int = 1
    noise: str = "float"
    window: str = "gaussian"
    rounding: str = "image"

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"`{name}` must be {' or '.join(known)}, got {getattr(self, name)!r}."
                )
        if self.border < 0 or self.multiple < 1:
            raise ValueError(
                f"`border` must be at least 0 and `multiple` at least 1, got {self.border} and "
                f"{self.multiple}."
            )
        if self.rounding == "luma" and self.color != "y":
            raise ValueError("`rounding='luma'` belongs to `color='y'`; take `image`.")

    def __str__(self) -> str:
        compared = {"none": "float images", "image": "8-bit images", "luma": "8-bit luma"}
        crop = f", centre crop to a multiple of {self.multiple}" if self.multiple > 1 else ""
        border = f", {self.border} px border left out" if self.border else ""
        noise = ", degraded images cut to 8 bits" if self.noise == "clipped" else ""
        window = ", SSIM with uniform windows" if self.window == "uniform" else ""
        return (
            f"{self.color.upper()} PSNR/SSIM of {compared[self.rounding]}, mean over images{border}"
            f"{crop}{noise}{window}"
        )

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def generator(name: str, seed: int = 0) -> torch.Generator:
        """Randomness of a test image: from its file's name and `seed`, so that it is degraded alike
        whatever else is in the folder."""
        return torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)

    def as_given(self, degraded: np.ndarray) -> np.ndarray:
        """A degraded image `(H, W, C)` as the restorer gets it."""
        if self.noise == "float":
            return degraded
        # The small addend keeps whole levels, which floats miss by a little.
        return (np.floor(degraded.clip(0, 1) * 255 + 1e-4) / 255).astype(np.float32)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The centre of `(H, W, C)` whose sides are multiples of `multiple`.

        Raises:
            ValueError: if nothing is left of it.
        """
        cropped = center_crop(image, self.multiple)
        self._check_left(cropped, image)
        return cropped

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` in [0, 1] -> what is compared, `(H', W', C)` in [0, 1].

        Raises:
            ValueError: if nothing is left of the image.
        """
        compared = self.crop(image).astype(np.float64).clip(0, 1)
        if self.rounding != "none":
            compared = (compared * 255).round() / 255
        if self.border:
            compared = compared[self.border : -self.border, self.border : -self.border]
        self._check_left(compared, image)
        if self.color == "rgb":
            return compared
        luma = rgb2ycbcr(compared)[..., :1]
        return (luma.round() if self.rounding == "luma" else luma) / 255

    def _check_left(self, left: np.ndarray, image: np.ndarray) -> None:
        if not left.size:
            raise ValueError(
                f"Nothing of a {image.shape[1]} x {image.shape[0]} image is left to compare under "
                f"the protocol: {self}."
            )


PRESETS = {
    "plain": Protocol(),
    "promptir": Protocol(multiple=16, noise="clipped", window="uniform", rounding="none"),
    "restormer-y": Protocol("y", rounding="luma"),
}
"""Protocols of published tables."""
SHORT = {"rgb": Protocol(), "y": Protocol("y")}


def read_protocol(
    name: str = "plain",
    border: int | None = None,
    multiple: int | None = None,
    noise: str | None = None,
) -> Protocol:
    """A protocol by name, with what is said beside it.

    Args:
        name: a key of `PRESETS`, `rgb` (the same as `plain`) or `y`, the luma of 8-bit images.
        border: and the others: of `Protocol`, in place of the preset's.

    Raises:
        ValueError: if the name is unknown, or a value is out of range.
    """
    known = {**PRESETS, **SHORT}
    if name not in known:
        raise ValueError(f"The protocol must be one of {', '.join(known)}; got {name!r}.")
    base = known[name]
    return replace(
        base,
        border=base.border if border is None else border,
        multiple=base.multiple if multiple is None else multiple,
        noise=base.noise if noise is None else noise,
    )


def center_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """The centre of `(H, W, C)` whose sides are multiples of `multiple`."""
    height, width = (side - side % multiple for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
