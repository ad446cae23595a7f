"""The model card, evaluation results and upload of a SetCrop checkpoint.

`write_card(folder)` fills `template.md` from what lies in the folder: the model's config, `training.json` (data and
recipe) and the `evaluation.json` files that `setcrop evaluate --out` wrote. No figure in a card is typed by hand.
"""

from __future__ import annotations

from .card import build_card, write_card
from .pictures import PHOTOS
from .publishing import Upload, plan_upload, upload
from .results import CardError

__all__ = ["PHOTOS", "CardError", "Upload", "build_card", "plan_upload", "upload", "write_card"]
