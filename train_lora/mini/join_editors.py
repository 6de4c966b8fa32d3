"""Foundation of the editors: join three trained networks to the checkpoint mini-textir.

    python -m train_lora.mini.join_editors --inpainter runs/editors/inpainter/pipeline \
        --upscaler runs/editors/upscaler/pipeline --colorizer runs/editors/colorizer/pipeline \
        --encoders mini --output textir/checkpoints/mini-textir

Weights are stored in half precision. The encoders must be those that the networks were trained
with: their embeddings of a few sentences are compared.
"""

import argparse
from pathlib import Path

import torch

from pipelines import TextEditableRestorationPipeline, load
from pipelines.loading import load_editor
from textir.models import EditProcessor
from train_lora.train_text_editor import ENCODERS, PARTS

SENTENCES = ["a red car", "a dog on a beach at sunset", "mostly blue"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for part in PARTS.values():
        parser.add_argument(f"--{part}", required=True, help=f"checkpoint with the {part}")
    parser.add_argument("--encoders", default="mini", help="checkpoint with the encoders")
    parser.add_argument(
        "--saturation",
        type=float,
        default=1.0,
        help="what the colorizer's last layer is multiplied by: less is nearer to gray",
    )
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    lender = load(arguments.encoders, device="cpu", dtype="float16")
    encoders = {name: getattr(lender, name) for name in ENCODERS}
    pipe = TextEditableRestorationPipeline(edit_processor=EditProcessor(), **encoders)
    for part in PARTS.values():
        trained = load_editor(getattr(arguments, part))
        check_space(trained, pipe, part)
        pipe.register_modules(**{part: getattr(trained, part)})
    for values in pipe.colorizer.head.parameters():
        values.data *= arguments.saturation
    for part in PARTS.values():
        torch.nn.Module.to(getattr(pipe, part), dtype=torch.float16)
    pipe.save_pretrained(arguments.output)


@torch.no_grad()
def check_space(
    trained: TextEditableRestorationPipeline, pipe: TextEditableRestorationPipeline, part: str
) -> None:
    """Compare what both text encoders say.

    Raises:
        ValueError: if a network was trained in another space.
    """
    likeness = (trained.embed_texts(SENTENCES) * pipe.embed_texts(SENTENCES)).sum(1).min()
    if likeness < 0.98:
        raise ValueError(
            f"The {part} was trained with other encoders: a sentence agrees with itself by "
            f"{likeness:.2f} only. Train it with these, or pass those as `--encoders`."
        )


if __name__ == "__main__":
    main()
