"""What the light installation leaves out, and what a person is told who asks for it."""

from __future__ import annotations

LEFT_OUT = frozenset({"torch", "transformers", "huggingface_hub", "safetensors", "scipy"})
"""Packages that suggesting, cropping and scoring on onnxruntime do without."""


def how_to_get(error: ImportError) -> str | None:
    """Return what an import failed for and how to install it, or None where the light installation has it too."""
    missing = (error.name or "").split(".")[0]
    return (
        f"needs {missing}, which the light installation leaves out: pip install setcrop"
        if missing in LEFT_OUT
        else None
    )
