"""How the page looks where somebody posts a link to it."""

import os
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textir.space.page import render
from textir.space.showcase import FOLDER

TITLE = "TextIR: photos restored"
TEXT = (
    "Removes noise, rain, haze, darkness, blur and blocks from photos; fills, enlarges and "
    "colours them by words."
)
PICTURE = FOLDER / "preview.jpg"
# Gradio describes itself twice in its page.
GRADIO_TAGS = re.compile(r"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>\s*")


def repository() -> str | None:
    """The address of the repository of the Space; `None` elsewhere."""
    space = os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}" if space else None


def tags(address: str) -> str:
    """Meta tags for title, text and picture of the page.

    Args:
        address: of the page, without a slash at its end.
    """
    return render("preview.html", title=TITLE, text=TEXT, picture=PICTURE, address=address)


def described(page: str, address: str) -> str:
    """The HTML of the page with our tags in place of Gradio's."""
    page = GRADIO_TAGS.sub("", page)
    return page.replace("<head>", "<head>\n" + tags(address), 1)


class LinkPreview:
    """ASGI middleware that describes the page at `/`, and hands on everything else untouched.

    Whoever follows a link for a preview runs no script, so the tags must be in what is served.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        begun: list[Message] = []
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                start, whole = begun[0], bytes(body)
                headers = MutableHeaders(raw=start["headers"])
                if headers.get("content-type", "").startswith("text/html"):
                    whole = described(whole.decode(), address_of(scope)).encode()
                    headers["content-length"] = str(len(whole))
                await send(start)
                await send({"type": "http.response.body", "body": whole})

        await self.app(scope, receive, collect)


def address_of(scope: Scope) -> str:
    """The address of the page as people see it: that of the Space, or of the request."""
    host = os.environ.get("SPACE_HOST")
    if host:
        return f"https://{host}"
    given = Headers(scope=scope).get("host", "127.0.0.1")
    return f"{scope['scheme']}://{given}"
