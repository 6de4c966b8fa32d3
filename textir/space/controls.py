"""Inputs that several tabs have: a photo, and buttons for what goes and what stays."""

import gradio as gr

from textir.space.model import Model
from textir.space.showcase import idle_tasks

FIND_OUT = "auto"
TASK_NAMES = {  # task -> what a visitor sees in the photo
    FIND_OUT: "Find out yourself",
    "denoise": "Noise",
    "derain": "Rain",
    "dehaze": "Haze",
    "lowlight": "Dark",
    "deblur": "Blurred",
    "defocus": "Out of focus",
    "dejpeg": "Blocky",
    "sharpen": "Soft",
}
LABEL_NAMES = {
    "noise": "Noise",
    "rain": "Rain",
    "haze": "Haze",
    "lowlight": "Darkness",
    "blur": "Blur",
    "defocus": "Out of focus",
    "jpeg": "Blockiness",
    "downup": "Softness",
}
# The button that was pressed last stands last; "find out" goes with no other. A script with one
# output hands over a list of one value, and the value is a list itself.
TAKE_TURNS = """(names) => {
    if (!names.length || names[names.length - 1] === "auto") return [["auto"]];
    return [names.filter((name) => name !== "auto")];
}"""


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
    unshown: tuple[str, ...] = ()  # names that have no button, but may be written

    def preprocess(self, payload: list[str] | str | None) -> list[str]:
        names = payload.split("+") if isinstance(payload, str) else payload or []
        stripped = [name.strip() for name in names]
        named = [name for name in stripped if name not in ("", FIND_OUT)]
        shown = super().preprocess([name for name in named if name not in self.unshown])
        return [*shown, *[name for name in named if name in self.unshown]]


def photo_input(label: str, height: int, visible: bool = True, **options) -> Photo:
    sources = ["upload", "clipboard", "webcam"]
    return Photo(
        label=label,
        type="filepath",
        format="png",
        sources=sources,
        height=height,
        visible=visible,
        **options,
    )


def offered_tasks(model: Model) -> list[str]:
    """Tasks that have a button: those from which something comes, in the order of `TASK_NAMES`."""
    idle = idle_tasks(model.checkpoint)
    tasks = [task for task in TASK_NAMES if task in model.tasks]
    tasks += [task for task in model.tasks if task not in tasks]
    return [task for task in tasks if task not in idle]


def task_buttons(model: Model) -> Buttons:
    """What to remove, in the order of `TASK_NAMES`."""
    buttons = Buttons(
        [(TASK_NAMES.get(name, name), name) for name in (FIND_OUT, *offered_tasks(model))],
        value=[FIND_OUT],
        label="What is wrong with it?",
        elem_classes="buttons",
        visible=bool(model.tasks),
    )
    buttons.unshown = tuple(sorted(idle_tasks(model.checkpoint)))
    # Two quick presses are two events: none is dropped while the other is at work.
    options = {"trigger_mode": "multiple", "api_visibility": "private"}
    buttons.input(None, buttons, buttons, js=TAKE_TURNS, **options)
    return buttons


def keep_buttons(model: Model) -> Buttons:
    """What must stay."""
    return Buttons(
        [(LABEL_NAMES.get(label, label), label) for label in model.labels],
        label="Keep",
        info="What must stay, such as haze in a picture of morning mist.",
        elem_classes="buttons",
        visible=bool(model.labels),
    )


def seed_input(visible: bool = True) -> gr.Number:
    return gr.Number(0, precision=0, label="Seed", visible=visible)
