"""How far a photo restored in tiles is from the same photo restored at once, and whether seams
show."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from textir.degradations import degrade


class Agreement(NamedTuple):
    """Differences between both results, on the 0-255 scale.

    Attributes:
        tile: side of the tiles in pixels.
        largest: of all pixels and channels.
        mean: of them.
        seam: mean where tiles overlap; `nan` where none does.
        interior: mean elsewhere.
    """

    tile: int
    largest: float
    mean: float
    seam: float
    interior: float


@torch.no_grad()
def compare_tiles(
    pipe,
    image: torch.Tensor,
    tiles: Sequence[int],
    recipe: str | None = None,
    overlap: int = 32,
    seed: int = 0,
) -> list[Agreement]:
    """Restore a photo at once, and in tiles.

    Args:
        pipe: a restoration pipeline.
        image: `(1, 3, H, W)` in [0, 1].
        tiles: sides in pixels.
        recipe: what is done to the photo before.
        overlap: of tiles in pixels.
        seed: of the recipe.

    Raises:
        ValueError: if the photo has fewer pixels than a tile, or the recipe is not understood.
    """
    height, width = image.shape[-2:]
    whole_tiles = [tile for tile in tiles if tile >= max(height, width)]
    if whole_tiles:
        raise ValueError(
            f"A tile of {whole_tiles[0]} pixels holds all of this photo of {width} x {height}; "
            "take a larger photo or a smaller `--tile`."
        )
    if recipe is not None:
        image = degrade(image, recipe, torch.Generator().manual_seed(seed))
    image = image.to(pipe.device)
    whole = pipe.restore(image, tile=None)[0]
    found = []
    for tile in tiles:
        tiled = pipe.restore(image, tile=tile, overlap=overlap)[0]
        difference = 255 * (tiled - whole).abs()[0]
        at_seam = seams(height, width, tile, overlap).to(difference.device)
        found.append(
            Agreement(
                tile,
                float(difference.max()),
                float(difference.mean()),
                float(difference[:, at_seam].mean()),
                float(difference[:, ~at_seam].mean()),
            )
        )
    return found


def seams(height: int, width: int, tile: int, overlap: int) -> torch.Tensor:
    """Where tiles overlap, `(H, W)` bool."""
    shared = [torch.zeros(side, dtype=torch.bool) for side in (height, width)]
    for side, covered in zip((height, width), shared):
        count = 1 if side <= tile else -(-(side - tile) // (tile - overlap)) + 1
        starts = [round(i * (side - tile) / (count - 1)) for i in range(count)] if count > 1 else []
        for before, start in pairwise(starts):
            covered[start : before + tile] = True
    return shared[0][:, None] | shared[1][None]
