"""TextIR: image restoration guided by cleaned words.

The pipelines load when they are first asked for, so that `textir.degradations` and its neighbours stay quick to import.
"""

__version__ = "0.1.0"

_FACE = ("MINI", "RestorationOutput", "TextGuidedRestorationPipeline")


def __getattr__(name: str):
    if name in _FACE:
        import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module 'textir' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_FACE]
