"""Store a trained checkpoint in half precision, to ship it: half the size, computed in float32 all the same.

    python examples/pack_checkpoint.py runs/lite modeling_setcrop/checkpoints/setcrop-lite --photos examples/photos

The config keeps float32, so loading converts the weights back. Prints how far the crops of the photographs move.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import modeling_setcrop  # noqa: F401  (registers the model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="photographs to compare the crops of")
    args = parser.parse_args()
    model = AutoModelForObjectDetection.from_pretrained(args.checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    packed = AutoModelForObjectDetection.from_pretrained(args.out).eval()
    moved = scored = 0.0
    for path in sorted(args.photos.iterdir()):
        with Image.open(path) as photo, torch.no_grad():
            inputs = processor(photo.convert("RGB"), return_tensors="pt")
            before, after = model(**inputs), packed(**inputs)
        moved = max(moved, (before.pred_boxes - after.pred_boxes).abs().max().item())
        scored = max(scored, (before.logits.sigmoid() - after.logits.sigmoid()).abs().max().item())
    size = (args.out / "model.safetensors").stat().st_size / 1e6
    print(f"{size:.1f} MB; dtype {packed.dtype}; edges move by {moved:.1e} of the picture, validities by {scored:.1e}")


if __name__ == "__main__":
    main()
