"""How the page looks where somebody posts a link to it."""

import re

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.tools.space import tiny_space
from textir.space.sharing import PICTURE, TEXT, LinkPreview, repository

GRADIOS = """<head><meta property="og:title" content="Gradio" />
<meta
    property="og:image"
    content="https://raw.githubusercontent.com/header.jpg"
/><title>page</title></head>"""


@pytest.fixture
def site():
    routes = [
        Route("/", lambda request: HTMLResponse(GRADIOS)),
        Route("/config", lambda request: JSONResponse({"text": GRADIOS})),
    ]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(LinkPreview)]))


def test_our_tags_stand_in_place_of_those_of_gradio(site):
    page = site.get("/").text
    assert page.count("og:title") == page.count("og:image") == 1
    assert TEXT in page and "githubusercontent" not in page and "<title>page</title>" in page
    assert f"http://testserver/gradio_api/file={PICTURE}" in page


def test_everything_else_is_handed_on_untouched(site):
    assert site.get("/config").json() == {"text": GRADIOS}


def test_a_space_is_called_by_its_own_address(site, monkeypatch):
    assert repository() is None
    monkeypatch.setenv("SPACE_HOST", "user-textir.hf.space")
    monkeypatch.setenv("SPACE_ID", "user/textir")
    assert 'content="https://user-textir.hf.space/"' in site.get("/").text
    assert repository() == "https://huggingface.co/spaces/user/textir"


def test_the_picture_of_the_link_is_served():
    address = tiny_space()[0]
    import httpx

    page = httpx.get(address).text
    [picture] = re.findall(r'property="og:image" content="([^"]+)"', page)
    answer = httpx.get(picture)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
