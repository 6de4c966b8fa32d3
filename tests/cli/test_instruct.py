"""The command that says how sentences are understood."""

import json

from typer.testing import CliRunner

from textir.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["instruct", *arguments])


def test_each_sentence_gives_the_line_that_says_how_it_was_understood():
    result = run("take out the rain but leave the fog", "make it pop")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "removing rain; keeping haze",
        "nothing particular was understood; finding out by itself",
    ]


def test_json_gives_an_object_a_line():
    sentences = ("take out the rain but leave the fog", "keep the grain", "fine as it is", "fix it")
    result = run("--json", *sentences)
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"remove": ["rain"], "keep": ["haze"]},
        {"remove": ["auto"], "keep": ["noise"]},
        {"remove": [], "keep": []},
        {"remove": ["auto"], "keep": []},
    ]


def test_a_description_of_the_photo_is_passed_on_as_prompt():
    result = run("A red bus at the café", "--json")
    assert json.loads(result.stdout) == {
        "remove": ["auto"],
        "keep": [],
        "prompt": "A red bus at the café",
    }


def test_notes_go_beside_the_answers():
    result = run("remove and keep the noise", "--json")
    assert json.loads(result.stdout) == {"remove": [], "keep": ["noise"]}
    assert "it is kept" in result.stderr


def test_an_empty_sentence_is_refused_before_anything_is_printed():
    result = run("remove the rain", " ")
    assert result.exit_code == 2
    assert result.stdout == "" and "`instruction` is empty" in result.stderr
