"""Training: scripts for each stage, and the recipes that made the embedded checkpoints."""

import textir  # noqa: F401  first: it sets up the threads of torch
