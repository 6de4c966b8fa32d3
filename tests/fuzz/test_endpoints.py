"""Damaged uploads are answered with a result or a message, by every endpoint that takes photos; the
next visitor is served as if nothing had been."""

import random

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.fuzz.mutations import PHOTO, mutate, seeds
from tests.tools.space import tiny_space

CALLS = {
    "/restore": {},
    "/enlarge": {"scale": 2},
    "/colorize": {},
    "/degrade": {"recipe": "noise:25"},
}
INTERNAL = ("Traceback", "/tmp", "site-packages", "object has no attribute")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_uploads_are_answered(count, tmp_path):
    client = Client(tiny_space()[0], verbose=False)
    generator, files = random.Random(1), seeds()
    file = tmp_path / "upload.png"
    refused = 0
    for number in range(count):
        endpoint = list(CALLS)[number % len(CALLS)]
        file.write_bytes(mutate(generator.choice(files), generator))
        try:
            client.predict(handle_file(file), api_name=endpoint, **CALLS[endpoint])
        except AppError as error:
            refused += 1
            assert not any(word in str(error) for word in INTERNAL), error
    assert refused > count / 10
    Image.fromarray(PHOTO).save(file)
    assert client.predict(handle_file(file), api_name="/restore")[1]
