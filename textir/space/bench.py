"""What all modes share: the result, the way it is shown, and the way back to an input."""

import json
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from textir.images.picture import read_picture
from textir.space.controls import TASK_NAMES
from textir.space.messages import messages
from textir.space.showcase import Exhibit
from textir.space.view import shown

QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
MOST_UNDOS = 10
GONE = "{__type__: 'update', visible: false, value: null}"

SCROLL = """() => {  // a phone shows the result below the button
    const result = document.getElementById("result");
    if (window.innerWidth < 768) result.scrollIntoView({block: "start"});
    return [%s];
}"""
OFFER = """(text) => {
    const visible = text.includes("Press what you see");
    return {__type__: "update", visible};
}"""
NOTE = """(file) => {
    if (file && window.textirNote) window.textirNote(file);
    return {__type__: "update", visible: !!file};
}"""
SHOW_IF_FULL = "(text) => ({__type__: 'update', visible: !!text})"
# The result of an example comes with its photo, and stays. Both are read when this runs, so that a
# change that is told late is not taken for another one.
CLEAR = """(photo, exhibited) => {
    const path = photo ? photo.path : null;
    const blank = [%s];
    const isAnother = path !== window.textirPhoto && path !== exhibited;
    window.textirPhoto = path;
    return isAnother ? blank : blank.map(() => ({__type__: "update"}));
}"""


@dataclass(frozen=True)
class Bench:
    """The outputs of all modes.

    Attributes:
        slider: photo before and after.
        file: to download.
        summary: what was done.
        variants: results side by side, where there are several.
        files: of all variants; not shown.
        inside: how a restoration came about.
        python: code that does the same.
        shell: the same for the shell.
        mask: what was filled, as a file.
        use: the button that makes a result the photo.
        undo: the button that brings the photo before back.
        history: photos before.
        inside_room: what `inside` lies in; hidden while that is empty.
        code_room: the same for `python`.
        offers: a button for each task, for photos that came out unchanged.
        offer_room: what they lie in.
    """

    slider: gr.ImageSlider
    file: gr.File
    summary: gr.Markdown
    variants: gr.Gallery
    files: gr.File
    inside: gr.HTML
    python: gr.Code
    shell: gr.Code
    mask: gr.File
    use: gr.Button
    undo: gr.Button
    history: gr.State
    inside_room: gr.Accordion
    code_room: gr.Accordion
    offers: dict[str, gr.Button]
    offer_room: gr.Row

    @property
    def restored(self) -> list[Component]:
        """Outputs of a restoration, in the order of the API."""
        return [self.slider, self.file, self.summary, self.inside, self.python, self.shell]

    @property
    def edited(self) -> list[Component]:
        """Outputs of an edit, in the order of the API."""
        return [self.slider, self.file, self.summary, self.variants, self.files, self.python]

    def prepare_for_restoration(self, trigger, event) -> None:
        """Take away what only an edit has, and go to the result."""
        script = SCROLL % f"{GONE}, null, null"
        outputs = [self.variants, self.files, self.mask]
        trigger(None, None, outputs, js=script, api_visibility="private")
        event.then(None, js=SCROLL % "", api_visibility="private")

    def prepare_for_edit(self, triggers: list, event) -> None:
        """Take away what only a restoration has, and go to the result; variants show once there
        are several."""
        options = {"api_visibility": "private"}
        script = SCROLL % "'', ''"
        gr.on(triggers, None, None, [self.inside, self.shell], js=script, **options)
        show = "(all) => ({__type__: 'update', visible: !!all && all.length > 1})"
        event.then(None, self.variants, self.variants, js=show, **options)
        event.then(None, js=SCROLL % "", **options)

    def clear_with(
        self, photo: gr.Image, exhibited: gr.Textbox, inputs: dict[Component, object]
    ) -> None:
        """Take every result away as soon as there is another photo, without the server.

        Args:
            photo: the photo; showing it again is no change.
            exhibited: the file of the example that shows, whose result came along.
            inputs: those that begin anew too, and their first values.
        """
        blank = {
            **dict.fromkeys((self.slider, self.file, self.files, self.mask), "null"),
            **dict.fromkeys((self.summary, self.inside, self.python, self.shell), "''"),
            self.variants: GONE,
            **{part: json.dumps(value) for part, value in inputs.items()},
        }
        script = CLEAR % ", ".join(blank.values())
        # None waits for another, whose end would come after the next result has begun to show.
        options = {"trigger_mode": "multiple", "api_visibility": "private"}
        photo.change(None, [photo, exhibited], list(blank), js=script, **options)

    def exhibit(self, example: Exhibit) -> dict:
        """Values of the outputs that show an example with its result."""
        return {
            self.slider: example.pair,
            self.file: example.file("result"),
            self.summary: example.sentence,
            self.variants: gr.Gallery(None, visible=False),
            **dict.fromkeys((self.files, self.mask), None),
            **dict.fromkeys((self.inside, self.python, self.shell), ""),
        }

    def join(self, photo: gr.Image) -> None:
        """Let variants be chosen, a result become the photo, and the photo before come back."""
        options = {"api_visibility": "private"}
        self.file.change(None, self.file, self.use, js=NOTE, **options)
        self.summary.change(None, self.summary, self.offer_room, js=OFFER, **options)
        for text, room in ((self.inside, self.inside_room), (self.python, self.code_room)):
            text.change(None, text, room, js=SHOW_IF_FULL, trigger_mode="multiple", **options)
        self.variants.select(choose, [self.slider, self.files], [self.slider, self.file], **QUIET)
        outputs = [photo, self.history, self.undo]
        self.use.click(take, [photo, self.file, self.history], outputs, **QUIET)
        self.undo.click(go_back, self.history, outputs, **QUIET)
        gr.on([photo.upload, photo.clear], forget, None, [self.history, self.undo], **QUIET)


def lay_out_result(first: Exhibit, tasks: list[str]) -> dict:
    """The column of the result: its components by the names that `Bench` gives them.

    Args:
        first: the example that shows on arrival.
        tasks: that can be offered.
    """
    slider = gr.ImageSlider(
        first.pair,
        label="Before and after",
        type="pil",
        format="png",
        interactive=False,
        buttons=["fullscreen"],  # the file below it has the photo's own name, depth and profile
        slider_position=50,
        elem_id="result",
    )
    variants = gr.Gallery(
        label="Variants",
        format="png",
        columns=4,
        height=150,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        visible=False,
        elem_classes="variants",
    )
    summary = gr.Markdown(first.sentence, label="Summary", elem_id="summary")
    with gr.Row(visible=False, elem_classes="offers") as offer_room:
        names = {task: TASK_NAMES.get(task, task) for task in tasks}
        offers = {task: gr.Button(name, size="sm", min_width=0) for task, name in names.items()}
    with gr.Row():
        use = gr.Button("Use as input", size="sm", visible=False)
        undo = gr.Button("Undo: the photo before", size="sm", visible=False)
    file = gr.File(label="Download", interactive=False, elem_id="download")
    files = gr.File(file_count="multiple", interactive=False, visible=False, label="All files")
    return {
        "slider": slider,
        "variants": variants,
        "use": use,
        "undo": undo,
        "file": file,
        "summary": summary,
        "files": files,
        "history": gr.State([]),
        "offers": offers,
        "offer_room": offer_room,
    }


def lay_out_explanation(can_fill: bool) -> dict[str, Component]:
    """How the result came about, and the code that does the same."""
    hidden = {"open": False, "visible": False}
    with gr.Accordion("Details: how it came about", **hidden) as inside_room:
        inside = gr.HTML(label="Inside")
    with gr.Accordion("The same elsewhere", **hidden) as code_room:
        code = gr.Code(language="python", interactive=False, label="Python")
        mask = gr.File(label="Mask", interactive=False, visible=can_fill)
        shell = gr.Code(language="shell", interactive=False, label="gradio_client and curl")
    rooms = {"inside_room": inside_room, "code_room": code_room}
    return {"inside": inside, "python": code, "shell": shell, "mask": mask, **rooms}


def choose(pair: tuple, files: list[str], event: gr.SelectData) -> tuple:
    """Show a variant in the slider, and offer its file."""
    with messages():
        chosen = files[event.index]
        return (pair[0], shown(read_picture(chosen, name="The variant"))), chosen


def take(photo: str, result: str, history: list[str]) -> tuple:
    """Make the result the photo."""
    history = [*history, photo][-MOST_UNDOS:]
    return result, history, gr.Button(visible=True)


def forget() -> tuple:
    """A new photo has none before it."""
    return [], gr.Button(visible=False)


def go_back(history: list[str]) -> tuple:
    """Make the photo before the photo again."""
    *earlier, photo = history
    return photo, earlier, gr.Button(visible=bool(earlier))
