"""The tab Restore: one photo, a row of modes, and one result that they share."""

import json
from typing import NamedTuple

import gradio as gr

from textir.space.bench import QUIET, Bench, lay_out_explanation, lay_out_result
from textir.space.colour_mode import ColourMode
from textir.space.controls import offered_tasks, photo_input
from textir.space.edit_controls import canvas_input, copy_for_canvas
from textir.space.edit_worker import EditWorker
from textir.space.enlarge_mode import EnlargeMode
from textir.space.fill_mode import FillMode
from textir.space.inputs import facts_of
from textir.space.restore_tab import RestoreTab
from textir.space.showcase import FOLDER, Exhibit, exhibits
from textir.space.worker import Worker

RESTORE = "Restore"
MODES = (FillMode, EnlargeMode, ColourMode)
OPEN_LINK = """() => {
    const wish = new URLSearchParams(location.search);
    const same = {__type__: "update"};
    const tasks = (wish.get("task") || "").split(" ").filter(Boolean);
    return [wish.get("mode") || same, tasks.length ? tasks : same, wish.get("words") || same];
}"""
COPY_LINK = """(mode, tasks, words) => {
    const link = new URL(location.pathname, location.origin);
    link.searchParams.set("mode", mode);
    link.searchParams.set("task", tasks.join(" "));
    if (words) link.searchParams.set("words", words);
    history.replaceState(null, "", link);
    const shown = "The address of this page holds the settings";
    if (!navigator.clipboard) return shown;
    return navigator.clipboard.writeText(link.href).then(() => "Link copied", () => shown);
}"""
gr.set_static_paths([FOLDER])


class Seat(NamedTuple):
    """What stands in the place of the photo.

    Attributes:
        painted: the photo that lies on the canvas.
        is_canvas: whether the canvas shows, else the photo.
    """

    painted: str | None = None
    is_canvas: bool = False


class PhotoTab:
    """Restores, fills, enlarges and colours one photo."""

    def __init__(self, worker: Worker, edit_worker: EditWorker):
        self.restoring = RestoreTab(worker)
        tasks = edit_worker.editor.tasks
        self.edits = {mode.name: mode(edit_worker) for mode in MODES if mode.task in tasks}
        self.endpoints = [mode.endpoint for mode in self.edits.values()]
        self.can_fill = FillMode.name in self.edits
        self.exhibits = [
            one for one in exhibits() if one.acts and one.mode in (RESTORE, *self.edits)
        ]

    def lay_out(self) -> None:
        """Make inputs and outputs, and join them."""
        names = [RESTORE, *self.edits]
        mode = gr.Radio(
            names,
            value=RESTORE,
            show_label=False,
            label="Mode",
            container=False,
            elem_classes="modes",
            visible=len(names) > 1,
        )
        with gr.Row():
            with gr.Column():
                photo = photo_input("Photo", height=300, elem_id="photo")
                canvas = canvas_input()
                other = gr.Button("Another photo", size="sm", visible=False)
                rooms = [self.lay_out_mode(name) for name in names]
            with gr.Column():
                tasks = offered_tasks(self.restoring.model)
                outputs = lay_out_result(self.exhibits[0], tasks)
        gr.Markdown("### Examples, with results of the embedded checkpoints")
        gallery = gr.Gallery(
            [(one.file("thumbnail"), one.name) for one in self.exhibits],
            label="Examples",
            show_label=False,
            columns=6,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        self.exhibited = gr.Textbox("", label="The example that shows", visible="hidden")
        gr.HTML("", elem_id="history")
        link = gr.Button("Copy a link to these settings", size="sm", elem_id="link")
        outputs |= lay_out_explanation(self.can_fill)
        bench = Bench(**outputs)
        self.join(mode, photo, canvas, other, bench, rooms)
        self.join_examples(gallery, mode, photo, bench)
        self.join_link(link, mode)

    def lay_out_mode(self, name: str) -> gr.Column:
        """The inputs of a mode, in a column that shows with it."""
        with gr.Column(visible=name == RESTORE) as room:
            if name == RESTORE:
                self.restoring.lay_out()
            else:
                self.edits[name].lay_out()
        return room

    def join(self, mode, photo, canvas, other, bench: Bench, rooms: list[gr.Column]) -> None:
        """Join inputs and outputs."""
        bench.join(photo)
        events, begin_anew = [self.restoring.join(photo, bench)], {}
        for name, edit in self.edits.items():
            canvas_too = [canvas] if name == FillMode.name else []
            events.append(edit.join(photo, *canvas_too, bench))
            begin_anew |= edit.own
        bench.clear_with(photo, self.exhibited, begin_anew)
        gr.on([photo.upload, photo.clear], None, cancels=events, api_visibility="private")
        chosen_by_visitors = [photo.upload, photo.clear, other.click]
        chosen_by_visitors += [bench.use.click, bench.undo.click]
        for trigger in chosen_by_visitors:
            reset(trigger, {**self.restoring.own, self.exhibited: ""})
        mode.change(self.turn_to, mode, [bench.shell, *rooms], **QUIET)
        seat = gr.State(Seat())
        gr.on(
            [mode.change, photo.change],
            self.show,
            [mode, photo, seat],
            [photo, canvas, other, seat],
            **QUIET,
        )
        other.click(lambda: None, None, photo, **QUIET)

    def join_examples(self, gallery: gr.Gallery, mode, photo: gr.Image, bench: Bench) -> None:
        """Let a thumbnail bring its photo, what was asked of it, and the result."""
        own = dict(self.restoring.own)
        for edit in self.edits.values():
            own |= edit.own

        def show(event: gr.SelectData) -> dict:
            example = self.exhibits[event.index]
            wishes = own | self.wishes(example)
            shared = {mode: example.mode, photo: example.file(), self.exhibited: example.file()}
            return shared | wishes | bench.exhibit(example)

        shared = [mode, photo, self.exhibited, *own]
        outputs = [*shared, *bench.restored, bench.variants, bench.files, bench.mask]
        gallery.select(show, None, outputs, **QUIET)

    def wishes(self, example: Exhibit) -> dict:
        """The inputs of an example that differ from those of a new photo."""
        if example.mode == RESTORE:
            known = [task for task in example.tasks if task in offered_tasks(self.restoring.model)]
            return {self.restoring.task: known} if known else {}
        edit = self.edits[example.mode]
        wishes = {edit.words.prompt: example.prompt}
        if isinstance(edit, FillMode):
            wishes[edit.mask] = example.file("mask")
        return wishes

    def join_link(self, link: gr.Button, mode: gr.Radio) -> None:
        """Let a button write the settings into the address."""
        self.parts = [mode, self.restoring.task, self.restoring.instruction]
        link.click(None, self.parts, link, js=COPY_LINK, api_visibility="private")

    def join_address(self, load) -> None:
        """Read the settings from the address when the page loads."""
        load(None, None, self.parts, js=OPEN_LINK, api_visibility="private")

    def turn_to(self, mode: str) -> list:
        """Which inputs and outputs belong to a mode."""
        names = [RESTORE, *self.edits]
        return [
            gr.Code(visible=mode == RESTORE),
            *[gr.Column(visible=name == mode) for name in names],
        ]

    def show(self, mode: str, image: str | None, seat: Seat) -> list:
        """The photo, or in its place the canvas, with what was painted on it."""
        paints = mode == FillMode.name and facts_of(image) is not None
        if not paints and not seat.is_canvas:
            return [gr.skip()] * 4
        if not paints:
            canvas = gr.ImageEditor(visible="hidden")
        elif image == seat.painted:
            canvas = gr.ImageEditor(visible=True)
        else:
            canvas = gr.ImageEditor(value=copy_for_canvas(image), visible=True)
        return [
            gr.Image(visible="hidden" if paints else True),
            canvas,
            gr.Button(visible=paints),
            Seat(image if paints else seat.painted, paints),
        ]


def reset(trigger, values: dict) -> None:
    """Give inputs their first values when something happens."""
    script = f"() => {json.dumps(list(values.values()))}"
    trigger(None, None, list(values), js=script, api_visibility="private")
