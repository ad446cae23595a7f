"""The page on which SetCrop can be tried: `setcrop demo` and the Space on the Hub."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..crop_options import TIGHTNESS
from ..image_reading import load_image_file, one_line
from ..images.drawing import DRAWING_SIDE, draw_crops
from ..images.formats import output_suffix
from ..images.writing import CropFile, write_crops

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline_image_cropping import ImageCroppingPipeline
    from ..runtime.cropper import Cropper

    _Shown = tuple[Image.Image, list[list[Any]], list[str], str]

RATIOS = ("free", "original", "1:1", "4:5", "3:2", "16:9", "9:16")
_HEADERS = ["rank", "score", "left", "top", "right", "bottom", "size"]
# Files made for a visitor are deleted after so many seconds.
_LIFETIME = 3600
MAX_UPLOAD = 64_000_000
"""Bytes of the largest file that a visitor may upload."""


class _Page(gr.Blocks):
    """A page that takes no file of more than `MAX_UPLOAD` bytes, however it is launched."""

    def launch(self, *args: Any, max_file_size: int | str | None = MAX_UPLOAD, **kwargs: Any) -> Any:
        return super().launch(*args, max_file_size=max_file_size, **kwargs)


class _Upload(gr.Image):
    """An image field that hands on the file as it is, so that what is wrong with it is said by who reads it."""

    # Gradio shows it as its parent.
    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path


def build_demo(cropper: ImageCroppingPipeline | Cropper, examples: list[str] | None = None) -> gr.Blocks:
    """Return the page: drop an image, see its ranked crops drawn on it, download them or the JSON.

    Args:
        cropper: The "image-cropping" pipeline, or a [`Cropper`].
        examples: Images to offer.
    """
    folder = Path(tempfile.mkdtemp(prefix="setcrop-demo-"))

    # Whose ratings a model can predict; with one source there is nothing to choose.
    sources = getattr(cropper.config, "tightness_sources", None) or {}
    known = [name for name in TIGHTNESS if name == "default" or name in sources]

    def suggest(path: str | None, ratio: str, count: int, diversity: float, tightness: str) -> _Shown:
        if path is None:
            raise gr.Error("Drop an image first.", print_exception=False)
        asked = {"aspect_ratio": None if ratio == "free" else ratio, "top_k": int(count), "diversity": diversity}
        asked["tightness"] = tightness
        try:
            return _shown(cropper, Path(path), asked, folder)
        except Exception as error:
            # Whatever it is, the visitor is told, and not where the file lies.
            expected = isinstance(error, ValueError | OSError)
            raise gr.Error(one_line(error).replace(f"{path}: ", ""), print_exception=not expected) from None

    with _Page(title="SetCrop", delete_cache=(_LIFETIME, _LIFETIME)) as page:
        gr.Markdown("# SetCrop\nDiverse, well-composed crops of an image, ranked.")
        with gr.Row():
            with gr.Column():
                source = _Upload(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                ratio = gr.Dropdown(RATIOS, value="free", label="Aspect ratio", allow_custom_value=True)
                count = gr.Slider(1, 10, value=5, step=1, label="Crops")
                diversity = gr.Slider(0, 1, value=0.3, step=0.05, label="Diversity")
                tightness = gr.Radio(known, value="default", label="Tightness", visible=len(known) > 1)
                button = gr.Button("Suggest crops", variant="primary")
            with gr.Column():
                drawn = gr.Image(label="Crops", format="jpeg", interactive=False)
                verdict = gr.Markdown()
                table = gr.Dataframe(headers=_HEADERS, label="Boxes in pixels", interactive=False)
                files = gr.Files(label="Crops and JSON")
        inputs, outputs = [source, ratio, count, diversity, tightness], [drawn, table, files, verdict]
        gr.on([button.click, source.upload], suggest, inputs, outputs, api_name="suggest")
        if examples:
            gr.Examples([[example] for example in examples], [source])
    return page


def _shown(cropper: ImageCroppingPipeline | Cropper, path: Path, options: dict[str, Any], folder: Path) -> _Shown:
    """Suggest crops of an image and write them; return the drawing, the table, the files and the verdict."""
    result = cropper(load_image_file(path, cropper.short_side), details=True, **options)
    files = _write_files(folder, path, result)
    focus = result["focus_point"]
    verdict = (
        f"Whole image {result['keep_original']:.2f}, best crop {result['improves']:+.2f}; "
        f"focus point {focus['x']:.2f}, {focus['y']:.2f}."
    )
    drawn = draw_crops(load_image_file(path, DRAWING_SIDE), result["crops"])
    return drawn, _table(result["crops"]), files, verdict


def _table(crops: list[dict[str, Any]]) -> list[list[Any]]:
    rows = []
    for rank, crop in enumerate(crops, start=1):
        x1, y1, x2, y2 = (crop["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
        rows.append([rank, round(crop["score"], 3), x1, y1, x2, y2, f"{x2 - x1} x {y2 - y1}"])
    return rows


def _write_files(folder: Path, source: Path, result: dict[str, Any]) -> list[str]:
    """Return the crops, cut from the full file, and the JSON, in a folder of their own; old folders are deleted."""
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > _LIFETIME:
            shutil.rmtree(old, ignore_errors=True)
    target = Path(tempfile.mkdtemp(dir=folder))
    suffix = output_suffix(source)
    crops = [
        CropFile(tuple(crop["box"].values()), target / f"{source.stem}_{rank}{suffix}")
        for rank, crop in enumerate(result["crops"], start=1)
    ]
    write_crops(source, crops)
    listing = target / f"{source.stem}.json"
    listing.write_text(json.dumps(result, indent=2) + "\n")
    return [*(str(crop.target) for crop in crops), str(listing)]
