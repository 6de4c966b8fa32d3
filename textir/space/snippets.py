"""Lines of code that do elsewhere what the page has just done."""

import json
import shlex
from dataclasses import fields

from textir.space.edit_settings import EditSettings
from textir.space.settings import Settings

# What does not stand in the call of the pipeline.
APART = ("seed", "reference", "both_words", "adapter", "return_tags")


def python_lines(settings: Settings, checkpoint: str, size: tuple[int, int] | None = None) -> str:
    """Python that does a run again.

    Args:
        settings: of the run.
        checkpoint: that worked.
        size: height and width of the reduced copy that was restored, if it was one.
    """
    arguments = ['Image.open("photo.png")' if size is None else "photo"]
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if field.name not in APART and value not in (None, field.default):
            arguments.append(f"{field.name}={value!r}")
    if settings.seed:
        arguments.append(f"generator=torch.Generator().manual_seed({settings.seed})")
    loading = [repr(checkpoint)]
    if settings.adapter:
        loading.append(f"adapter={settings.adapter!r}")
    lines = ["import torch"] if settings.seed else []
    photo = []
    if size is None:
        lines.append("from PIL import Image")
    else:
        photo = [f'photo = resize(read_picture("photo.png").tensor(), {size})']
    lines.append("from pipelines import load")
    if photo:
        lines.append("from textir.images.picture import read_picture, resize")
    lines += [
        "",
        *photo,
        f"pipe = load({', '.join(loading)})",
        f"restored = pipe({', '.join(arguments)}).images[0]",
    ]
    return "\n".join(lines)


def edit_lines(
    settings: EditSettings, checkpoint: str, mask: str = "", make_gray: bool = False
) -> str:
    """Python that does an edit again.

    Args:
        settings: of the edit.
        checkpoint: of the editor.
        mask: name of the file of the mask, where there is one.
        make_gray: whether the photo loses its colours first.
    """
    photo = 'Image.open("photo.png")' + ('.convert("L")' if make_gray else "")
    arguments = [photo]
    if settings.prompt is not None:
        arguments.append(repr(settings.prompt))
    arguments.append(f"task={settings.task!r}")
    if mask:
        arguments.append(f"mask_image=Image.open({mask!r})")
    if settings.scale is not None:
        arguments.append(f"scale={settings.scale:g}")
    if settings.strength != 1:
        arguments.append(f"strength={settings.strength:g}")
    if settings.variants > 1:
        arguments.append(f"num_images_per_prompt={settings.variants}")
    if settings.seed:
        arguments.append(f"generator=torch.Generator().manual_seed({settings.seed})")
    result = "results = pipe({}).images" if settings.variants > 1 else "result = pipe({}).images[0]"
    lines = ["import torch"] if settings.seed else []
    lines += [
        "from PIL import Image",
        "from pipelines import load_editor",
        f"pipe = load_editor({checkpoint!r})",
        result.format(", ".join(arguments)),
    ]
    return "\n".join(lines)


def shell_lines(arguments: list, address: str) -> str:
    """The same through the API of this page: with `gradio_client`, and with curl alone.

    Args:
        arguments: of the endpoint `/restore`, without the photo.
        address: of the page.
    """
    values = f"handle_file('photo.png'), {repr(arguments)[1:-1]}, api_name='/restore'"
    options = shlex.quote(json.dumps(arguments)[1:-1])
    photo = """{"path": "'"$FILE"'", "meta": {"_type": "gradio.FileData"}}"""
    data = f"""'{{"data": [{photo}, '"$OPTIONS"']}}'"""
    return f"""pip install gradio_client
python - <<'END'
from gradio_client import Client, handle_file
before_after, restored_file, *_ = Client({address!r}).predict({values})
print(restored_file)
END

FILE=$(curl -s -F files=@photo.png {address}/gradio_api/upload | tr -d '[]"')
OPTIONS={options}
EVENT=$(curl -s {address}/gradio_api/call/restore -H 'Content-Type: application/json' \\
  -d {data} | cut -d'"' -f4)
curl -sN {address}/gradio_api/call/restore/$EVENT"""
