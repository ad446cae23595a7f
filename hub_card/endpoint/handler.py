"""Crops from a Hugging Face Inference Endpoint."""

from __future__ import annotations

import base64
from typing import Any

from transformers import pipeline


class EndpointHandler:
    """Loads the model once and answers requests.

    Args:
        path: Where the endpoint has put this repository.
    """

    def __init__(self, path: str = "") -> None:
        self.cropper = pipeline("image-cropping", model=path, trust_remote_code=True)
        # The options of the pipeline, and no others of transformers'.
        self.parameters = {*vars(self.cropper.options), "timeout", "batch_size"}

    def __call__(self, data: dict[str, Any]) -> Any:
        """Suggest crops.

        Args:
            data: `inputs`, an image or a list of images (base64 text, an http(s) or data URL; PIL where the request
                body was an image), and `parameters`, options of the pipeline such as `top_k` and `aspect_ratio`.

        Returns:
            The pipeline's answer, or `{"error": ...}` with one line where the request cannot be served.
        """
        if not isinstance(data, dict) or data.get("inputs") is None:
            return {"error": "the request has no inputs"}
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            return {"error": 'parameters must be an object, such as {"top_k": 3}'}
        unknown = parameters.keys() - self.parameters
        if unknown:
            return {"error": f"unknown parameters: {', '.join(sorted(unknown))}"}
        try:
            return self.cropper(_images(data["inputs"]), **parameters)
        except (OSError, TypeError, ValueError) as error:
            return {"error": " ".join(str(error).split())}


def _images(inputs: Any) -> Any:
    """Return the images of a request, of which none can name a file of the server."""
    return [_image(image) for image in inputs] if isinstance(inputs, list) else _image(inputs)


def _image(image: Any) -> Any:
    if isinstance(image, str) and not image.startswith(("http://", "https://", "data:")):
        try:
            return base64.b64decode("".join(image.split()), validate=True)
        except ValueError:
            raise ValueError("an image is base64 text, an http(s) or data URL") from None
    if isinstance(image, dict):
        raise ValueError("an image is base64 text, an http(s) or data URL, not an object")
    return image
