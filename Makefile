FILES ?= tests

.PHONY: lint format test check mini

lint:  ## what CI says about style
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

test:  ## make test FILES=tests/images/test_picture.py
	pytest $(FILES)

check: lint test  ## all that CI checks, in this environment

mini:  ## renew the copies of our code in the embedded checkpoint
	python -m tests.tools.refresh_mini
