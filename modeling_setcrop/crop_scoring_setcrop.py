"""The scoring head: the human score of any box, from the encoder's memory of the picture."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_setcrop import SetCropConfig

# Where a crop is looked at, along each axis: `_INSIDE` points spread over the crop, and on either side of it one point
# just across the edge (what the crop cuts) and one in the middle of the strip it throws away.
_INSIDE = 6
_ACROSS_EDGE = 0.06
_CHANNELS = 16
_CHUNK = 2048
# The middle of the 1..5 scale of human scores, so that training starts near the labels' mean.
_MIDDLE_SCORE = 3.0


class SetCropScorer(nn.Module):
    """Predicts scores of boxes by sampling features where the crop is and where it is not.

    Every crop warps one grid of points: points inside it, points just outside each edge, and points in the strips
    that it throws away. That is the region-of-interest and region-of-discard idea of grid-anchor cropping (Zeng et
    al., 2019) in one sampling. The sampled features, whether each point lies in the picture, the mean of the picture
    and the crop's geometry go through a small network. A score does not depend on the other boxes asked about.
    """

    def __init__(self, config: SetCropConfig) -> None:
        super().__init__()
        width, points = config.crop_scoring_dim, _INSIDE + 4
        self.reduce = nn.Linear(config.d_model, _CHANNELS)
        self.sampled = nn.Linear(_CHANNELS * points * points, width)
        self.picture = nn.Linear(config.d_model, width)
        self.geometry = nn.Linear(11, width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, 1)
        if config.crop_choice:
            self.choice = nn.Linear(width, 1)

    def forward(
        self,
        boxes: torch.Tensor,
        memory: torch.Tensor,
        mask: torch.Tensor,
        picture_sizes: torch.Tensor,
        picture_shares: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score boxes.

        Args:
            boxes: (B, M, 4) cxcywh in [0, 1] of each picture without its padding.
            memory: (B, H, W, D) encoder memory.
            mask: (B, H, W) True where the memory is picture, False where it is padding.
            picture_sizes: (B, 2) width and height of the pictures in the model's pixels, without padding.
            picture_shares: (B, 2) share of the padded width and height that is picture.

        Returns:
            (B, M) scores on the labels' scale, and with `config.crop_choice` (B, M) logits of being the picture's best
            crop, to be compared by a softmax over the crops that there are to choose from.
        """
        features = self.reduce(memory) * mask[..., None]
        features = features.permute(0, 3, 1, 2)
        weights = mask.to(memory.dtype)[..., None]
        mean = (memory * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)
        picture = self.picture(mean)[:, None]
        chunks = [
            self._hidden(part, features, picture, picture_sizes, picture_shares) for part in boxes.split(_CHUNK, dim=1)
        ]
        hidden = torch.cat(chunks, dim=1)
        choice = self.choice(hidden)[..., 0] if hasattr(self, "choice") else None
        return _MIDDLE_SCORE + self.score(hidden)[..., 0], choice

    def _hidden(
        self,
        boxes: torch.Tensor,
        features: torch.Tensor,
        picture: torch.Tensor,
        picture_sizes: torch.Tensor,
        picture_shares: torch.Tensor,
    ) -> torch.Tensor:
        batch, count, _ = boxes.shape
        x = _grid_lines(boxes[..., 0], boxes[..., 2])
        y = _grid_lines(boxes[..., 1], boxes[..., 3])
        points = x.shape[-1]
        # grid_sample reads the padded map over [-1, 1].
        x_map = x * picture_shares[:, 0, None, None] * 2 - 1
        y_map = y * picture_shares[:, 1, None, None] * 2 - 1
        grid = torch.stack(
            [
                x_map[:, :, None, :].expand(-1, -1, points, -1),
                y_map[:, :, :, None].expand(-1, -1, -1, points),
            ],
            dim=-1,
        ).reshape(batch, count * points, points, 2)
        sampled = nn.functional.grid_sample(
            features, grid.to(features.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )
        # Points beyond the picture's edge carry no feature: that is how the head sees that nothing is cut there.
        inside_x, inside_y = (x >= 0) & (x <= 1), (y >= 0) & (y <= 1)
        inside = inside_y[:, :, :, None] & inside_x[:, :, None, :]
        sampled = sampled.reshape(batch, _CHANNELS, count, points, points) * inside[:, None]
        sampled = sampled.permute(0, 2, 1, 3, 4).flatten(2)
        hidden = self.sampled(sampled) + self.geometry(_geometry(boxes, picture_sizes)) + picture
        hidden = self.dropout(nn.functional.gelu(hidden))
        return nn.functional.gelu(self.hidden(hidden)) + hidden


def _grid_lines(centre: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Positions (B, M, `_INSIDE` + 4) of the warped grid along one axis, in picture units."""
    steps = (torch.arange(_INSIDE, device=centre.device, dtype=centre.dtype) + 0.5) / _INSIDE
    low, high = centre - size / 2, centre + size / 2
    inside = low[..., None] + size[..., None] * steps
    outside = [low / 2, low - _ACROSS_EDGE, high + _ACROSS_EDGE, (1 + high) / 2]
    return torch.cat([inside, torch.stack(outside, dim=-1)], dim=-1)


def _geometry(boxes: torch.Tensor, picture_sizes: torch.Tensor) -> torch.Tensor:
    """(B, M, 11): edges, centre, size, area, and the log aspect ratios of crop and picture."""
    cx, cy, w, h = boxes.clamp(min=1e-4).unbind(-1)
    picture_ratio = (picture_sizes[:, 0] / picture_sizes[:, 1]).log()[:, None].expand_as(cx)
    edges = [cx - w / 2, cy - h / 2, 1 - cx - w / 2, 1 - cy - h / 2]
    return torch.stack([*edges, cx, cy, w, h, w * h, (w / h).log() + picture_ratio, picture_ratio], dim=-1)
