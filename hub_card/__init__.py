"""The model card, evaluation results and upload of a SetCrop checkpoint.

`card.write_card(folder)` fills `template.md` from what lies in the folder: the model's config, `training.json` (data
and recipe) and the `evaluation.json` files that `setcrop evaluate --out` wrote. The figures of a card's tables are
read from these; what `training.json` says is as it was written.
"""
