"""Texts, HTML and CSS of the page, from the files in `templates`."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

TEMPLATES = Environment(
    loader=PackageLoader("textir.space"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def render(name: str, **values) -> str:
    """A file of `templates` with its gaps filled; in HTML, values are escaped."""
    return TEMPLATES.get_template(name).render(values)
