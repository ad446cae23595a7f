"""Networks of inverted residual blocks as a transformers backbone: MobileNetV2 and EfficientNet-Lite (0, 1, 2).

MobileNetV2 (Sandler et al., CVPR 2018) brought in the block. Its weights from TensorFlow expect pixels in 0..1
normalised with mean 127.5/255 and standard deviation 127.5/255.

EfficientNet-Lite is EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation, with ReLU6, and with a stem
and a last stage that are not scaled. Its weights expect mean 127/255 and standard deviation 128/255, see
https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py

Both were trained with TensorFlow, whose "SAME" padding and whose batch-norm epsilon of 1e-3 differ from PyTorch's;
both are kept, so that weights give the features they were trained to give.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

# What configs say that were saved when the class had the name of one of the families.
_FORMER_MODEL_TYPE = "efficientnet_lite"
_FORMER_VARIANTS = {"lite0": "efficientnet_lite0", "lite1": "efficientnet_lite1", "lite2": "efficientnet_lite2"}
# One row a stage: repeats, kernel size, stride of the first block, expansion, output channels (of Lite0).
_EFFICIENTNET_LITE = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_MOBILENET_V2 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (3, 3, 2, 6, 32),
    (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96),
    (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
# Conditional DETR replaces `BatchNorm2d` by a frozen one with this epsilon; the ImageNet converter moves the
# difference to TensorFlow's 1e-3 into the running variance, so that both give the same features.
_BATCH_NORM_EPS = 1e-5


@strict
class InvertedResidualConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of [`InvertedResidualBackbone`].

    Args:
        variant: `"mobilenet_v2"`, or `"efficientnet_lite0"`, `"efficientnet_lite1"` or `"efficientnet_lite2"` (width
            and depth coefficients 1.0/1.0, 1.0/1.1 and 1.1/1.2).
        batch_norm: `False` when batch norm is folded into biased convolutions, see [`fold_batch_norm`].
        hypercolumn: if `True`, `feature_maps` holds one map: the maps of all `out_features`, resized bilinearly to the
            grid of the finest of them and concatenated along the channels.
        detail: with `hypercolumn`, leave the first of `out_features` out of that map and put it before it, as it is.
        num_channels: channels of the input image.
        out_features: stages to return, of `"stem"`, `"stage1"` ... `"stage7"` (strides 2, 2, 4, 8, 16, 16, 32, 32);
            the last stage by default. Stages after the deepest one named are not built.
        out_indices: the same as positions in that list.

    Raises:
        ValueError: unknown stage.
        huggingface_hub.errors.StrictDataclassError: unknown variant, or a value of the wrong type.
    """

    model_type = "inverted_residual"
    coefficients: ClassVar[dict[str, tuple[float, float]]] = {
        "efficientnet_lite0": (1.0, 1.0),
        "efficientnet_lite1": (1.0, 1.1),
        "efficientnet_lite2": (1.1, 1.2),
        "mobilenet_v2": (1.0, 1.0),
    }

    variant: str = "efficientnet_lite0"
    batch_norm: bool = True
    hypercolumn: bool = False
    detail: bool = False
    num_channels: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)  # perhaps the former one
        self.variant = _FORMER_VARIANTS.get(self.variant, self.variant)
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(_EFFICIENTNET_LITE) + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As upstream's, which warns of another model type; the former one is no other."""
        fields, unused = super().get_config_dict(*args, **kwargs)
        if fields.get("model_type") == _FORMER_MODEL_TYPE:
            fields["model_type"] = cls.model_type
        return fields, unused

    def validate_variant(self) -> None:
        """Part of the validation that runs when a config is made."""
        if self.variant not in self.coefficients:
            raise ValueError(f"variant must be one of {', '.join(self.coefficients)}, not {self.variant!r}")

    @property
    def stages(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """A row a stage: repeats, kernel size, stride of the first block, expansion, channels; before scaling."""
        return _MOBILENET_V2 if self.variant == "mobilenet_v2" else _EFFICIENTNET_LITE

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the stem and of each stage."""
        width, _ = self.coefficients[self.variant]
        return [_STEM_CHANNELS, *(_scale_channels(channels, width) for *_, channels in self.stages)]

    @property
    def stage_depths(self) -> list[int]:
        """Blocks in each stage, the stem not counted."""
        _, depth = self.coefficients[self.variant]
        repeats = [stage[0] for stage in self.stages]
        return [repeats[0], *(math.ceil(depth * number) for number in repeats[1:-1]), repeats[-1]]


def _scale_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Channels times width, rounded to a multiple of `divisor` that is at most a tenth below it."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


class InvertedResidualConvolution(nn.Module):
    """Convolution with TensorFlow's "SAME" padding, batch norm, and optionally ReLU6.

    (B, C, H, W) becomes (B, C', ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
        batch_norm: bool = True,
    ):
        super().__init__()
        self.half = kernel_size // 2
        self.pointwise = kernel_size == stride == groups == 1
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=self.half if stride == 1 else 0,
            groups=groups,
            bias=not batch_norm,
        )
        self.normalization = nn.BatchNorm2d(out_channels, eps=_BATCH_NORM_EPS) if batch_norm else nn.Identity()
        self.activation = nn.ReLU6(inplace=True) if activation else nn.Identity()

    def _strided(self, hidden: torch.Tensor) -> torch.Tensor:
        """Stride 2: pads kernel // 2 at the far edges, at the near edges one less where the size is even."""
        # Written so that the sizes of an exported graph, which holds for both parities, stay simple expressions.
        near_y, near_x = (self.half - 1 + 2 * ((size + 1) // 2) - size for size in hidden.shape[-2:])
        # Symmetric padding costs no copy.
        if not torch.compiler.is_compiling() and near_y == self.half and near_x == self.half:
            conv = self.convolution
            return F.conv2d(hidden, conv.weight, conv.bias, conv.stride, self.half, groups=conv.groups)
        return self.convolution(F.pad(hidden, (near_x, self.half, near_y, self.half)))

    def _as_product(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute a 1 x 1 convolution as a matrix product.

        PyTorch picks the kernel of a 1 x 1 convolution by the number of pixels, and a compiled graph is then good for
        images on one side of that number only; a product serves every size.
        """
        convolution = self.convolution
        product = convolution.weight.flatten(1) @ hidden.flatten(2)
        if convolution.bias is not None:
            product = product + convolution.bias[:, None]
        return product.unflatten(2, hidden.shape[2:])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.pointwise and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            hidden = self._as_product(hidden)
        else:
            hidden = self.convolution(hidden) if self.convolution.stride == (1, 1) else self._strided(hidden)
        return self.activation(self.normalization(hidden))


class InvertedResidualBlock(nn.Module):
    """Inverted bottleneck: expand, depthwise convolution, project, and a residual where the shapes allow it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int, batch_norm: bool
    ):
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = (
            InvertedResidualConvolution(in_channels, inner, batch_norm=batch_norm) if expansion != 1 else nn.Identity()
        )
        self.depthwise = InvertedResidualConvolution(
            inner, inner, kernel_size, stride, groups=inner, batch_norm=batch_norm
        )
        self.project = InvertedResidualConvolution(inner, out_channels, activation=False, batch_norm=batch_norm)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.project(self.depthwise(self.expand(hidden)))
        return hidden + output if self.residual else output


class InvertedResidualPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading."""

    config: InvertedResidualConfig
    config_class = InvertedResidualConfig
    base_model_prefix = "inverted_residual"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: ClassVar[list[str]] = ["InvertedResidualBlock"]
    # There is no attention in it, so whatever a model around it is asked for will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            init.normal_(module.weight, mean=0.0, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif "BatchNorm" in type(module).__name__:  # Conditional DETR's frozen one has no common base class
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            if getattr(module, "num_batches_tracked", None) is not None:
                init.zeros_(module.num_batches_tracked)


class InvertedResidualBackbone(BackboneMixin, InvertedResidualPreTrainedModel):
    """MobileNetV2 or EfficientNet-Lite up to the deepest of `config.out_features`, without classifier.

    `forward(pixel_values (B, 3, H, W))` takes any H, W >= 1 and returns a `BackboneOutput` whose `feature_maps` are
    (B, C, ceil(H / stride), ceil(W / stride)), one per `out_features`, or a single one with `config.hypercolumn`.
    The memory format of `pixel_values` (contiguous or channels_last) is kept.
    """

    has_attentions = False

    def __init__(self, config: InvertedResidualConfig):
        super().__init__(config)
        self.num_features = config.stage_channels
        deepest = max(config.out_indices) % len(config.stage_names)
        self.stem = InvertedResidualConvolution(
            config.num_channels, _STEM_CHANNELS, kernel_size=3, stride=2, batch_norm=config.batch_norm
        )
        self.stages = nn.ModuleList()
        for index, (_, kernel_size, stride, expansion, _) in enumerate(config.stages[:deepest]):
            in_channels, out_channels = self.num_features[index : index + 2]
            self.stages.append(
                nn.Sequential(
                    *(
                        InvertedResidualBlock(
                            out_channels if block else in_channels,
                            out_channels,
                            kernel_size,
                            1 if block else stride,
                            expansion,
                            config.batch_norm,
                        )
                        for block in range(config.stage_depths[index])
                    )
                )
            )
        self.post_init()

    @property
    def channels(self) -> list[int]:
        """Channels of each map in `feature_maps`."""
        channels = [self.out_feature_channels[name] for name in self.out_features]
        first = int(self.config.detail)
        return [*channels[:first], sum(channels[first:])] if self.config.hypercolumn else channels

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BackboneOutput:
        hidden_states = [self.stem(pixel_values)]
        for stage in self.stages:
            hidden_states.append(stage(hidden_states[-1]))
        feature_maps = tuple(hidden_states[self.stage_names.index(name)] for name in self.out_features)
        if self.config.hypercolumn:
            detail, (fine, *rest) = feature_maps[: self.config.detail], feature_maps[self.config.detail :]
            resized = [F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear") for coarse in rest]
            feature_maps = (*detail, torch.cat([fine, *resized], dim=1))
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=tuple(hidden_states) if output_hidden_states else None
        )


@torch.no_grad()
def fold_batch_norm(backbone: InvertedResidualBackbone) -> InvertedResidualBackbone:
    """Return a copy whose batch norms (frozen ones too) are folded into the convolutions, for faster inference.

    It gives the features of `backbone` in evaluation mode, up to rounding, and has `config.batch_norm == False`.

    Raises:
        ValueError: `backbone` has no batch norm.
    """
    if not backbone.config.batch_norm:
        raise ValueError("the batch norm of this backbone is folded already")
    config = copy.deepcopy(backbone.config)
    config.batch_norm = False
    folded = InvertedResidualBackbone(config)
    folded.to(device=backbone.device, dtype=backbone.dtype).train(backbone.training)
    targets = dict(folded.named_modules())
    for name, source in backbone.named_modules():
        if not isinstance(source, InvertedResidualConvolution):
            continue
        norm, target = source.normalization, targets[name].convolution
        scale = norm.weight.double() / (norm.running_var.double() + _BATCH_NORM_EPS).sqrt()
        target.weight.copy_(source.convolution.weight.double() * scale[:, None, None, None])
        target.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    return folded


# Here rather than in the package, because this file also serves as custom code on the Hub, where there is no package.
AutoConfig.register(InvertedResidualConfig.model_type, InvertedResidualConfig, exist_ok=True)
AutoBackbone.register(InvertedResidualConfig, InvertedResidualBackbone, exist_ok=True)
# Not through `AutoConfig`, which takes a class under its own name only.
CONFIG_MAPPING.register(_FORMER_MODEL_TYPE, InvertedResidualConfig, exist_ok=True)
