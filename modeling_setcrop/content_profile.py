"""What cutting costs: where along each axis a picture holds what people miss, read from the scores of larger crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .crop_geometry import xyxy_to_cxcywh

# The crops that people have rated, and that the scoring head therefore knows: at least this share of the picture, and
# width over height in these bounds (Zeng et al., "Grid Anchor based Image Cropping", 2019, section 3.1).
RATED_AREA, RATED_RATIOS = 0.5, (0.5, 2.0)
# Cells along each axis, as many as that grid has.
_CELLS = 12
# Neighbouring cells cost about the same: the middle of the picture is in nearly every rated crop, so the scores alone
# say little of it.
_SMOOTHNESS, _RIDGE = 0.02, 1e-6
# Cells that cost much count for more than many that cost a little: what is cut first is where a subject begins.
_FOCUS_POWER = 3


@dataclass(frozen=True)
class ContentProfile:
    """The scores of a picture's larger crops, explained by what each of them cuts away.

    A crop's score is taken for `level` less the cost of every cell, along x and along y, that lies outside it. Fitted
    to the crops that people's ratings cover, where it explains some 95 % of the variance of a trained head's scores,
    the sum also orders crops far smaller or narrower than these: those that keep most of what is costly to lose.

    Attributes:
        across: (12,) cost of cutting each twelfth of the width, from the left, at least 0.
        down: (12,) cost of cutting each twelfth of the height, from the top, at least 0.
        level: Score with nothing cut.
    """

    across: Tensor
    down: Tensor
    level: float

    @classmethod
    def measure(cls, score: Callable[[Tensor], Tensor], picture_size: tuple[int, int]) -> ContentProfile:
        """Fit a profile, by least squares, to the scores of all crops on a grid that people's ratings cover.

        Args:
            score: Maps boxes (M, 4) cxcywh in 0..1 to scores (M,).
            picture_size: Height and width in pixels.
        """
        boxes = _rated_crops(picture_size)
        scores = score(xyxy_to_cxcywh(boxes)).to(boxes)
        cut = torch.cat([-_cut_shares(boxes[:, 0::2]), -_cut_shares(boxes[:, 1::2]), boxes.new_ones(len(boxes), 1)], 1)
        rough = torch.diff(torch.eye(_CELLS, dtype=boxes.dtype), dim=0)
        rough = torch.block_diag(rough, rough, boxes.new_zeros(0, 1))
        normal = cut.T @ cut / len(boxes) + _SMOOTHNESS * rough.T @ rough
        normal += _RIDGE * torch.eye(len(normal), dtype=boxes.dtype)
        costs = torch.linalg.solve(normal, cut.T @ scores / len(boxes))
        across, down = costs[:-1].clamp(min=0).split(_CELLS)
        return cls(across, down, float(costs[-1]))

    def __call__(self, boxes: Tensor) -> Tensor:
        """Scores (M,) of boxes (M, 4), corner format in 0..1, by what they cut."""
        return self.level - _cut_shares(boxes[:, 0::2]) @ self.across - _cut_shares(boxes[:, 1::2]) @ self.down

    @property
    def focus(self) -> tuple[float, float]:
        """The point (x, y), in 0..1, about which the costs lie; the middle of a picture where there are none."""
        return _focus(self.across), _focus(self.down)


def familiarity(boxes: Tensor, picture_size: tuple[int, int]) -> Tensor:
    """How far (M,) boxes (M, 4), corner format in 0..1, are like the crops that people have rated.

    1 for those within the bounds of area and aspect ratio, falling to 0 for those that miss them by half.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-9)
    ratio = size[:, 0] / size[:, 1] * (picture_size[1] / picture_size[0])
    low, high = _ratio_bounds(picture_size)
    beyond = torch.stack([RATED_AREA / size.prod(dim=-1), low / ratio, ratio / high]).amax(dim=0)
    return (1 - beyond.log() / torch.tensor(1.5).log()).clamp(0, 1)


def _ratio_bounds(picture_size: tuple[int, int]) -> tuple[float, float]:
    """Least and largest aspect ratio of rated crops; those of a panorama may be as long as itself."""
    own = picture_size[1] / picture_size[0]
    return min(RATED_RATIOS[0], own), max(RATED_RATIOS[1], own)


def _rated_crops(picture_size: tuple[int, int]) -> Tensor:
    """All boxes (M, 4), corner format in 0..1, between the grid's lines that are like those people have rated."""
    spans = torch.combinations(torch.arange(_CELLS + 1, dtype=torch.float64) / _CELLS, 2)
    x, y = (index.flatten() for index in torch.meshgrid(*[torch.arange(len(spans))] * 2, indexing="ij"))
    boxes = torch.stack([spans[x, 0], spans[y, 0], spans[x, 1], spans[y, 1]], dim=-1)
    return boxes[familiarity(boxes, picture_size) > 1 - 1e-6]


def _cut_shares(spans: Tensor) -> Tensor:
    """What share (M, 12) of each cell of an axis spans (M, 2), start and end in 0..1, leave out."""
    edges = torch.arange(_CELLS + 1, dtype=spans.dtype) / _CELLS
    inside = torch.minimum(spans[:, 1:], edges[1:]) - torch.maximum(spans[:, :1], edges[:-1])
    return 1 - (inside * _CELLS).clamp(0, 1)


def _focus(costs: Tensor) -> float:
    weights = (costs / costs.amax().clamp(min=1e-12)) ** _FOCUS_POWER
    if float(weights.sum()) == 0:
        return 0.5
    centres = (torch.arange(_CELLS, dtype=costs.dtype) + 0.5) / _CELLS
    return float(weights @ centres / weights.sum())
