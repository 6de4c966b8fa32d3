"""Photos that are rows of a data set of the Hub, by an address such as
`hf://datasets/user/name?split=test`."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

ADDRESS = re.compile(r"hf:/{1,2}datasets/(?P<name>[^?#]+)(?:\?(?P<query>.*))?")  # as text or `Path`
PARTS = ("config", "split", "column")


@dataclass(frozen=True)
class Address:
    """Where the photos of a data set lie.

    Attributes:
        name: Hub id, or a folder that the `datasets` library understands.
        revision: of the repository.
        config: which of its configurations.
        split: in the notation of `datasets`, such as `test` or `train[:100]`.
        column: holds the photos; the only one of images by default.
    """

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        parts = [f"{part}={value}" for part in PARTS if (value := getattr(self, part)) is not None]
        return f"hf://datasets/{self.name}{revision}?{'&'.join(parts)}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """An address out of `hf://datasets/NAME[@REVISION][?config=..&split=..&column=..]`.

        Raises:
            ValueError: if it is none, or says something else.
        """
        match = ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text} is no address of a data set, {form()}.")
        name, _, revision = match["name"].partition("@")
        pairs = parse_qsl(match["query"] or "", keep_blank_values=True)
        options = dict(pairs)
        unknown = [part for part in options if part not in PARTS]
        if unknown or len(options) < len(pairs) or not all(options.values()):
            raise ValueError(f"{text} says {match['query']!r}; it must have the form {form()}.")
        if name.strip("/").count("/") > 1 and not Path(name).is_dir():
            raise ValueError(f"{text} names a file in a repository; name the data set, {form()}.")
        return cls(name.rstrip("/"), unquote(revision) or None, **options)


def form() -> str:
    return f"hf://datasets/user/name[@revision][?{'=..&'.join(PARTS)}=..]"


@dataclass(frozen=True)
class Row:
    """A photo in a data set: row `index` of an address."""

    address: Address
    index: int

    def __str__(self) -> str:
        return f"{self.address}, row {self.index}"

    def read(self) -> bytes:
        """The bytes of its image file.

        Raises:
            ValueError: if the row holds none.
        """
        rows, column = open_rows(self.address)
        image = rows[self.index][column]
        if image is not None and image["bytes"] is not None:
            return image["bytes"]
        if image is not None and image["path"] and Path(image["path"]).is_file():
            return Path(image["path"]).read_bytes()
        raise ValueError(f"{self} holds no image.")


@functools.lru_cache(maxsize=8)
def open_rows(address: Address):
    """The rows of an address, as files that are not decoded, and the name of their column.

    They are downloaded once into the cache of `datasets`; from there any row is read at once.

    Raises:
        ValueError: if `datasets` is not installed, or the data set cannot be had or has no such
            column.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{address} needs the package `datasets`: pip install -r requirements-train.txt"
        ) from None
    try:
        rows = datasets.load_dataset(
            address.name, address.config, split=address.split, revision=address.revision
        )
    except Exception as error:  # of many kinds: no network, no repository, no such split
        raise ValueError(f"{address} cannot be loaded: {error}") from error
    kinds = rows.features.items()
    columns = [name for name, kind in kinds if isinstance(kind, datasets.Image)]
    if address.column is None and len(columns) != 1:
        raise ValueError(
            f"{address} has {len(columns)} columns of images ({', '.join(columns) or 'none'}); "
            "it must be one, or be named as in `?column=image`."
        )
    column = address.column or columns[0]
    if column not in columns:
        raise ValueError(
            f"{address} has no column of images {column!r}; it has {', '.join(columns) or 'none'}."
        )
    return rows.cast_column(column, datasets.Image(decode=False)), column


def list_rows(address: Address) -> list[tuple[Path, Row]]:
    """The rows of an address and a file name for each: its number, and the name that its image had.

    Raises:
        ValueError: as `open_rows`.
    """
    rows, column = open_rows(address)
    named = []
    for index, image in enumerate(rows[column]):
        stored = Path((image or {}).get("path") or "image.png")
        named.append((Path(f"{index:06d}-{stored.name}"), Row(address, index)))
    return named
