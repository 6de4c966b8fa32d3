"""TextIR: image restoration guided by cleaned words. What users call lies in `pipelines` (`load`),
the parts lie here."""

__version__ = "0.1.0"
