"""Upload an exported model folder, and the demo Space, through `huggingface_hub`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

# The demo on a server, and the page that crops in the browser: folder, and what the repository's name ends with.
SPACES = {
    "gradio": (Path(__file__).with_name("space"), "demo"),
    "static": (Path(__file__).with_name("web"), "web"),
}
_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", "modeling_setcrop.py", "README.md")
_WITH_MODEL = ("README.md", "index.html")
_GRAPH = "onnx/model.onnx"

# What the Hub may answer, or not answer: the first base of its errors is that of the library that it connects with,
# whose name changes with versions; of files sent in pieces (hf_xet) they are RuntimeErrors, of bad names ValueErrors.
HUB_FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Upload:
    """One repository's worth of files.

    repo_id: name on the Hub; repo_type: "model" or "space"; folder: where the files lie; files: (path inside the
    repository, bytes), sorted; of a Space, model: the model's name, and sdk: "gradio" or "static".
    """

    repo_id: str
    repo_type: str
    folder: Path
    files: tuple[tuple[str, int], ...]
    model: str | None = None
    sdk: str | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.files)


def plan_upload(folder: str | Path, repo_id: str, space: str | None = None) -> list[Upload]:
    """Return what publishing uploads; needs no network.

    Args:
        folder: what `setcrop export hub` wrote.
        repo_id: name of the model's repository; the Space's is the same with "-demo" or "-web".
        space: also a Space: "gradio", the demo, or "static", the page that crops in the browser.

    Raises:
        FileNotFoundError: the folder is not a complete export; the message says what is missing.
        ValueError: no repository can have this name, or the Space's.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    _check_complete(folder)
    uploads = [Upload(repo_id, "model", folder, _files(folder))]
    if space is not None:
        source, ending = SPACES[space]
        check_repo_id(f"{repo_id}-{ending}")
        if space == "static" and not (folder / _GRAPH).is_file():
            hint = f"write it with: setcrop export onnx {folder} --model {folder}"
            raise FileNotFoundError(f"{folder}: has no {_GRAPH}; {hint}")
        sizes = dict(_files(source)) | {name: len(text) for name, text in _filled(source, repo_id).items()}
        uploads.append(Upload(f"{repo_id}-{ending}", "space", source, tuple(sorted(sizes.items())), repo_id, space))
    return uploads


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError, which names the option, where no repository can be called so."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        allowed = "letters, digits, '-', '_' and '.', at most 96 characters"
        raise ValueError(f"--repo-id {repo_id!r}: must be NAME or OWNER/NAME, of {allowed}") from None


def _check_complete(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for needed in _NEEDED:
        if not (folder / needed).is_file():
            # A checkpoint of its own is what to export, and cannot be where to.
            model = folder if (folder / "model.safetensors").is_file() else "CHECKPOINT"
            hint = f"write a folder to upload with: setcrop export hub EXPORT --model {model}"
            raise FileNotFoundError(f"{folder}: has no {needed}; {hint}")


def upload(plan: Upload, private: bool = False, api: HfApi | None = None) -> str:
    """Create the repository where it does not exist and upload the files in one commit; return its address.

    Can be repeated after a failure: what arrived already is not sent again. The token is the library's own business
    (`hf auth login`, or HF_TOKEN).

    Raises:
        HUB_FAILURES: the Hub cannot be reached, or refuses.
    """
    api = api or HfApi()
    options: dict[str, Any] = {"space_sdk": plan.sdk} if plan.sdk else {}
    url = api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=private, exist_ok=True, **options)
    if plan.sdk == "gradio" and plan.model is not None:
        api.add_space_variable(plan.repo_id, "SETCROP_MODEL", plan.model)
    with tempfile.TemporaryDirectory() as work:
        folder = plan.folder
        if plan.model is not None:
            folder = Path(shutil.copytree(plan.folder, Path(work, "space")))
            for name, text in _filled(plan.folder, plan.model).items():
                (folder / name).write_bytes(text)
        api.upload_folder(
            repo_id=plan.repo_id,
            repo_type=plan.repo_type,
            folder_path=folder,
            allow_patterns=[name for name, _ in plan.files],
            commit_message=f"Upload {plan.repo_id.rsplit('/', 1)[-1]}",
        )
    return str(url)


def _filled(folder: Path, model: str) -> dict[str, bytes]:
    """Return the files of a Space in which the model's name and address stand, with these filled in."""
    address = f"https://huggingface.co/{model}/resolve/main/"
    texts = {name: folder / name for name in _WITH_MODEL if (folder / name).is_file()}
    return {
        name: path.read_text(encoding="utf-8").replace("{{model}}", model).replace("{{address}}", address).encode()
        for name, path in texts.items()
    }


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    wanted = [path for path in paths if not any(map(_stays_here, path.parts))]
    return tuple(sorted((path.as_posix(), (folder / path).stat().st_size) for path in wanted))


def _stays_here(name: str) -> bool:
    """Whether a file or folder is none of the export: hidden, as what killed runs leave is, or Python's cache."""
    return name == "__pycache__" or (name.startswith(".") and name != ".gitattributes")
