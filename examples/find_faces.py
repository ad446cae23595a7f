"""Find faces in the images of the layout `editor`, to train setcrop-lite on (`train_setcrop_lite_faces.py`).

    pip install "mediapipe==0.10.14"
    python examples/find_faces.py --editor-data DIR --out faces.jsonl

MediaPipe's two face detectors (near and far) look at every image; what they find is joined. Their boxes run from brow
to chin and are grown to hold the hair. Each line of the file names an image file:
`{"photo": ..., "faces": [[x1, y1, x2, y2], ...], "unsure": [...]}`, in [0, 1] of its width and height; of the unsure
ones it is not said whether they are faces. Images where nothing was found have no line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from modeling_setcrop.crop_geometry import box_area, box_intersection
from modeling_setcrop.data import Problems
from modeling_setcrop.data.editor import read_editor_images
from modeling_setcrop.images.faces import with_hair

# Narrower faces, in [0, 1] of the image's width, decide no crop.
_LEAST_WIDTH = 0.03
_LEAST_CONFIDENCE = 0.55
_SAME_FACE = 0.3


def faces(pixels: np.ndarray, detectors: list) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (F, 4) of the faces in an RGB image, corners in [0, 1], most certain first; and (U, 4) of unsure ones."""
    found = [
        (detection.score[0], detection.location_data.relative_bounding_box)
        for detector in detectors
        for detection in detector.process(pixels).detections or []
    ]
    kept, unsure = np.zeros((0, 4)), np.zeros((0, 4))
    for certainty, box in sorted(found, key=lambda one: -one[0]):
        corners = np.array([[box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height]])
        smaller = np.minimum(box_area(kept), box_area(corners))
        if (box_intersection(corners, kept)[0] >= _SAME_FACE * smaller).any():
            continue
        if certainty < _LEAST_CONFIDENCE or box.width < _LEAST_WIDTH:
            unsure = np.concatenate([unsure, corners])
        else:
            kept = np.concatenate([kept, corners])
    return with_hair(kept).clip(0, 1), with_hair(unsure).clip(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor-data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import mediapipe

    detectors = [
        mediapipe.solutions.face_detection.FaceDetection(model_selection=near, min_detection_confidence=0.45)
        for near in (0, 1)
    ]
    images = [image for image in read_editor_images(args.editor_data, Problems()) if image.split == "train"]
    with open(args.out, "w") as lines:
        for image in track(images, "faces"):
            with Image.open(image.path) as opened:
                pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
            boxes, unsure = (found.round(4).tolist() for found in faces(pixels, detectors))
            if boxes or unsure:
                lines.write(json.dumps({"photo": image.path.name, "faces": boxes, "unsure": unsure}) + "\n")


if __name__ == "__main__":
    main()
