"""Uploads an exported model folder, and the demo Space, through `huggingface_hub`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

SPACE = Path(__file__).with_name("space")
_README = "README.md"
_IGNORED = {"__pycache__", ".git", ".cache"}


@dataclass(frozen=True)
class Upload:
    """One repository's worth of files.

    repo_id: name on the Hub; repo_type: "model" or "space"; folder: where the files lie; files: (path inside the
    repository, bytes), sorted; model: the model's name, which stands in the Space's README as `{{model}}`.
    """

    repo_id: str
    repo_type: str
    folder: Path
    files: tuple[tuple[str, int], ...]
    model: str | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.files)


def plan_upload(folder: str | Path, repo_id: str, space: bool = False) -> list[Upload]:
    """What publishing uploads; needs no network.

    Args:
        folder: what `setcrop export hub` wrote.
        repo_id: name of the model's repository; the Space's is the same with "-demo".
        space: also the demo Space.

    Raises:
        FileNotFoundError: the folder is not a complete export; the message says what is missing.
    """
    folder = Path(folder)
    for needed in ("config.json", "model.safetensors", "preprocessor_config.json", "modeling_setcrop.py", "README.md"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder}: has no {needed}; write the folder with: setcrop export hub {folder}")
    uploads = [Upload(repo_id, "model", folder, _files(folder))]
    if space:
        files = dict(_files(SPACE)) | {_README: len(_space_readme(SPACE, repo_id))}
        uploads.append(Upload(f"{repo_id}-demo", "space", SPACE, tuple(sorted(files.items())), repo_id))
    return uploads


def upload(plan: Upload, private: bool = False, api: HfApi | None = None) -> str:
    """Creates the repository where it does not exist and uploads the files in one commit; returns its address.

    Can be repeated after a failure: what arrived already is not sent again. The token is the library's own business
    (`hf auth login`, or HF_TOKEN).
    """
    api = api or HfApi()
    options = {"space_sdk": "gradio"} if plan.repo_type == "space" else {}
    url = api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=private, exist_ok=True, **options)
    if plan.repo_type == "space":
        api.add_space_variable(plan.repo_id, "SETCROP_MODEL", plan.model)
    with tempfile.TemporaryDirectory() as work:
        folder = plan.folder
        if plan.model is not None:
            folder = Path(shutil.copytree(plan.folder, Path(work, "space")))
            (folder / _README).write_bytes(_space_readme(plan.folder, plan.model))
        api.upload_folder(
            repo_id=plan.repo_id,
            repo_type=plan.repo_type,
            folder_path=folder,
            allow_patterns=[name for name, _ in plan.files],
            commit_message=f"Upload {plan.repo_id.rsplit('/', 1)[-1]}",
        )
    return str(url)


def _space_readme(folder: Path, model: str) -> bytes:
    return (folder / _README).read_text(encoding="utf-8").replace("{{model}}", model).encode("utf-8")


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    wanted = [path for path in paths if not _IGNORED.intersection(path.parts)]
    return tuple(sorted((path.as_posix(), (folder / path).stat().st_size) for path in wanted))
