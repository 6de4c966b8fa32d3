"""How long work will take, learnt from what was done before."""

from dataclasses import dataclass

TELLING = 0.1  # megapixels from which a photo tells how fast a machine is


@dataclass
class Pace:
    """Seconds that every photo takes, and seconds a megapixel.

    Small photos say little of large ones: they count only as long as nothing better is known.

    Attributes:
        base: seconds of what does not depend on the size.
        per_megapixel: seconds a megapixel; `None`: not known yet.
    """

    base: float = 0.0
    per_megapixel: float | None = None

    def learn(self, size: tuple[int, int], seconds: float, base: float = 0.0) -> None:
        """Remember a run.

        Args:
            size: height and width of the photo in pixels.
            seconds: that went with its pixels.
            base: seconds of all the rest.
        """
        pixels = megapixels(size)
        if pixels >= TELLING or self.per_megapixel is None:
            self.base, self.per_megapixel = base, seconds / pixels

    def estimate(self, size: tuple[int, int], runs: int = 1) -> float | None:
        """Seconds that photos of a size will take; `None`: not known yet."""
        if self.per_megapixel is None:
            return None
        return self.base + runs * self.per_megapixel * megapixels(size)


def megapixels(size: tuple[int, int]) -> float:
    """Millions of pixels of a height and width."""
    return size[0] * size[1] / 1e6
