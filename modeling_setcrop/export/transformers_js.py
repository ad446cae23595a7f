"""What transformers.js, which is transformers in JavaScript, needs in a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..hub_code import IMAGE_PROCESSORS
from ..images.atomic import atomic_writer
from ..runtime.checkpoint import CONFIG, PREPROCESSOR

# The class of transformers.js that prepares images as ours does. Its older name, because transformers.js accepts that
# one under a key that Python heeds only where neither `image_processor_type` nor `auto_map` says better.
_IMAGE_PROCESSOR = "DetrFeatureExtractor"
# In a browser transformers.js would take the quantised graph unless the configuration says otherwise.
_DEFAULTS = {"dtype": "fp32"}
# It would round sides down to multiples of `size_divisor`; ours rounds to the nearest, and the graph does so itself.
# This is the name that it reads first, and no other program reads.
_PIXEL = {"size_divisibility": 1}


def write_transformers_js_config(folder: Path) -> None:
    """Make the JSON files of a checkpoint loadable by transformers.js too; other programs read them as before.

    transformers.js refuses an `image_processor_type` that it does not know. So the image processor's class is named by
    the `auto_map` alone, which Python reads (and resolves to this package where it is imported, without the files that
    the `auto_map` names), and for transformers.js by `feature_extractor_type`; and `size_divisibility` has it leave
    sides as they are, which the graph rounds as Python does.

    Args:
        folder: with `config.json` and `preprocessor_config.json`.
    """
    _update(folder / CONFIG, {"transformers.js_config": _DEFAULTS})
    classes = {"AutoImageProcessor": dict(IMAGE_PROCESSORS)}
    named = {"auto_map": classes, "feature_extractor_type": _IMAGE_PROCESSOR, **_PIXEL}
    _update(folder / PREPROCESSOR, named, without="image_processor_type")


def _update(path: Path, fields: dict[str, Any], without: str | None = None) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))
    after = {name: value for name, value in {**before, **fields}.items() if name != without}
    if after == before:
        return
    with atomic_writer(path) as file:
        file.write((json.dumps(after, indent=2, sort_keys=True) + "\n").encode("utf-8"))
