"""Inputs that several tabs have: a photo, and buttons for what goes and what stays."""

import gradio as gr

from textir.space.model import Model


class Photo(gr.Image):
    """An image input that hands over the uploaded file untouched.

    So 16 bits, alpha and profile survive, and broken files can be explained.
    """

    is_template = True  # shown as its parent

    def preprocess(self, payload) -> str | None:
        return None if payload is None else payload.path


class Buttons(gr.CheckboxGroup):
    """Names to press, several at once.

    Who calls the API may also write them as the command line takes them: `denoise+dehaze`, `auto`.
    """

    is_template = True  # shown as its parent

    def preprocess(self, payload: list[str] | str | None) -> list[str]:
        names = payload.split("+") if isinstance(payload, str) else payload or []
        stripped = [name.strip() for name in names]
        return super().preprocess([name for name in stripped if name not in ("", "auto")])


def photo_input(label: str, height: int, visible: bool = True) -> Photo:
    sources = ["upload", "clipboard", "webcam"]
    return Photo(
        label=label, type="filepath", format="png", sources=sources, height=height, visible=visible
    )


def task_buttons(model: Model) -> Buttons:
    """What to remove."""
    info = "This checkpoint finds out by itself."
    if model.tasks:
        info = "Several may be pressed; none: find out by itself."
    return Buttons(
        model.tasks,
        label="Remove",
        info=info,
        elem_classes="buttons",
        visible=bool(model.tasks),
    )


def keep_buttons(model: Model) -> Buttons:
    """What must stay."""
    return Buttons(
        model.labels,
        label="Keep",
        info="What must stay, such as haze in a picture of morning mist.",
        elem_classes="buttons",
        visible=bool(model.labels),
    )


def seed_input(visible: bool = True) -> gr.Number:
    return gr.Number(0, precision=0, label="Seed", visible=visible)
