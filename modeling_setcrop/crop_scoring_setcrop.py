"""The scoring head: the human rating of any box, from the encoder's memory of the image."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_setcrop import SetCropConfig
from .face_finding_setcrop import lost_faces

# Where a crop is looked at, along each axis: points spread over it, one just inside either edge, two at either side
# just across the edge (what the crop cuts), and one in the middle of either strip that it throws away.
_INSIDE = 6
_AT_EDGES = (-0.02, 0.03, 0.08)
_POINTS = _INSIDE + 2 * len(_AT_EDGES) + 2
# What every channel makes of those points, along each axis.
_MIXED = 6
_CHANNELS, _DETAIL_CHANNELS = 24, 8
_CHUNK = 2048
# The middle of the 1..5 scale of ratings, so that training starts near the labels' mean.
_MIDDLE_RATING = 3.0


class SetCropScorer(nn.Module):
    """Predict ratings of boxes by sampling features where the crop is and where it is not.

    Every crop warps one grid of points: points inside it, points on either side of each edge, and points in the strips
    that it throws away. That is the region-of-interest and region-of-discard idea of grid-anchor cropping (Zeng et
    al., 2019) in one sampling. Sampling is bilinear and the grid is a product of two axes, so each channel mixes its
    points along one axis and then along the other (a separable convolution over the warped grid). The mixed features,
    the mean of the image, the crop's geometry and whose ratings are asked for go through a small network. A rating
    does not depend on the other boxes asked about.

    Args:
        config: the model's.
        detail_channels: channels of the finer feature map that is sampled beside the memory; 0 for none.
    """

    def __init__(self, config: SetCropConfig, detail_channels: int = 0) -> None:
        super().__init__()
        width = config.crop_scoring_dim
        self.reduce = nn.Linear(config.d_model, _CHANNELS)
        self.sampling = _SeparableSampling(_CHANNELS)
        sampled = _CHANNELS * _MIXED**2
        if detail_channels:
            self.reduce_detail = nn.Conv2d(detail_channels, _DETAIL_CHANNELS, kernel_size=1)
            self.sampling_detail = _SeparableSampling(_DETAIL_CHANNELS)
            sampled += _DETAIL_CHANNELS * _MIXED**2
        self.sampled = nn.Linear(sampled, width)
        self.image = nn.Linear(config.d_model, width)
        self.geometry = nn.Linear(11, width)
        if config.rating_sources:
            self.source = nn.Embedding(len(config.rating_sources), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, 1)
        self.face_penalty = float(config.face_penalty)

    def forward(
        self,
        boxes: torch.Tensor,
        memory: torch.Tensor,
        mask: torch.Tensor,
        image_sizes: torch.Tensor,
        detail: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        faces: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rate boxes.

        Args:
            boxes: (B, M, 4) cxcywh in [0, 1] of each image without its padding.
            memory: (B, H, W, D) encoder memory.
            mask: (B, H, W) True where the memory is image, False where it is padding.
            image_sizes: (B, 2) width and height of the images in the model's pixels, without padding.
            detail: (B, C, H', W') finer features, of a model with `crop_scoring_detail`.
            source: whose ratings, an index of `config.rating_sources` or (B,) indices; needed where there are any.
            faces: (B, F, 5) of [`SetCropFaceFinder`]; a crop that loses one is rated lower by `face_penalty`.

        Returns:
            (B, M) ratings on the labels' scale.
        """
        cells = torch.stack([mask[:, 0].sum(-1), mask[:, :, 0].sum(-1)], dim=-1).to(boxes.dtype)
        weights = mask.to(memory.dtype)[..., None]
        mean = (memory * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)
        context = self.image(mean)
        if hasattr(self, "source"):
            context = context + self.source(source)
        maps = [(self.sampling, (self.reduce(memory) * weights).permute(0, 3, 1, 2), cells)]
        if detail is not None:
            # As many cells as the image alone would have; the largest of a batch is not padded.
            ones = torch.ones_like(detail[0, 0])
            finer = torch.stack([ones[0].sum(), ones[:, 0].sum()]) * image_sizes / image_sizes.amax(0)
            finer = (finer - 1e-3).ceil()
            maps.append((self.sampling_detail, self.reduce_detail(detail), finer))
        parts = [self._rate(part, maps, context[:, None], image_sizes) for part in boxes.split(_CHUNK, dim=1)]
        ratings = _MIDDLE_RATING + torch.cat(parts, dim=1)
        return ratings if faces is None else ratings - self.face_penalty * lost_faces(boxes, faces)

    def _rate(
        self,
        boxes: torch.Tensor,
        maps: list[tuple[_SeparableSampling, torch.Tensor, torch.Tensor]],
        context: torch.Tensor,
        image_sizes: torch.Tensor,
    ) -> torch.Tensor:
        x = _grid_lines(boxes[..., 0], boxes[..., 2])
        y = _grid_lines(boxes[..., 1], boxes[..., 3])
        sampled = torch.cat([sampling(features, x, y, cells) for sampling, features, cells in maps], dim=-1)
        hidden = self.sampled(sampled) + self.geometry(_geometry(boxes, image_sizes)) + context
        hidden = self.dropout(nn.functional.gelu(hidden))
        for layer in self.hidden:
            hidden = hidden + nn.functional.gelu(layer(hidden))
        return self.score(hidden)[..., 0]


class _SeparableSampling(nn.Module):
    """Sample a feature map at warped grids and mix each channel's points along x and along y."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        spread = _POINTS**-0.5
        self.across = nn.Parameter(torch.randn(channels, _MIXED, _POINTS) * spread)
        self.down = nn.Parameter(torch.randn(channels, _MIXED, _POINTS) * spread)

    def forward(self, features: torch.Tensor, x: torch.Tensor, y: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Sample.

        Args:
            features: (B, C, H, W).
            x, y: (B, M, P) places in [0, 1] of the image.
            cells: (B, 2) columns and rows of `features` that are image.

        Returns:
            (B, M, C * 36).
        """
        batch, count, _ = x.shape
        channels, height, width = features.shape[1:]
        along_x, along_y = _interpolation(x, cells[:, 0], width), _interpolation(y, cells[:, 1], height)
        # As products of few and large matrices: onnxruntime is slow at many small ones, and at einsum.
        rows = self.down.flatten(0, 1) @ along_y
        rows = _swapped(rows, channels).reshape(batch, channels, count * _MIXED, height) @ features
        points = _swapped(rows, count).flatten(2, 3) @ along_x.transpose(2, 3)
        points = _swapped(points, channels).reshape(batch, channels, count * _MIXED, _POINTS)
        return _swapped(points @ self.across.transpose(1, 2), count).flatten(2)


def _swapped(values: torch.Tensor, inner: int) -> torch.Tensor:
    """(B, N, K, L), where K is `inner` times 6, as (B, inner, N, 6, L)."""
    return values.unflatten(2, (inner, _MIXED)).transpose(1, 2)


def _interpolation(places: torch.Tensor, cells: torch.Tensor, size: int) -> torch.Tensor:
    """Weights (B, M, P, size) of linear interpolation at `places` (B, M, P) in [0, 1] of the first `cells` (B,) cells.

    A place beyond the image's edge has none: that is how the head sees that nothing is cut there.
    """
    last = (cells - 1)[:, None, None]
    position = torch.minimum((places * cells[:, None, None] - 0.5).clamp(min=0), last)
    # So far away that no cell has a share in it.
    position = torch.where((places >= 0) & (places <= 1), position, -2.0)
    steps = torch.arange(size, device=places.device, dtype=places.dtype)
    return (1 - (position[..., None] - steps).abs()).relu()


def _grid_lines(centre: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Places (B, M, 14) of the warped grid along one axis, in [0, 1] of the image."""
    of_centre, of_size, offset = torch.tensor(_grid_terms(), device=centre.device, dtype=centre.dtype)
    return centre[..., None] * of_centre + size[..., None] * of_size + offset


def _grid_terms() -> list[list[float]]:
    """Return what places (3, 14) are made of: shares of a crop's centre and of its size, and an offset."""
    inside = [(1, (step + 0.5) / _INSIDE - 0.5, 0) for step in range(_INSIDE)]
    low = [(1, -0.5, -offset) for offset in _AT_EDGES]
    high = [(1, 0.5, offset) for offset in _AT_EDGES]
    return [list(terms) for terms in zip(*inside, (0.5, -0.25, 0), *low, *high, (0.5, 0.25, 0.5), strict=True)]


def _geometry(boxes: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
    """(B, M, 11): edges, centre, size, area, and the log aspect ratios of crop and image."""
    boxes = boxes.clamp(min=1e-4)
    centre, size = boxes[..., :2], boxes[..., 2:]
    edges = [centre - size / 2, 1 - centre - size / 2]
    width, height = size[..., :1], size[..., 1:]
    image_ratio = (image_sizes[:, :1] / image_sizes[:, 1:]).log()[:, None].expand_as(width)
    return torch.cat([*edges, boxes, width * height, (width / height).log() + image_ratio, image_ratio], dim=-1)
