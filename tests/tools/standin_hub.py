"""A stand-in for the Hugging Face Hub on this machine, so that pushing and loading are tested with
the real client and no network.

It speaks as much of the Hub's HTTP interface as `huggingface_hub` 2 needs to create model
repositories, commit files (small ones inline, weights through Git LFS) and download them.
Everything is kept in memory. The client reads its environment when it is imported, so use it from a
fresh process:

    with StandinHub() as hub:
        subprocess.run([sys.executable, "push.py"], env={**os.environ, **hub.environment(cache)})

The Hub's newer way of storing large files, Xet, is switched off there; it stays untested.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

USER = "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
DATE = "2026-01-01T00:00:00.000Z"


# ---- what is stored


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    in_lfs: bool = False

    @cached_property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict:
        """How listings describe the file."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        if self.in_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


Tree = dict[str, StoredFile]


class Repository:
    """One line of commits; its newest is `main`."""

    def __init__(self, name: str, private: bool = False):
        self.name, self.private = name, private
        self.commits: dict[str, Tree] = {}
        self.commit({})

    def commit(self, tree: Tree) -> str:
        """Make `tree` the newest state; returns the commit's id."""
        contents = sorted((path, file.git_oid) for path, file in tree.items())
        oid = hashlib.sha1(
            json.dumps([self.name, len(self.commits), contents]).encode()
        ).hexdigest()
        self.commits[oid] = tree
        return oid

    def resolve(self, revision: str) -> tuple[str, Tree]:
        """Commit id and files of `main` or of a commit.

        Raises:
            HubError: 404, as the Hub answers, if there is no such revision.
        """
        oid = list(self.commits)[-1] if revision == "main" else revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, self.commits[oid]


# ---- requests and replies


class HubError(Exception):
    """Becomes a reply with the headers by which the client tells its exceptions apart."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


@dataclass
class Reply:
    """`body` is bytes, or anything that JSON can hold."""

    body: object = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Route:
    methods: tuple[str, ...]
    path: re.Pattern
    answer: Callable[..., Reply]


ROUTES: list[Route] = []
KIND = "(?:models|spaces)"  # a name is one repository here, whatever its kind
NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


def route(methods: str, path: str) -> Callable:
    """Register a function `(hub, body, **named groups of path) -> Reply`."""

    def register(answer: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append(Route(tuple(methods.split()), re.compile(path), answer))
        return answer

    return register


# ---- creating and committing


@route("GET", "/api/whoami-v2")
def introduce_user(hub: "StandinHub", body: bytes) -> Reply:
    return Reply({"type": "user", "id": "0", "name": USER, "fullname": "Tester", "orgs": []})


@route("POST", "/api/repos/create")
def create_repository(hub: "StandinHub", body: bytes) -> Reply:
    wish = json.loads(body)
    owner = wish.get("organization") or USER
    if owner != USER:
        raise HubError(
            403,
            "Forbidden",
            f"You don't have the rights to create a model under the namespace {owner!r}.",
        )
    name = f"{owner}/{wish['name']}"
    page = {"url": f"{hub.url}/{name}", "id": name, "name": name}
    if name in hub.repositories:
        return Reply({**page, "error": "You already created this repo"}, status=409)
    hub.repositories[name] = Repository(name, private=wish.get("visibility") == "private")
    return Reply(page)


@route("POST", "/api/validate-yaml")
def validate_card(hub: "StandinHub", body: bytes) -> Reply:
    return Reply({"errors": [], "warnings": []})


@route("POST", f"/api/{KIND}/{NAME}/preupload/{REVISION}")
def choose_upload_modes(hub: "StandinHub", body: bytes, name: str, revision: str) -> Reply:
    hub.find(name).resolve(revision)

    def choice(path: str) -> dict:
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    return Reply({"files": [choice(file["path"]) for file in json.loads(body)["files"]]})


@route("POST", rf"/(?:spaces/)?{NAME}\.git/info/lfs/objects/batch")
def ask_for_missing_objects(hub: "StandinHub", body: bytes, name: str) -> Reply:
    hub.find(name)
    objects = [
        {"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]
    ]
    for item in objects:
        if item["oid"] not in hub.objects:
            item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}", "header": {}}}
    return Reply(
        {"transfer": "basic", "objects": objects},
        headers={"Content-Type": "application/vnd.git-lfs+json"},
    )


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def receive_object(hub: "StandinHub", body: bytes, oid: str) -> Reply:
    received = StoredFile(body, in_lfs=True)
    if received.sha256 != oid:
        raise HubError(
            400, "BadRequest", f"Content has SHA-256 {received.sha256}, announced was {oid}"
        )
    hub.objects[oid] = received
    return Reply()


@route("POST", f"/api/{KIND}/{NAME}/commit/{REVISION}")
def commit(hub: "StandinHub", body: bytes, name: str, revision: str) -> Reply:
    repository = hub.find(name)
    tree = dict(repository.resolve(revision)[1])
    for line in filter(None, body.splitlines()):
        operation = json.loads(line)
        value = operation["value"]
        match operation["key"]:
            case "header":
                pass
            case "file":
                tree[value["path"]] = StoredFile(base64.b64decode(value["content"]))
            case "lfsFile":
                tree[value["path"]] = hub.objects[value["oid"]]
            case unknown:
                raise HubError(
                    400, "BadRequest", f"The stand-in does not know how to commit {unknown!r}"
                )
    oid = repository.commit(tree)
    return Reply(
        {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{hub.url}/{name}/commit/{oid}",
            "hookOutput": "",
        }
    )


# ---- reading


@route("GET", f"/api/{KIND}/{NAME}(?:/revision/{REVISION})?")
def describe(hub: "StandinHub", body: bytes, name: str, revision: str | None) -> Reply:
    repository = hub.find(name)
    oid, tree = repository.resolve(revision or "main")
    description = {
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": oid,
        "private": repository.private,
    }
    description |= {"disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
    description |= {
        "createdAt": DATE,
        "lastModified": DATE,
        "siblings": [{"rfilename": path} for path in sorted(tree)],
    }
    return Reply(description)


@route("GET", f"/api/{KIND}/{NAME}/tree/{REVISION}")
def list_tree(hub: "StandinHub", body: bytes, name: str, revision: str) -> Reply:
    oid, tree = hub.find(name).resolve(revision)
    return Reply(
        [file.entry(path) for path, file in sorted(tree.items())], headers={"X-Repo-Commit": oid}
    )


@route("GET HEAD", f"/(?:spaces/)?{NAME}/(?:resolve|raw)/{REVISION}/(?P<path>.+)")
def send_file(hub: "StandinHub", body: bytes, name: str, revision: str, path: str) -> Reply:
    oid, tree = hub.find(name).resolve(revision)
    if path not in tree:
        raise HubError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": oid})
    file = tree[path]
    etag = f'"{file.sha256 if file.in_lfs else file.git_oid}"'
    headers = {
        "X-Repo-Commit": oid,
        "ETag": etag,
        "X-Linked-Etag": etag,
        "X-Linked-Size": str(len(file.content)),
    }
    return Reply(file.content, headers={**headers, "Content-Type": "application/octet-stream"})


# ---- the server


class StandinHub:
    """A running stand-in; a context manager.

    Attributes:
        url: where it listens.
        repositories: by name (`tester/some-repository`).
        objects: what arrived through Git LFS, by SHA-256.
        unanswered: requests that no route fits, as `GET /path`.
        tokens: what requests introduced themselves with.
        refused: tokens that are not valid.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, StoredFile] = {}
        self.unanswered: list[str] = []
        self.tokens: set[str] = set()
        self.refused: set[str] = set()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StandinHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables under which a fresh process talks to this hub and keeps everything it downloads
        under `cache`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_fake",
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def find(self, name: str) -> Repository:
        """The repository.

        Raises:
            HubError: 404, as the Hub answers, if there is none.
        """
        if name not in self.repositories:
            raise HubError(404, "RepoNotFound", f"Repository not found: {name}")
        return self.repositories[name]

    def files(self, name: str) -> Tree:
        """The newest files of a repository."""
        return self.find(name).resolve("main")[1]

    def answer(self, method: str, address: str, body: bytes) -> Reply:
        path = unquote(urlsplit(address).path)
        for candidate in ROUTES:
            match = candidate.path.fullmatch(path)
            if match and method in candidate.methods:
                return candidate.answer(self, body, **match.groupdict())
        self.unanswered.append(f"{method} {address}")
        raise HubError(404, "EntryNotFound", f"The stand-in has no route for {method} {path}")


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into calls of `StandinHub.answer`, and replies into HTTP."""

    protocol_version = "HTTP/1.1"
    hub: StandinHub

    def handle_request(self) -> None:
        body, token = (
            self.read_body(),
            self.headers.get("Authorization", "").removeprefix("Bearer "),
        )
        self.hub.tokens.add(token)
        try:
            if token in self.hub.refused:
                raise HubError(401, "Unauthorized", "Invalid credentials in Authorization header")
            reply = self.hub.answer(self.command, self.path, body)
        except HubError as error:
            reply = Reply({"error": str(error)}, error.status, error.headers)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **reply.headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *arguments) -> None:
        """Quiet."""
