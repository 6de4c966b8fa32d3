"""The Space: drop in a degraded photo, see it restored beside the original, and what the model
thought on the way.

python app.py                                   # the embedded checkpoint, on this machine
TEXTIR_CHECKPOINT=user/name python app.py       # another one, a folder or a Hub id
TEXTIR_EDIT_CHECKPOINT=user/name python app.py  # another one to fill, enlarge and colour
"""

import textir  # noqa: F401, I001  first: it sets up the threads of torch
import spaces  # noqa: F401  before torch: on ZeroGPU it patches torch

import os
import signal
import sys

import gradio as gr
from starlette.middleware import Middleware

from textir.space.batch_tab import BatchTab
from textir.space.compare_tab import CompareTab
from textir.space.degrade_tab import DegradeTab
from textir.space.edit_worker import EditWorker
from textir.space.editor import Editor
from textir.space.elsewhere_tab import HAS_MCP, lay_out_elsewhere
from textir.space.examples import write_examples
from textir.space.look import THEME, head
from textir.space.model import Model
from textir.space.page import render
from textir.space.photo_tab import PhotoTab
from textir.space.sharing import LinkPreview, repository
from textir.space.worker import Worker

model = Model.load(os.environ.get("TEXTIR_CHECKPOINT", "mini"))
worker = Worker(model)
worker.measure()
editor = Editor.load(os.environ.get("TEXTIR_EDIT_CHECKPOINT", "mini-textir"))
edit_worker = EditWorker(editor)
edit_worker.measure()
photo_tab = PhotoTab(worker, edit_worker)
examples = write_examples(model.tasks)

with gr.Blocks(title="TextIR", delete_cache=(3600, 3600)) as demo:
    gr.Markdown(
        render("about.md", has_painter=model.has_painter)
        + render("modes.md", tasks=editor.tasks, absence=editor.absence),
        elem_id="about",
    )
    with gr.Tab("Photo"):
        photo_tab.lay_out()
    with gr.Tab("Lab"):
        with gr.Tab("Compare"):
            CompareTab(worker).lay_out(examples)
        with gr.Tab("Degrade"):
            DegradeTab(worker).lay_out(examples)
        with gr.Tab("Batch"):
            BatchTab(worker).lay_out()
    with gr.Tab("Use it elsewhere"):
        lay_out_elsewhere(photo_tab.endpoints)
    gr.HTML(render("foot.html", repository=repository()), elem_id="foot")
    if repository():  # elsewhere there is nothing to duplicate
        gr.DuplicateButton("Duplicate this Space")
    photo_tab.join_address(demo.load)

demo.queue(max_size=32, api_open=False)  # nobody goes round the queue

if __name__ == "__main__":
    # Whoever ends the process lets it take its temporary files along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    demo.launch(
        theme=THEME,
        css=render("style.css"),
        head=head(),
        app_kwargs={"middleware": [Middleware(LinkPreview)]},
        show_error=True,
        max_file_size="50mb",
        ssr_mode=False,
        mcp_server=HAS_MCP,
        footer_links=["api", "settings"],
    )
