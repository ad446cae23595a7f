"""The SetCrop Space: the page of `setcrop demo`, with the checkpoint that comes with the package."""

from __future__ import annotations

from transformers import pipeline

import modeling_setcrop
from modeling_setcrop.demo import build_demo

page = build_demo(pipeline("image-cropping", model=modeling_setcrop.DEFAULT_CHECKPOINT))

if __name__ == "__main__":
    page.launch()
