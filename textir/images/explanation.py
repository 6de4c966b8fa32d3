"""What a pipeline saw in a photo and did to it, in words and in files."""

import json
from pathlib import Path

from textir.images.picture import (
    Picture,
    to_pixels,
    write_picture,
)
from textir.machine import writing

HARDLY = 1.0  # mean change on the 0-255 scale below which a photo counts as unchanged


SURE = 0.05  # probabilities above this are worth telling


def what_was_done(output, hint: str = "task") -> str:
    """A line on what a pipeline removed from an image and how far it went; where that is next to
    nothing, with the way out.

    Args:
        output: of a pipeline, of one image.
        hint: how the user names tasks.
    """
    parts = []
    if output.removed is not None and output.removed[0] is not None:
        parts.append(f"told to remove: {', '.join(output.removed[0]) or 'nothing'}")
    else:
        parts.append("found out by itself what to remove")
    if output.degradation is not None:
        seen = sorted(output.degradation[0].items(), key=lambda item: -item[1])
        shares = [f"{label} {probability:.0%}" for label, probability in seen if probability > SURE]
        parts.append(f"seen: {', '.join(shares)}" if shares else "seen: nothing")
    if output.change is not None:
        parts.append(f"mean change {output.change[0]:.1f} of 255")
        if output.change[0] < HARDLY:
            parts.append(
                f"hardly changed; to say what shall go, pass {hint} (such as denoise, dehaze, "
                "lowlight)"
            )
    return "; ".join(parts)


def write_intermediates(folder: Path, output) -> None:
    """Everything that a pipeline's output (of one image, as tensors) shows, as PNG files and
    `words.json`."""
    pictures = {
        "guidance": output.guidance_images[0] if output.guidance_images is not None else None,
        "match_confidence": output.match_confidence[0]
        if output.match_confidence is not None
        else None,
        "influence": output.influence[0] if output.influence is not None else None,
    }
    for name, tensor in pictures.items():
        if tensor is not None:
            pixels = to_pixels(tensor)
            is_gray = pixels.shape[-1] == 1
            write_picture(
                folder / f"{name}.png",
                Picture(pixels.repeat(3, -1) if is_gray else pixels, is_gray=is_gray),
            )
    words = {
        "guidance": output.guidance,
        "guidance_strength": output.guidance_strength and output.guidance_strength[0],
        "removed": output.removed and output.removed[0],
        "change": output.change and output.change[0],
        "degradation": output.degradation and output.degradation[0],
        "severity": output.severity and output.severity[0],
        "nearest_tokens": output.nearest_tokens and output.nearest_tokens[0],
    }
    with writing(folder / "words.json") as temporary:
        temporary.write_text(json.dumps(words, indent=2) + "\n")
