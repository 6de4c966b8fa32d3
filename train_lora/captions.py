"""Words for degradations: what a caption says of them, and a caption without them.

The paper compares its implicit words with explicit ones: a caption whose words for the degradation
are deleted (section 4.4).
"""

import re
from itertools import chain

DEGRADATION_WORDS = {
    "noise": ("noisy", "noise", "grainy", "grain", "speckled"),
    "rain": ("rainy", "rain", "raining", "raindrops", "wet"),
    "haze": ("hazy", "haze", "foggy", "fog", "misty", "mist", "smoky"),
    "blur": ("blurry", "blurred", "blur", "shaky", "motion-blurred"),
    "defocus": ("unfocused", "defocused", "out-of-focus", "out of focus"),
    "lowlight": ("dark", "dim", "underexposed", "under-exposed", "low-light"),
    "jpeg": ("compressed", "blocky", "pixelated", "pixellated"),
}

_LONGEST_FIRST = sorted(chain.from_iterable(DEGRADATION_WORDS.values()), key=len, reverse=True)
_ANY = "|".join(map(re.escape, _LONGEST_FIRST))
_WORD = (
    rf"(?:(?:very|quite|slightly|heavy|heavily|thick|dense|pouring) )?(?:{_ANY})(?:-\w+)?(?![\w-])"
)
_GONE = "\0"


def without_degradations(caption: str) -> str:
    """A caption without the words for degradations: "a rainy photo of a dog" -> "a photo of a
    dog"."""
    nouns = (
        rf"(?:in|on|with|through|under|during|by) (?:the |a |some )?{_WORD}(?=[\s,.;)]|$)(?! "
        r"\w+ of\b)"
    )
    kept = re.sub(rf"(?<![\w-]){nouns}", "", caption, flags=re.IGNORECASE)
    kept = re.sub(
        rf"(?<![\w-]){_WORD}(?:,? (?:and|or) (?={_WORD}))?", _GONE, kept, flags=re.IGNORECASE
    )
    if kept == caption:
        return caption
    kept = re.sub(rf"{_GONE}(?:\s*,?\s*{_GONE})*", _GONE, kept)  # a list of such words is one gap
    kept = re.sub(
        rf"\b([Aa])n? {_GONE},? *(?=(\w))",
        lambda m: f"{m[1]}{'n' if m[2] in 'aeiouAEIOU' else ''} ",
        kept,
    )
    kept = re.sub(rf",\s*{_GONE}(?=\s*[,.;)]|$)|{_GONE},|{_GONE}", "", kept)
    kept = re.sub(r"\(\s*\)", "", re.sub(r"\s+", " ", kept))
    kept = re.sub(r"(?:\s*,)+(?=\s*(?:[.;)]|$))", "", re.sub(r"\s+([,.;)])", r"\1", kept))
    return re.sub(r"\s+", " ", kept).strip(" ,;").removeprefix(".").strip()
