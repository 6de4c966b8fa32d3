"""Validation of the editor while it trains: centre crops of clean photos, PSNR beside what one has
without a network."""

import torch
import torch.nn.functional as F

from textir.data.photos import find_entries
from textir.models.edit_processor import AB_UNIT, fill_harmonic, lab_from_rgb, rgb_from_lab
from train_lora.described_photos import read_small

TINT = (-0.029, 0.080)


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * (image.clamp(0, 1) - truth).square().mean().log10())


@torch.no_grad()
def judge(run, config, pipe) -> None:
    if not run.is_main or config.validation_data_dir is None:
        return
    entries = find_entries(config.validation_data_dir, "test")
    entries = entries[:: max(len(entries) // config.num_validation_images, 1)]
    scores = {}
    editor = getattr(
        pipe, {"colorize": "colorizer", "inpaint": "inpainter"}.get(config.task, "upscaler")
    )
    editor.eval()
    with run.averaged():
        for entry in entries:
            side = config.resolution
            truth = read_small(entry.clean, side if config.task == "colorize" else 320)
            top, left = ((n - min(n, side)) // 2 for n in truth.shape[-2:])
            truth = truth[..., top : top + side, left : left + side]
            for name, image in render(config.task, editor, truth).items():
                scores.setdefault(name, []).append(psnr(image, truth))
    editor.train()
    run.report({name: sum(values) / len(values) for name, values in scores.items()})


def render(task: str, editor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    if task == "colorize":
        lab = lab_from_rgb(truth)
        gray = rgb_from_lab(torch.cat([lab[:, :1], 0 * lab[:, 1:]], 1)).clamp(0, 1)
        ab = AB_UNIT * editor(gray).float()
        tint = torch.tensor(TINT)[None, :, None, None].expand_as(ab)
        return {
            "gray": gray,
            "tint": rgb_from_lab(torch.cat([lab[:, :1], tint], 1)).clamp(0, 1),
            "edited": rgb_from_lab(torch.cat([lab[:, :1], ab], 1)).clamp(0, 1),
        }
    if task == "inpaint":
        return render_hole(editor, truth)
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    size = [side // 4 for side in truth.shape[-2:]]
    small = (255 * F.interpolate(truth, size, **options).clamp(0, 1)).round() / 255
    start = F.interpolate(small, truth.shape[-2:], **options)
    return {"bicubic x4": start, "edited x4": editor(start, scale=4.0)}


def render_hole(editor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """A box in the middle; what lies outside counts as if it were filled as well."""
    height, width = truth.shape[-2:]
    hole = torch.zeros(1, 1, height, width)
    hole[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    start = fill_harmonic(truth, hole)
    edited = editor(start, mask=hole)
    return {"harmonic": start, "edited": torch.where(hole > 0, edited, truth)}
