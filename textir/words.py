"""Words for degradations: what a caption says of them, and a caption without them.

The paper compares its implicit words with explicit ones: a caption whose words for the degradation are deleted (section 4.4).
"""

import re

DEGRADATION_WORDS = {
    "noise": ("noisy", "noise", "grainy", "grain", "speckled"),
    "rain": ("rainy", "rain", "raining", "raindrops", "wet"),
    "haze": ("hazy", "haze", "foggy", "fog", "misty", "mist", "smoky"),
    "blur": ("blurry", "blurred", "blur", "shaky", "motion-blurred"),
    "defocus": ("unfocused", "defocused", "out-of-focus", "out of focus"),
    "lowlight": ("dark", "dim", "underexposed", "under-exposed", "low-light"),
    "jpeg": ("compressed", "blocky", "pixelated", "pixellated"),
}

_EVERY = sorted((word for words in DEGRADATION_WORDS.values() for word in words), key=len, reverse=True)
_PATTERN = re.compile(rf"\b(?:very |quite |slightly |heavy |heavily )?(?:{'|'.join(map(re.escape, _EVERY))})\b", re.IGNORECASE)


def without_degradations(caption: str) -> str:
    """A caption without the words for degradations: "a rainy photo of a dog" -> "a photo of a dog"."""
    kept = _PATTERN.sub("", caption)
    kept = re.sub(r"\b(?:in|on|with|through) (?:the |a )?(?=[,.;]|$)", "", re.sub(r"\s+", " ", kept).strip())
    return re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s+", " ", kept)).strip(" ,;")
