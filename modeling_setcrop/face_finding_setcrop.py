"""Faces, found in the features that the scoring head sees, so that crops that cut one are rated lower."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_setcrop import SetCropConfig
from .crop_geometry import cut_shares, cxcywh_to_xyxy

_WIDTH, _BLOCKS = 64, 3
# So many faces of an image are told, the surest.
_FACES = 8
# A face counts in full from the second certainty on, and not at all below the first; chosen on validation images.
_UNSURE, _SURE = 0.35, 0.5
# The logarithm of a face's size, in cells of the finer map, stays between these.
_SIZES = (-2.0, 4.0)
# A prior of 1 %, as focal losses need for a steady start.
_PRIOR_LOGIT = -4.595


class SetCropFaceFinder(nn.Module):
    """Find faces on the finer of the model's two feature maps, as CenterNet does (Zhou et al., 2019).

    Every cell says whether a face's middle lies in it, where exactly, and how large the face is, its hair included.

    Args:
        config: the model's.
        detail_channels: channels of the finer feature map.
    """

    def __init__(self, config: SetCropConfig, detail_channels: int) -> None:
        super().__init__()
        self.memory = nn.Conv2d(config.d_model, _WIDTH, kernel_size=1)
        self.detail = nn.Conv2d(detail_channels, _WIDTH, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.answer = nn.Conv2d(_WIDTH, 5, kernel_size=1)

    @torch.no_grad()
    def start(self, layer: nn.Conv2d) -> None:
        """Give one of the layers its start values; together they say: no faces, of four cells if there were any."""
        assert layer.bias is not None
        init.kaiming_uniform_(layer.weight, a=5**0.5)
        init.zeros_(layer.bias)
        if layer is self.answer:
            init.constant_(layer.bias[:1], _PRIOR_LOGIT)
            init.constant_(layer.bias[3:], 1.4)

    def maps(self, memory: torch.Tensor, detail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what every cell says.

        Args:
            memory: (B, H, W, D) encoder memory, without padding.
            detail: (B, C, H', W') finer features.

        Returns:
            (B, H', W') logits that a face's middle lies there, and (B, H', W', 4) its box, corners in the image's
            [0, 1].
        """
        coarse = self.memory(memory.permute(0, 3, 1, 2))
        hidden = F.interpolate(coarse, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        hidden = hidden + self.detail(detail)
        for block in self.blocks:
            hidden = block(hidden)
        logits, x, y, width, height = self.answer(hidden.relu()).unbind(1)
        # Numbered by sums, because an exported graph takes sizes for constants otherwise.
        ones = torch.ones_like(logits)
        columns, rows = ones.cumsum(2) - 0.5, ones.cumsum(1) - 0.5
        across, down = ones.sum(2, keepdim=True), ones.sum(1, keepdim=True)
        x, y = (columns + x) / across, (rows + y) / down
        width, height = width.clamp(*_SIZES).exp() / across, height.clamp(*_SIZES).exp() / down
        return logits, torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)

    def forward(self, memory: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Return the surest faces (B, 8, 5): corners and certainty, all in [0, 1], surest first."""
        logits, boxes = self.maps(memory, detail)
        certainty = logits.sigmoid()
        # Of neighbours that see the same face the surest speaks.
        peak = certainty >= F.max_pool2d(certainty[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
        certainty, order = (certainty * peak).flatten(1).topk(_FACES, dim=1)
        boxes = boxes.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 4))
        return torch.cat([boxes.clamp(0, 1), certainty[..., None]], dim=-1)


class _Block(nn.Module):
    """A depthwise and a pointwise convolution beside what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.around = nn.Conv2d(_WIDTH, _WIDTH, kernel_size=3, padding=1, groups=_WIDTH)
        self.mixed = nn.Conv2d(_WIDTH, _WIDTH, kernel_size=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.mixed(self.around(hidden).relu())


def lost_faces(boxes: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Return how much crops lose of the faces (B, M), in [0, 1]: the worst cut face's share, by its certainty.

    A face that loses a quarter of its area or more is lost, and one that is left outside too.

    Args:
        boxes: (B, M, 4) crops, cxcywh in [0, 1].
        faces: (B, F, 5) of [`SetCropFaceFinder`].
    """
    cut = cut_shares(faces[..., :4], cxcywh_to_xyxy(boxes))
    sure = ((faces[..., 4:] - _UNSURE) / (_SURE - _UNSURE)).clamp(0, 1)
    return (cut * sure).amax(1)
