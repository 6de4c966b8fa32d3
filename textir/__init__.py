"""TextIR: image restoration guided by cleaned words. What users call lies in `pipelines` (`load`),
the parts lie here."""

import os

__version__ = "0.1.0"

# A thread of OpenMP that waits for another one turns in circles at first. Where other programs use
# the processor, it keeps the other one from working: a photo then takes ten times as long. This is
# read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
