"""Which photos are worked on, and where their results go."""

import glob
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from itertools import count as count_from
from os.path import commonpath
from pathlib import Path

from textir.images.picture import KINDS, is_image, list_images
from textir.images.records import is_record
from textir.images.rows import Address, Row, list_rows

MAX_NAME = 200  # bytes; systems take 255, and temporary files and numbers need room


@dataclass(frozen=True)
class Job:
    """One photo to work on and where the result goes.

    Attributes:
        source: the file; of a row of a data set the name that the row gets.
        target_folder: of its result.
        target: the result itself, where the user has named it.
        tree: folders between the input folder and the file.
        row: of a data set, if the photo is one.
        spare: stem of the result where its suffix differs from that of `source`; its own by
            default. Photos of one stem have different ones.
    """

    source: Path
    target_folder: Path
    target: Path | None = None
    tree: Path = Path()
    row: Row | None = None
    spare: str | None = None

    def __str__(self) -> str:
        return str(self.source if self.row is None else self.row)

    @property
    def name(self) -> str:
        """What a record calls the photo: its name below the input folder, or the row."""
        return str(self.row) if self.row is not None else (self.tree / self.source.name).as_posix()

    @property
    def stem(self) -> str:
        """Of a result with another suffix."""
        return self.source.stem if self.spare is None else self.spare

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            ValueError: if it cannot be read.
        """
        if self.row is not None:
            return self.row.read()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise ValueError(f"{self.source} cannot be read: {error.strerror}.") from error

    def absolute(self) -> "Job":
        """The same for a process that works elsewhere."""
        return replace(
            self,
            source=self.source if self.row is not None else self.source.absolute(),
            target_folder=self.target_folder.absolute(),
            target=None if self.target is None else self.target.absolute(),
        )

    def target_named(self, name: str) -> Path:
        """The result under a name: the user's, or `name` in its folder, or the spare stem where
        only the suffix of the source has changed."""
        if self.target is not None:
            return self.target
        path = Path(name)
        if path.stem == self.source.stem and path.suffix != self.source.suffix:
            return self.target_folder / f"{self.stem}{path.suffix}"
        return self.target_folder / name

    def possible_targets(self) -> list[Path]:
        """Where the result may lie, before the photo is known."""
        names = [self.source.name, *(f"{self.source.stem}{suffix}" for suffix in (".png", ".tif"))]
        return list(dict.fromkeys(map(self.target_named, names)))


@dataclass(frozen=True)
class Place:
    """A file or folder that an input names.

    Attributes:
        path: the file or folder.
        tree: folders that its results get below the output.
        is_named: whether the user has written down this path, and not a pattern or a list.
        row: of a data set, if it is one.
    """

    path: Path
    tree: Path = Path()
    is_named: bool = True
    row: Row | None = None


Input = str | Path | Place


def plan_jobs(
    inputs: Sequence[Input],
    output: str | Path,
    recursive: bool = False,
    helpers: Sequence[Path] = (),
    count: int = 1,
) -> list[Job]:
    """The photos behind some inputs; folders, patterns and lists keep their tree below `output`.

    Results of earlier runs that lie below `output` are no inputs. One photo may be given a name:
    `output` with an image's suffix.

    Args:
        inputs: see `find_places`.
        output: folder of the results, or the file of the only one.
        recursive: look into sub-folders.
        helpers: files and folders, such as masks, that are no photos where an input folder holds
            them.
        count: results of each photo; several have numbers.

    Raises:
        ValueError: if a path does not exist or holds no image, if two files would get the same
            name, or if one would be overwritten.
    """
    output = Path(output).expanduser()
    places = list(find_places(inputs))
    if output.suffix.lower() in KINDS and not output.is_dir():
        if len(places) == 1 and (places[0].row is not None or places[0].path.is_file()):
            (place,) = places
            job = Job(place.path, output.parent, output, row=place.row)
            refuse_overwriting([job], count)
            return [job]
        if not output.exists():
            raise ValueError(f"`--output` {output} names one file, and the input is not one photo.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; `--output` needs a folder.")
    jobs = []
    for place in places:
        found = jobs_of(place, output, recursive, helpers)
        if not found and place.is_named:
            hint = "" if recursive else "; use --recursive to look into its sub-folders"
            raise ValueError(f"No images in {place.path}{hint}.")
        jobs += found
    if not jobs:
        raise ValueError(f"No images in {', '.join(map(str, inputs))}.")
    refuse_twins(jobs)
    refuse_overwriting(jobs, count)
    return with_spare_stems(jobs)


def jobs_of(place: Place, output: Path, recursive: bool, helpers: Sequence[Path]) -> list[Job]:
    """The photos of one place, each with its result below `output`."""
    path = place.path
    if place.row is not None:
        return [Job(path, output / place.tree, tree=place.tree, row=place.row)]
    files = without_results(list_images(path, recursive), path, output)
    jobs = []
    for file in without_helpers(files, path, helpers):
        inside = file.parent.relative_to(path) if path.is_dir() else Path()
        tree = place.tree / inside
        jobs.append(Job(file, output / tree, tree=tree))
    return jobs


def find_places(inputs: Sequence[Input]) -> Iterator[Place]:
    """What inputs name.

    | input | what it names |
    |---|---|
    | `photo.jpg`, `photos/` | a file, a folder |
    | `photos/**/*.jpg` | what matches; the tree below `photos` is kept |
    | `@list.txt` | the paths in a file, one a line; the tree below their common folder is kept |
    | `-` | the same from standard input |
    | `hf://datasets/user/name?split=test` | the rows of a data set, see `textir.images.rows` |

    `~` is resolved. A `Place` names itself.

    Raises:
        ValueError: if an input names nothing, or an address of the web.
    """
    for given in inputs:
        if isinstance(given, Place):
            yield given
            continue
        text = str(given)
        if text == "-":
            yield from listed_places(sys.stdin.read().splitlines(), "Standard input")
        elif text.startswith("@") and not Path(text).exists():
            yield from listed_places(read_list(Path(text[1:]).expanduser()), text[1:])
        else:
            yield from matching_places(text)


def read_list(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The list {file} cannot be read: {reason}.") from None


def listed_places(lines: Sequence[str], name: str) -> Iterator[Place]:
    """What the lines of a list name; its files keep their tree below their common folder."""
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{name} holds no paths; one a line is expected.")
    places = list(chain.from_iterable(map(matching_places, texts)))
    files = [place.path.absolute() for place in places if is_listed_file(place)]
    common = commonpath([file.parent for file in files]) if files else ""
    for place in places:
        tree = place.tree
        if is_listed_file(place):
            tree = place.path.absolute().parent.relative_to(common)
        yield replace(place, tree=tree, is_named=False)


def is_listed_file(place: Place) -> bool:
    return place.is_named and place.row is None and not place.path.is_dir()


def matching_places(text: str) -> Iterator[Place]:
    """The file or folder that a text names, what matches it if it is a pattern, or the rows of a
    data set.

    Raises:
        ValueError: if nothing matches, or it is an address of the web.
    """
    if text.startswith(("http://", "https://", "http:/", "https:/")):
        raise ValueError(f"{text} is an address of the web; download the photo first.")
    if text.startswith("hf:"):
        address = Address.parse(text)
        for name, row in list_rows(address):
            yield Place(name, row=row)
        return
    path = Path(text).expanduser()
    if path.exists() or not set("*?[") & set(str(path)):
        yield Place(path)
        return
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise ValueError(f"Nothing matches {text}.")
    pictures = [match for match in found if match.is_dir() or is_image(match)]
    if "**" in path.parts:  # it matches folders and the files in them, which are taken once
        pictures = [match for match in pictures if not match.is_dir()]
    root = fixed_part(path)
    for match in pictures or found:
        inner = match if match.is_dir() else match.parent
        yield Place(match, inner.relative_to(root), is_named=False)


def fixed_part(pattern: Path) -> Path:
    """The folder of a pattern before its first part that may stand for several names."""
    fixed = []
    for part in pattern.parts[:-1]:
        if set("*?[") & set(part):
            break
        fixed.append(part)
    return Path(*fixed)


def refuse_twins(jobs: Sequence[Job]) -> None:
    """Check that no two results would be one file."""
    targets: dict[Path, Job] = {}
    for job in jobs:
        target = (job.target_folder / job.source.name).resolve()
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {job} would both be written to {target}; work on them "
                "apart."
            )
        targets[target] = job


def refuse_overwriting(jobs: Sequence[Job], count: int) -> None:
    """Check that no result would take the place of a photo."""
    sources = {job.source.resolve() for job in jobs if job.row is None}
    for job in jobs:
        target = job.target or job.target_folder / job.source.name
        if job.row is None and target.resolve() == job.source.resolve():
            raise ValueError(
                f"{job.source} would be overwritten by its own result; choose another `--output`."
            )
        for path in numbered(target, count) if count > 1 else []:
            if path.resolve() in sources:
                raise ValueError(f"{path} is a photo to work on; choose another `--output`.")


def with_spare_stems(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, where photos of one stem and folder have spare stems of their own."""
    stems: dict[tuple[Path, str], list[Job]] = {}
    for job in jobs:
        stems.setdefault((job.target_folder, job.source.stem), []).append(job)
    spared = []
    for job in jobs:
        folder, stem = job.target_folder, job.source.stem
        twins = stems[folder, stem]
        if len(twins) > 1:
            # Steps as wide as there are twins keep theirs apart.
            numbers = count_from(1 + twins.index(job), len(twins))
            spare = next(f"{stem}-{n}" for n in numbers if (folder, f"{stem}-{n}") not in stems)
            job = replace(job, spare=spare)
        spared.append(job)
    return spared


def without_results(files: list[Path], root: Path, output: Path) -> list[Path]:
    """Files found under `root` but for the results of earlier runs into `output`."""
    folder = output.resolve()
    if root.resolve() == folder:
        return files
    return [file for file in files if folder not in file.resolve().parents]


def without_helpers(files: list[Path], root: Path, helpers: Sequence[Path]) -> list[Path]:
    """Files found in the folder `root` but for `helpers` and what such folders hold."""
    if not root.is_dir():
        return files
    places = {helper.resolve() for helper in helpers} - {root.resolve()}
    return [file for file in files if places.isdisjoint([file.resolve(), *file.resolve().parents])]


def list_left_out(
    inputs: Sequence[Input], output: str | Path, recursive: bool = False
) -> list[Path]:
    """The files of the input folders that are not taken, because they have no name of an image that
    can be read; hidden ones, records and what lies below `output` are not counted."""
    left = []
    for place in find_places(inputs):
        path = place.path
        if place.row is None and path.is_dir():
            found = path.rglob("*") if recursive else path.iterdir()
            files = (file for file in found if file.is_file() and not file.name.startswith("."))
            others = sorted(file for file in files if not (is_image(file) or is_record(file)))
            left += without_results(others, path, Path(output).expanduser())
    return left


def short_name(name: str, ending: str) -> str:
    """A name with an ending, cut to what file systems take."""
    room = MAX_NAME - len(ending.encode())
    return name.encode()[:room].decode(errors="ignore") + ending


def numbered(target: Path, count: int) -> list[Path]:
    """Names of several results: `photo.png` -> `photo-1.png`, `photo-2.png`, ...; of one its
    own."""
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{n}{target.suffix}") for n in range(1, count + 1)]
