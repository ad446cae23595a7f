"""The model card, evaluation results and upload of a SetCrop checkpoint.

`card.write_card(folder)` fills `template.md` from what lies in the folder: the model's config, `training.json` (data
and recipe) and the `evaluation.json` files that `setcrop evaluate --out` wrote. No figure in a card is typed by hand.
"""
