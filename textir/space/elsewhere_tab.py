"""The tab "Use it elsewhere": command line, HTTP, and training of one's own."""

import importlib.util

import gradio as gr

from textir.space.page import render

HAS_MCP = importlib.util.find_spec("mcp") is not None


def lay_out_elsewhere(edits: list[str]) -> None:
    """Say how to do all this without the page.

    Args:
        edits: endpoints of the modes that edit.
    """
    gr.Markdown(render("elsewhere.md", has_mcp=HAS_MCP, edits=edits))
    gr.Markdown(render("fine_tune.md"))
