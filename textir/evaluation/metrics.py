"""PSNR and SSIM as the field reports them, on 8-bit rounded images (scikit-image does the
arithmetic)."""

from dataclasses import dataclass

import numpy as np
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


@dataclass(frozen=True)
class Protocol:
    """How two images are compared; a score without its protocol means little.

    Attributes:
        color: `rgb`, or `y` for the luma of ITU-R BT.601 in [16, 235].
        border: pixels left out on every side.
        multiple: crop the centre to a multiple of this many pixels (16 in the PromptIR family); 1
            keeps everything.
    """

    color: str = "rgb"
    border: int = 0
    multiple: int = 1

    def __post_init__(self):
        if self.color not in ("rgb", "y"):
            raise ValueError(f"`color` must be rgb or y, got {self.color!r}.")
        if self.border < 0 or self.multiple < 1:
            raise ValueError(
                f"`border` must be at least 0 and `multiple` at least 1, got {self.border} and "
                f"{self.multiple}."
            )

    def __str__(self) -> str:
        crop = f", centre crop to a multiple of {self.multiple}" if self.multiple > 1 else ""
        border = f", {self.border} px border left out" if self.border else ""
        return f"{self.color.upper()} PSNR/SSIM of 8-bit images, mean over images{border}{crop}"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` in [0, 1] -> what is compared, `(H', W', C)` in [0, 1], rounded to 8 bits
        before conversion to luma.

        Raises:
            ValueError: if nothing is left of the image.
        """
        size = image.shape[:2]
        image = (image.astype(np.float64).clip(0, 1) * 255).round() / 255
        image = center_crop(image, self.multiple)
        if self.border:
            image = image[self.border : -self.border, self.border : -self.border]
        if not image.size:
            raise ValueError(
                f"Nothing of a {size[1]} x {size[0]} image is left to compare under the protocol: "
                f"{self}."
            )
        return rgb2ycbcr(image)[..., :1] / 255 if self.color == "y" else image


def center_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """The centre of `(H, W, C)` whose sides are multiples of `multiple`."""
    height, width = (side - side % multiple for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def psnr(restored: np.ndarray, clean: np.ndarray, protocol: Protocol = Protocol()) -> float:
    """Peak signal-to-noise ratio in dB of two `(H, W, 3)` images in [0, 1]; infinite if they are
    equal."""
    restored, clean = _prepared(restored, clean, protocol)
    if np.array_equal(restored, clean):
        return float("inf")
    return float(peak_signal_noise_ratio(clean, restored, data_range=1.0))


def ssim(restored: np.ndarray, clean: np.ndarray, protocol: Protocol = Protocol()) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of sigma 1.5) of two `(H, W, 3)`
    images in [0, 1]."""
    restored, clean = _prepared(restored, clean, protocol)
    return float(
        structural_similarity(
            clean,
            restored,
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def mean_average_precision(scores, present) -> float:
    """Mean over labels of the average precision: of how many images ranked as high as each true one
    the label is true.

    Args:
        scores: `(images, labels)`, higher where a label is more likely.
        present: `(images, labels)`, whether it is true; labels without a true image, or with no
            other, are left out.

    Returns:
        a value in [0, 1], NaN if no label is left.
    """
    scores, present = np.asarray(scores, float), np.asarray(present, bool)
    values = []
    for score, true in zip(scores.T, present.T):
        if 0 < true.sum() < len(true):
            # For each true image those ranked as high.
            at_least = score[None] >= score[true][:, None]
            values.append(((at_least & true).sum(1) / at_least.sum(1)).mean())
    return float(np.mean(values)) if values else float("nan")


def _prepared(
    restored: np.ndarray, clean: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    if restored.shape != clean.shape:
        raise ValueError(f"Images of one size are needed, got {restored.shape} and {clean.shape}.")
    return protocol.prepare(restored), protocol.prepare(clean)
