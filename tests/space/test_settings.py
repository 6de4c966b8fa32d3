"""What a visitor fills in becomes what the pipeline takes, and lines of code that do it again."""

import inspect
from dataclasses import fields, replace

import pytest

from pipelines import TextGuidedRestorationPipeline
from textir.space.batch_tab import free_name
from textir.space.restore_tab import RestoreTab
from textir.space.settings import Settings, Wish
from textir.space.snippets import python_lines, shell_lines

DEFAULTS = ([], [], "", "", "cleaned", "auto", 0, 0, 0, 0, "", True, "", "fast")


def test_defaults_are_those_of_the_pipeline():
    parameters = inspect.signature(TextGuidedRestorationPipeline.__call__).parameters
    for name, value in Settings().restoring.items():
        if name != "tile":
            assert parameters[name].default == value, name


def test_a_wish_has_the_order_of_the_endpoint():
    parameters = list(inspect.signature(RestoreTab.restore).parameters)
    assert [field.name for field in fields(Wish)] == parameters[2:-2]
    assert Wish(*DEFAULTS).arguments == list(DEFAULTS)


def test_an_untouched_page_asks_for_the_defaults():
    assert Wish(*DEFAULTS).settings(with_guidance=True) == Settings(both_words=True)


def test_without_a_painter_the_rest_is_heeded():
    wish = Wish(["denoise"], [], "", "", "cleaned", "auto", 0, 0, 7, 64, " name ", True)
    expected = Settings(task="denoise", seed=7, tile=64, adapter="name")
    assert wish.settings(with_guidance=False) == expected


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2**63])
def test_seeds_that_cannot_be_are_refused(seed):
    with pytest.raises(ValueError, match="whole number"):
        Wish(*DEFAULTS[:8], seed, *DEFAULTS[9:]).settings(with_guidance=True)


def test_python_lines_say_only_what_differs_from_the_defaults():
    assert python_lines(Settings(), "mini").splitlines()[-2:] == [
        "pipe = load('mini')",
        'restored = pipe(Image.open("photo.png")).images[0]',
    ]
    lines = python_lines(Settings(seed=3, guidance_strength=0.0, adapter="derain"), "user/name")
    assert lines.startswith("import torch\n") and "load('user/name', adapter='derain')" in lines
    assert "guidance_strength=0.0, generator=torch.Generator().manual_seed(3)" in lines


def test_shell_lines_quote_what_a_shell_would_read():
    lines = shell_lines(["it's $HOME"], "http://127.0.0.1:1")
    assert """OPTIONS='"it'"'"'s $HOME"'""" in lines


def test_names_that_are_taken_get_a_number():
    assert free_name("a.png", []) == "a.png"
    assert free_name("a.png", ["a.png", "a-1.png"]) == "a-2.png"


@pytest.mark.parametrize(
    "name, value",
    [("prompt", "a cat"), ("guidance", "degraded"), ("steps", 9), ("guidance_scale", 3.0)],
)
def test_a_guidance_that_cannot_be_painted_may_not_be_described(name, value):
    wish = replace(Wish(*DEFAULTS), **{name: value})
    wish.settings(with_guidance=True)
    with pytest.raises(ValueError, match="paints no guidance: leave out guidance, prompt"):
        wish.settings(with_guidance=False)
