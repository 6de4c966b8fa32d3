"""What a restorer is told during training: which of the degradations in a photo shall go, and what
the photo then looks like.

A condition is a vector with an entry for each label, 1 where that degradation shall go, and a last
one for "find out yourself". Samples whose wish is only a part of what is wrong, or something that
is not there at all, teach a network to leave the rest alone. Ours; not in the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from textir.degradations import LABELS

SCENE = ("rain", "haze", "blur", "defocus", "lowlight")
"""What can still be seen in a photo after something else was done to it, so that it can be kept."""

ABSENT_SHARE = 0.12  # of the told samples, told something that is not there
PARTIAL_SHARE = 0.5  # of those in which it makes sense, told only what was done last
EXTRA_SHARE = 0.1  # of the others, told one thing more than there is
HIDES_NOISE = {"lowlight"}  # dark photos are noisy, so noise is never absent from them


class Wish(NamedTuple):
    """What a sample asks for.

    Attributes:
        condition: `(len(LABELS) + 1,)`.
        kept: how many of the first degradations of the sample the target keeps.
    """

    condition: torch.Tensor
    kept: int = 0


def condition_of(removed: Sequence[str] = (), blind: bool = False) -> torch.Tensor:
    """The condition `(len(LABELS) + 1,)` that asks for labels to be removed, or for the network to
    find out."""
    return torch.tensor([float(label in removed) for label in LABELS] + [float(blind)])


def draw_wish(
    present: Sequence[str],
    told_share: float,
    generator: torch.Generator | None = None,
    known: Sequence[str] = LABELS,
) -> Wish:
    """Draw what to ask of a sample.

    Args:
        present: labels of what was done to the photo, in that order; a label may come twice.
        told_share: probability that the network is told; otherwise it has to find out.
        generator: source of randomness.
        known: labels that the training data show at all. Only these are named where they are
            absent: a label that is never present would be learnt as "do nothing".
    """

    def chance() -> float:
        return torch.rand((), generator=generator).item()

    if chance() >= told_share:
        return Wish(condition_of(blind=True))
    hidden = {"noise"} if HIDES_NOISE & set(present) else set()
    absent = [label for label in known if label not in present and label not in hidden]
    if chance() < ABSENT_SHARE and absent:
        return Wish(
            condition_of(_some(absent, 1 + (chance() < 1 / 3), generator)), kept=len(present)
        )
    cuts = [cut for cut in range(1, len(present)) if _can_keep(present[:cut], present[cut:])]
    if cuts and chance() < PARTIAL_SHARE:
        cut = cuts[int(torch.randint(len(cuts), (), generator=generator))]
        return Wish(condition_of(present[cut:]), kept=cut)
    extra = _some(absent, 1, generator) if chance() < EXTRA_SHARE and absent else []
    return Wish(condition_of([*present, *extra]))


def draw_wish_of_pair(
    present: Sequence[str],
    told_share: float,
    generator: torch.Generator | None = None,
    known: Sequence[str] = LABELS,
) -> Wish:
    """The same for a pair, whose degradations cannot be had apart: all of it shall go, or nothing.
    Of pairs that suffer from several, half name the first alone: people say what they see first.
    `kept` is then 0 or all."""
    wish = draw_wish(present[:1], told_share, generator, known)
    told = [label for label, entry in zip(LABELS, wish.condition) if entry]
    if wish.kept:
        told = [label for label in told if label not in present]
        return Wish(condition_of(told), kept=len(present))
    if told and torch.rand((), generator=generator) < 0.5:
        return Wish(condition_of([*told, *present]))
    return wish


def _can_keep(kept: Sequence[str], removed: Sequence[str]) -> bool:
    return set(kept) <= set(SCENE) and not set(kept) & set(removed)


def _some(labels: Sequence[str], count: int, generator: torch.Generator | None) -> list[str]:
    order = torch.randperm(len(labels), generator=generator).tolist()
    return [labels[i] for i in order[:count]]
