"""What a visitor asks for: as the page's inputs hold it, and as the pipeline takes it."""

from dataclasses import dataclass, fields

from textir.images.picture import Picture


@dataclass(frozen=True)
class Settings:
    """A run, but for its photo; the defaults are those of the pipeline.

    Attributes:
        task: what to remove; auto: find out.
        keep: what must stay.
        tile: side of the tiles in pixels; auto: by free memory.
        seed: of everything random.
        guidance_strength: weight of the guidance; `None`: the checkpoint's own choice.
        guidance: cleaned, degraded, prompt or none.
        prompt: words that describe the clean photo.
        negative_prompt: what it should not show.
        num_inference_steps: denoising steps; `None`: the checkpoint's default.
        guidance_scale: classifier-free guidance; `None`: the checkpoint's default.
        reference: a photo of the same scene that guides instead of a painted one.
        both_words: also paint from the words before cleaning.
        adapter: LoRA weights that act beside the checkpoint's own; empty: none.
        instruction: a sentence that says what to remove and what to keep, in place of both.
        return_tags: say what photo, guidance and result show.
    """

    task: str = "auto"
    keep: str | None = None
    tile: int | str = "auto"
    seed: int = 0
    guidance_strength: float | None = None
    guidance: str = "cleaned"
    prompt: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    reference: Picture | None = None
    both_words: bool = False
    adapter: str = ""
    instruction: str | None = None
    return_tags: bool = False

    @property
    def is_told(self) -> bool:
        """Whether a visitor says what to remove, so that nothing needs to be found out."""
        return self.task != "auto" or self.instruction is not None

    @property
    def painting(self) -> dict:
        """What the painter is told, as keyword arguments of the pipeline."""
        names = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
        return {name: getattr(self, name) for name in names}

    @property
    def restoring(self) -> dict:
        """What painter and restorer are told, as keyword arguments of the pipeline."""
        names = ("task", "keep", "tile", "guidance_strength", "guidance")
        names += ("instruction", "return_tags")
        return {name: getattr(self, name) for name in names} | self.painting


@dataclass(frozen=True)
class Wish:
    """The inputs of the tab Restore beside the photo, in the order of the API."""

    task: list[str]
    keep: list[str]
    prompt: str
    negative_prompt: str
    guidance: str
    strength: str | float
    steps: int
    guidance_scale: float
    seed: float | None
    tile: int
    adapter: str
    both_words: bool
    instruction: str = ""
    size: str = "fast"

    @property
    def arguments(self) -> list:
        """The inputs as the API takes them."""
        return [getattr(self, field.name) for field in fields(self)]

    def settings(self, with_guidance: bool, with_tags: bool = False) -> Settings:
        """The wish as the pipeline takes it.

        Args:
            with_guidance: whether guidance can be painted.
            with_tags: whether the model can say what a photo shows.

        Raises:
            ValueError: if seed or strength cannot be, or if a guidance that cannot be painted is
                described.
        """
        painting = {}
        described = [self.prompt, self.negative_prompt, self.steps, self.guidance_scale]
        described.append(self.guidance in ("degraded", "prompt"))
        if not with_guidance and any(described):
            raise ValueError(
                "This checkpoint paints no guidance: leave out guidance, prompt, negative prompt, "
                "steps and guidance scale."
            )
        if with_guidance:
            painting = {
                "guidance": self.guidance,
                "prompt": self.prompt or None,
                "negative_prompt": self.negative_prompt or None,
                "num_inference_steps": int(self.steps) or None,
                "guidance_scale": self.guidance_scale or None,
                "both_words": self.both_words,
            }
        return Settings(
            task=joined(self.task) or "auto",
            keep=joined(self.keep),
            tile=int(self.tile) or "auto",
            seed=whole(self.seed),
            guidance_strength=weight(self.strength),
            adapter=(self.adapter or "").strip(),
            instruction=(self.instruction or "").strip() or None,
            return_tags=with_tags,
            **painting,
        )


def whole(seed: float | None) -> int:
    """A seed that a generator takes.

    Raises:
        ValueError: if it is none.
    """
    if seed is None or not 0 <= seed < 2**63 or int(seed) != seed:
        raise ValueError("The seed must be a whole number from 0 to 2^63 - 1.")
    return int(seed)


def joined(names: list[str] | None) -> str | None:
    """Pressed buttons as the text that Python and the command line take."""
    return "+".join(names) if names else None


def weight(strength: str | float) -> float | None:
    """The weight of the guidance; `None` for the checkpoint's own choice.

    Raises:
        ValueError: if it is neither auto nor a number.
    """
    if strength == "auto":
        return None
    try:
        return float(strength)
    except ValueError:
        raise ValueError(
            f"The strength must be auto or a number from 0 to 1, got {strength!r}."
        ) from None
