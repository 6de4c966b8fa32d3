"""The tab Compare: the same photo with every kind of guidance, side by side."""

from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from textir.images.picture import Picture
from textir.space.controls import photo_input, seed_input
from textir.space.examples import SOURCES, Example
from textir.space.inputs import read_upload, size_of
from textir.space.messages import messages
from textir.space.settings import Settings, whole
from textir.space.showcase import BEST_GUIDED, WAYS, exhibits
from textir.space.view import preview, scores
from textir.space.worker import QUEUE, Result, Worker

LEAST_GAIN = 0.1  # dB from which guidance is said to help


class CompareTab:
    """Restores one photo in several ways."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.model = worker.model

    def lay_out(self, examples: list[Example]) -> None:
        """Make the inputs and outputs, and join them to `compare`."""
        first, words, table_rows = first_comparison()
        gr.Markdown(words if self.model.has_painter else "The same photo, measured.")
        with gr.Row():
            image = photo_input("Degraded photo", height=240)
            reference = photo_input(
                "Reference of the same scene (optional)",
                height=240,
                visible=self.model.has_matcher,
            )
            truth = photo_input("Ground truth (optional)", height=240)
        gr.Examples(
            [[example.degraded, example.clean] for example in examples],
            [image, truth],
            example_labels=list(SOURCES),
            label="Examples",
        )
        with gr.Row():
            prompt = gr.Textbox("", label="Prompt (optional)", visible=self.model.has_painter)
            seed = seed_input(visible=self.model.has_painter)
        with gr.Row(elem_classes="act"):
            start = gr.Button("Compare", variant="primary")
            stop = gr.Button("Stop")
        pictures = gr.Gallery(
            first,
            label="Side by side",
            format="png",
            columns=2,
            height="auto",
            object_fit="contain",
            interactive=False,
            elem_classes="whole",
        )
        table = gr.Dataframe(
            table_rows,
            elem_classes="table",
            headers=["guidance", "PSNR in dB", "SSIM", "seconds"],
            interactive=False,
            wrap=True,
        )
        inputs = [image, reference, truth, prompt, seed]
        outputs = [pictures, table]
        event = start.click(self.compare, inputs, outputs, api_name="compare", **QUEUE)
        stop.click(None, cancels=[event], api_visibility="private")

    def compare(
        self,
        image: str,
        reference: str | None = None,
        truth: str | None = None,
        prompt: str = "",
        seed: int = 0,
        progress=gr.Progress(),
    ) -> Iterator[tuple]:
        """Restore the same photo with every kind of guidance, side by side.

        Args:
            image: the degraded photo.
            reference: a photo of the same scene that guides instead of a painted one.
            truth: the clean photo, of the same size; then PSNR and SSIM are measured.
            prompt: words; adds guidance painted from them alone.
            seed: of everything random.

        Returns:
            the pictures with their captions, and a table.
        """
        with messages():
            picture = read_upload(image)
            clean = read_truth(truth, picture)
            ways = self.ways(prompt, reference, whole(seed))
            rows, pictures = [], [(preview(picture), "degraded")]
            for number, (name, settings) in enumerate(ways.items()):
                span = (number / len(ways), (number + 1) / len(ways))
                for result in self.worker.follow(picture, settings, progress, span):
                    if not isinstance(result, Result):
                        yield gr.skip(), gr.skip()
                seconds = f"{sum(result.seconds.values()):.2f}"
                rows.append([name, *scores(result.restored, clean), seconds])
                pictures.append((preview(result.restored), f"guidance: {name}"))
            if clean is not None:
                rows.insert(0, ["(degraded)", *scores(picture, clean), ""])
                pictures.append((preview(clean), "ground truth"))
        yield pictures, rows

    def ways(self, prompt: str, reference: str | None, seed: int) -> dict[str, Settings]:
        """Names and settings of the kinds of guidance that can be compared.

        Raises:
            ValueError: if the checkpoint takes no reference.
        """
        unguided = Settings(guidance="none", seed=seed)
        ways = {"none": unguided}
        if self.model.has_painter:
            ways["degraded words"] = replace(unguided, guidance="degraded")
            ways["cleaned words"] = replace(unguided, guidance="cleaned", guidance_strength=1.0)
        if self.model.has_painter and prompt:
            ways["prompt only"] = replace(unguided, guidance="prompt", prompt=prompt)
        if reference:
            if not self.model.has_matcher:
                raise ValueError("This checkpoint takes no reference: it has no matcher.")
            ways["reference"] = replace(unguided, reference=read_upload(reference))
        return ways


def first_comparison() -> tuple[list[tuple[str, str]], str, list[list[str]]]:
    """What shows on arrival: the example where guidance helps most, for which kinds it does not,
    as Markdown, and a row of the table for each kind."""
    known = [one for one in exhibits() if one.scores]
    gains = {one.name: one.scores[1] - one.scores[0] for one in known}
    best = next(one for one in known if one.name == BEST_GUIDED)
    pictures = [
        (best.file(), "degraded"),
        *[(best.file(way.replace(" ", "-")), f"guidance: {way}") for way in WAYS],
        (best.file("clean"), "ground truth"),
    ]
    helped = [f"{name} ({gain:+.2f} dB)" for name, gain in gains.items() if gain > LEAST_GAIN]
    others = [f"{name} ({gain:+.2f} dB)" for name, gain in gains.items() if gain <= LEAST_GAIN]
    words = (
        "The same photo with every kind of guidance; with the ground truth, measured. "
        f"On the examples, painted guidance helps against: {', '.join(helped) or 'none'}. "
        f"It does not help against: {', '.join(others) or 'none'}."
    )
    rows = [[way, f"{score:.2f}", "-", "-"] for way, score in zip(WAYS, best.scores)]
    return pictures, words, rows


def read_truth(truth: str | None, picture: Picture) -> Picture | None:
    """The ground truth of a picture, where there is one.

    Raises:
        ValueError: if it has another size.
    """
    if not truth:
        return None
    clean = read_upload(truth)
    if clean.pixels.shape != picture.pixels.shape:
        sizes = f"{size_of(picture)} and {size_of(clean)}"
        raise ValueError(f"Photo and ground truth must have one size, they have {sizes}.")
    return clean
