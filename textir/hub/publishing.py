"""Publishing: a folder becomes a repository of the Hub, with a card that says how it was made and
what was measured.

A *result* is a folder in diffusers format (a whole checkpoint) or one with
`pytorch_lora_weights.safetensors` (an adapter). Beside the weights it may hold `training.json`
(written by the training scripts), `evaluations/*.json` (`python -m textir evaluate --json`) and
`before_after.png`; the card is made from these. Scores that were measured with other weights do not
enter it.
"""

import hashlib
import json
import logging
import platform
import shlex
import shutil
from itertools import chain
from pathlib import Path

import httpx2
import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open

from textir.degradations import Mixture

logger = logging.getLogger("textir.hub")

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
TEMPLATES = Path(__file__).parents[2] / "model_cards"
MARK = (
    "<!-- made by textir from training.json and evaluations/; delete this line to keep your "
    "own edits -->"
)
# The first is the base of the client's errors.
UNREACHABLE = (
    httpx2.HTTPError,
    OfflineModeIsEnabled,
    OSError,
)
# component -> its task, as the Hub's tags name it
EDITORS = {
    "inpainter": "inpainting",
    "upscaler": "super-resolution",
    "colorizer": "image-colorization",
}
OF_THE_RUN = {  # settings that say nothing about the result, and stay out of its card
    *(
        "output_dir",
        "logging_dir",
        "logging_steps",
        "report_to",
        "tracker_project_name",
        "dataloader_num_workers",
    ),
    *(
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "validation_data_dir",
        "validation_steps",
    ),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "pretrained_model_name_or_path"),
}
LEFT_OUT = ["checkpoint-*", ".checkpoint-*", "*.part", "*.part[0-9]*", "cache/*", "logs/*"]


def result_kind(folder: str | Path) -> str:
    """`checkpoint` or `adapter`.

    Raises:
        ValueError: if the folder is neither.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        return "checkpoint"
    if (folder / ADAPTER_FILE).is_file():
        return "adapter"
    inside = [name for name in ("pipeline", "adapter") if (folder / name).is_dir()]
    hint = f" Did you mean {folder / inside[0]}?" if inside else ""
    raise ValueError(
        f"{folder} is no result: a folder with model_index.json or {ADAPTER_FILE} was "
        f"expected.{hint}"
    )


def weights_digest(folder: str | Path) -> str:
    """SHA-256 over the weight files of a result as it is published; adapters that a checkpoint
    carries do not count."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.safetensors")):
        inside = path.relative_to(folder)
        if (
            inside.parts[0] == "adapters"
            or next(filter_repo_objects([str(inside)], ignore_patterns=LEFT_OUT), None) is None
        ):
            continue
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def describe_training(
    folder: str | Path,
    script: str,
    command: str,
    settings: dict,
    steps: int,
    processes: int = 1,
    sheet: Path | None = None,
) -> None:
    """Note in a result how it was made, for its card; `sheet` is a picture of its last
    validation."""
    folder = Path(folder)
    start = settings.get("pretrained_model_name_or_path")
    earlier = Path(str(start)) / "training.json"
    if earlier.is_file():
        base = json.loads(earlier.read_text(encoding="utf-8")).get("base_model")
    else:
        base = (
            start
            if start and start != "mini" and not Path(start).exists() and start.count("/") == 1
            else None
        )
    described = {
        "script": script,
        "command": command,
        "steps": steps,
        "processes": processes,
        "base_model": base,
        "license": licence_of(start),
        "settings": settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (folder / "training.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if sheet is not None:
        shutil.copyfile(sheet, folder / "before_after.png")


def licence_of(start: str | None) -> dict[str, str]:
    """What the card of the checkpoint that a training starts from says of its licence: it holds for
    what comes of it. Empty where that is on the Hub, whose card may change, or says nothing."""
    card = TEMPLATES / "mini.md" if start == "mini" else Path(str(start)) / "README.md"
    if not card.is_file():
        return {}
    data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    return {name: data[name] for name in ("license", "license_name") if data.get(name)}


def read_evaluations(folder: str | Path) -> list[dict]:
    """The evaluations of a result that were measured with the weights it holds now.

    Raises:
        ValueError: if a file is not an evaluation.
    """
    kind, digest, kept = result_kind(folder), weights_digest(folder), []
    for path in sorted((Path(folder) / "evaluations").glob("*.json")):
        try:
            evaluation = json.loads(path.read_text(encoding="utf-8"))
            measured_with = dict(evaluation["weights"])
            eval_results(evaluation)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not an evaluation (`python -m textir evaluate --json`): {error!r}."
            ) from None
        if measured_with.get(kind) == digest and (
            kind == "adapter" or "adapter" not in measured_with
        ):
            kept.append(evaluation)
        else:
            logger.warning(
                "%s was measured with other weights and is left out of the card; measure again.",
                path,
            )
    return kept


def build_card(
    folder: str | Path, repo: str | None = None, license_name: str | None = None
) -> ModelCard:
    """The card of a result.

    Args:
        folder: the result.
        repo: its name on the Hub, for the example.
        license_name: of the weights; by default that of the checkpoint that the training started
            from, `other` where that is on the Hub, `apache-2.0` where it started from nothing.
    """
    folder, kind = Path(folder), result_kind(folder)
    note = folder / "training.json"
    training = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    settings, base = training.get("settings", {}), training.get("base_model")
    evaluations = read_evaluations(folder)
    is_adapter = kind == "adapter"
    licence = {"license": "other" if base else "apache-2.0"}
    licence |= {"license": license_name} if license_name else training.get("license") or {}
    relation = {}
    if base:
        relation["base_model"] = base
        relation["base_model_relation"] = "adapter" if is_adapter else "finetune"
    dataset = str(settings.get("dataset_name") or "")
    results = list(chain.from_iterable(map(eval_results, evaluations)))
    tags = ["image-restoration", "textir", *trained_tasks(settings), *edited_tasks(folder)]
    tags += ["lora", "diffusers-training"] if is_adapter else ["diffusers-training"]
    data = ModelCardData(
        **licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=tags,
        datasets=[dataset] if dataset.count("/") == 1 else None,
        model_name=repo or folder.name,
        eval_results=results or None,
        **relation,
    )
    told = {key: value for key, value in settings.items() if key not in OF_THE_RUN}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / f"{'editor' if edited_tasks(folder) else kind}.md"),
        mark=MARK,
        name=repo or folder.name,
        repo=repo or str(folder),
        start=settings.get("pretrained_model_name_or_path"),
        training=training,
        settings={key: value for key, value in told.items() if value not in (None, [], "none")},
        evaluations=evaluations,
        has_picture=(folder / "before_after.png").is_file(),
        parts=components(folder),
    )


def trained_tasks(settings: dict) -> list[str]:
    """The labels of the degradations that a training made, sorted."""
    if not settings.get("degradations"):
        return []
    recipes = Mixture.parse(settings["degradations"]).recipes
    return sorted(set().union(*(recipe.labels for recipe in recipes)))


def edited_tasks(folder: Path) -> list[str]:
    """What a checkpoint of text-editable restoration does; nothing for other results."""
    if result_kind(folder) == "adapter":
        return []
    parts = components(folder)
    return [task for part, task in EDITORS.items() if part in parts]


def components(folder: Path) -> list[str]:
    """The networks that a result brings."""
    if result_kind(folder) == "adapter":
        with safe_open(folder / ADAPTER_FILE, "pt") as file:
            return sorted({key.split(".", 1)[0] for key in file.keys()})  # noqa: SIM118
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return sorted(
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value[0]
    )


def eval_results(evaluation: dict) -> list[EvalResult]:
    """PSNR and SSIM of an evaluation in the form that the Hub reads."""
    name = Path(evaluation["data"]).name + (
        f", {evaluation['degradation']}" if evaluation["degradation"] else ""
    )
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="Image restoration",
            dataset_type="image-restoration",
            dataset_name=name,
            dataset_config=f"{name} ({evaluation['protocol']}; seed {evaluation['seed']}; "
            f"{evaluation['settings']})",
            dataset_args={"protocol": evaluation["protocol"], "command": evaluation["command"]},
            metric_type=metric,
            metric_name=f"{metric.upper()} ({evaluation['protocol']})",
            metric_value=evaluation["summary"][metric],
        )
        for metric in ("psnr", "ssim")
    ]


def write_card(
    folder: str | Path, repo: str | None = None, license_name: str | None = None
) -> Path:
    """Write `README.md` of a result; one that was edited by hand (its mark is gone) stays as it
    is."""
    path = Path(folder) / "README.md"
    if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
        logger.info("%s was written by hand and stays as it is.", path)
        return path
    build_card(folder, repo, license_name).save(path)
    return path


def check_access(token: str | None = None) -> str:
    """The name of the user that the Hub token belongs to.

    Raises:
        ValueError: if there is no token, it is not valid, or the Hub cannot be reached.
    """
    try:
        return HfApi(token=token).whoami()["name"]
    except LocalTokenNotFoundError:
        raise ValueError(
            "No Hub token: run `hf auth login`, set HF_TOKEN, or pass a token."
        ) from None
    except UNREACHABLE as error:
        raise ValueError(f"The Hub refuses or cannot be reached: {error}") from None


def push(
    folder: str | Path,
    repo: str,
    token: str | None = None,
    private: bool = False,
    license_name: str | None = None,
    message: str = "Upload with textir",
) -> str:
    """Publish a result under `user/name` (or `name`, for the owner of the token), with its card.

    Returns:
        the address of the repository.

    Raises:
        ValueError: if the folder is no result, there is no token, or the Hub refuses or cannot be
            reached; the folder stays complete, and the message says how to push it later.
    """
    folder = Path(folder)
    result_kind(folder)
    try:
        user = check_access(token)
        repo = repo if "/" in repo else f"{user}/{repo}"
        write_card(folder, repo, license_name)
        api = HfApi(token=token)
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repo, commit_message=message, ignore_patterns=LEFT_OUT
        )
    except (*UNREACHABLE, ValueError) as error:
        raise ValueError(
            f"{error}\nNothing was lost: the result is complete in {folder}. Push it later with\n"
            f"    {shlex.join(['python', '-m', 'textir', 'push', str(folder), repo])}"
        ) from None
    return str(url)
