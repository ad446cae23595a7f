"""Crops drawn on their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..image_reading import LoadedImage

# Okabe and Ito's colours, which people with any colour vision can tell apart, brightest first.
COLOURS = ("#F0E442", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF")

DRAWING_SIDE = 900
"""Least short side in pixels of a drawing, where the file has so many."""


def draw_crops(loaded: LoadedImage, crops: Sequence[dict[str, Any]], long_side: int = 1600) -> Image.Image:
    """Return the image with its crops outlined, numbered by rank and labelled with their scores.

    Args:
        loaded: The image.
        crops: As the pipeline returns them, boxes in pixels of the whole image; the first is drawn on top. A crop may
            have no score.
        long_side: Pixels to which a larger copy is reduced.
    """
    canvas = loaded.image.convert("RGB")
    canvas.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    if canvas is loaded.image:
        canvas = canvas.copy()
    across, down = canvas.width / loaded.size[1], canvas.height / loaded.size[0]
    line = max(2, round(max(canvas.size) / 300))
    font = ImageFont.load_default(max(10, 6 * line))
    draw = ImageDraw.Draw(canvas)
    for rank in range(len(crops), 0, -1):
        crop, colour = crops[rank - 1], COLOURS[(rank - 1) % len(COLOURS)]
        box = crop["box"]
        # Nested outlines, so that crops that share an edge can all be seen.
        inset = line * (rank - 1) if rank <= len(COLOURS) else 0
        x1, y1 = box["xmin"] * across + inset, box["ymin"] * down + inset
        x2 = max(box["xmax"] * across - 1 - inset, x1 + 1)
        y2 = max(box["ymax"] * down - 1 - inset, y1 + 1)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        text = f"{rank}  {crop['score']:.2f}" if "score" in crop else str(rank)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * line, bottom - top + 2 * line
        # Labels step down from corner to corner, clear of one another.
        label_x, label_y = x1 + line, y1 + line + (rank - 1) * height
        if label_x + width < x2 and label_y + height < y2:
            draw.rectangle((label_x, label_y, label_x + width, label_y + height), fill=colour)
            draw.text((label_x + line - left, label_y + line - top), text, fill="black", font=font)
    return canvas


def contact_sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]], height: int = 220) -> Image.Image:
    """Return captioned images in rows, all of one height.

    Args:
        rows: Captions, which may be empty, and images.
        height: Pixels of each image.
    """
    gap = max(4, height // 20)
    size = max(10, height // 14)
    font = ImageFont.load_default(size)
    strips = [[(text, _of_height(cell, height)) for text, cell in row] for row in rows]
    width = max(sum(cell.width + gap for _, cell in strip) for strip in strips) + gap
    label = round(1.5 * size)
    sheet = Image.new("RGB", (width, len(strips) * (height + label) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row, strip in enumerate(strips):
        x, y = gap, row * (height + label)
        for text, cell in strip:
            draw.text((x, y + label // 6), text, fill="black", font=font)
            sheet.paste(cell, (x, y + label))
            x += cell.width + gap
    return sheet


def image_and_crops(loaded: LoadedImage, crops: Sequence[dict[str, Any]]) -> list[tuple[str, Image.Image]]:
    """Return a contact sheet's row: the image with its crops outlined, then each crop by itself.

    Args:
        loaded: The image.
        crops: As the pipeline returns them for a list of aspect ratios.
    """
    across, down = loaded.image.width / loaded.size[1], loaded.image.height / loaded.size[0]
    row = [("", draw_crops(loaded, crops))]
    for crop in crops:
        x1, y1, x2, y2 = (crop["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
        cut = loaded.image.crop((round(x1 * across), round(y1 * down), round(x2 * across), round(y2 * down)))
        row.append((f"{crop.get('aspect_ratio', '')}  {crop['score']:.2f}".strip(), cut))
    return row


def _of_height(image: Image.Image, height: int) -> Image.Image:
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
