"""Which photos are taken and where their results go: folders, patterns, lists, standard input, data
sets."""

import io

import pytest
from PIL import Image

from textir.images.picture import read_picture
from textir.images.plans import list_left_out, plan_jobs
from textir.images.rows import Address


def photo(path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), "teal").save(path, kind)
    return path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """in/a.png, in/deep/a.png and in/deep/more/b.jpg, and the reader beside them."""
    for name in ("a.png", "deep/a.png", "deep/more/b.jpg"):
        photo(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def targets(jobs):
    """Where results go, below `out`."""
    places = [job.target_folder / job.source.name for job in jobs]
    return [place.relative_to("out").as_posix() for place in places]


def test_patterns_keep_the_tree_below_their_fixed_part(tree):
    assert targets(plan_jobs(["in/**/*.png"], "out")) == ["a.png", "deep/a.png"]
    assert targets(plan_jobs(["in/*/*.png"], "out")) == ["deep/a.png"]
    assert targets(plan_jobs(["in/**"], "out")) == ["a.png", "deep/a.png", "deep/more/b.jpg"]
    assert targets(plan_jobs(["in/*"], "out", recursive=True)) == [
        "a.png",
        "deep/a.png",
        "deep/more/b.jpg",
    ]


def test_patterns_take_no_results_of_earlier_runs(tree):
    photo(tree / "in" / "out" / "a.png")
    jobs = plan_jobs(["in/**/*.png"], "in/out")
    assert [str(job.source) for job in jobs] == ["in/a.png", "in/deep/a.png"]


def test_lists_keep_the_tree_below_their_common_folder(tree):
    (tree / "list.txt").write_text("in/deep/a.png\n\nin/deep/more/b.jpg\n")
    assert targets(plan_jobs(["@list.txt"], "out")) == ["a.png", "more/b.jpg"]
    with pytest.raises(ValueError, match="cannot be read"):
        plan_jobs(["@nowhere.txt"], "out")
    (tree / "list.txt").write_text("in/nothing.png\n")
    with pytest.raises(ValueError, match="does not exist"):
        plan_jobs(["@list.txt"], "out")


def test_standard_input_is_a_list(tree, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("in/a.png\nin/deep/a.png\n"))
    assert targets(plan_jobs(["-"], "out")) == ["a.png", "deep/a.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(ValueError, match="holds no paths"):
        plan_jobs(["-"], "out")


def test_photos_of_one_stem_have_spare_stems_of_their_own(tmp_path):
    for name in ("a.gif", "a.png", "a.jpg", "a-1.png"):
        photo(tmp_path / "in" / name)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    spares = {job.source.name: job.spare for job in jobs}
    assert spares["a-1.png"] is None
    assert len({spares[name] for name in ("a.gif", "a.png", "a.jpg")} - {"a-1", "a"}) == 3


def test_records_are_not_left_out(tree):
    (tree / "in" / "a.png.json").write_text("{}")
    (tree / "in" / "notes.json").write_text("{}")
    assert [path.name for path in list_left_out(["in"], "out")] == ["notes.json"]


def test_an_address_says_where_the_rows_are():
    assert Address.parse("hf://datasets/user/name") == Address("user/name")
    text = "hf://datasets/user/name@refs%2Fpr%2F1?config=small&split=test[:9]&column=photo"
    address = Address.parse(text)
    assert address == Address("user/name", "refs/pr/1", "small", "test[:9]", "photo")
    for wrong in ("?splt=test", "?split=", "/data/a.parquet"):
        with pytest.raises(ValueError, match="hf://datasets/user/name"):
            Address.parse(f"hf://datasets/user/name{wrong}")


def test_rows_of_a_data_set_are_photos(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = photo(tmp_path / "a.png").read_bytes()
    images = [{"bytes": data, "path": name} for name in ("a.png", None)]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=kinds)
    folder = tmp_path / "tester" / "photos" / "data"
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    jobs = plan_jobs(["hf://datasets/tester/photos?split=test"], "out")
    assert targets(jobs) == ["000000-a.png", "000001-image.png"]
    assert jobs[1].read() == data and "row 1" in str(jobs[1])
    assert read_picture(jobs[0].read()).pixels.shape == (20, 24, 3)
    for wrong, message in (("split=train", "cannot be loaded"), ("split=test&column=x", "'x'")):
        with pytest.raises(ValueError, match=message):
            plan_jobs([f"hf://datasets/tester/photos?{wrong}"], "out")
