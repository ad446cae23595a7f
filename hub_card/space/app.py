"""The SetCrop Space: the page of `setcrop demo`, with the model that `setcrop publish --space` names."""

from __future__ import annotations

import os

from transformers import pipeline

import modeling_setcrop
from modeling_setcrop.integrations.gradio_demo import build_demo

MODEL = os.environ.get("SETCROP_MODEL", modeling_setcrop.DEFAULT_CHECKPOINT)

page = build_demo(pipeline("image-cropping", model=MODEL))

if __name__ == "__main__":
    page.launch()
