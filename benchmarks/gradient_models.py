"""Models of the kinds that people train with DP-SGD, small enough to differentiate one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from qsfl_flower.clients.models import cifar_cnn, mnist_cnn, resnet18

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A model, the shape of its records, and what is expected.

    Parameters
    ----------
    make : callable
        Builds the model.
    shape : tuple of int
        Of one record: floats, or token ids below `tokens`.
    refused : str or None
        Part of the refusal, or None if the gradients have to be exact.
    slow : bool
        Left out of the default tests.
    """

    make: Make
    shape: tuple[int, ...]
    refused: str | None = None
    tokens: int = 0
    labels: tuple[int, ...] = ()
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    dtype: torch.dtype = torch.float32
    slow: bool = False


class Calls(nn.Module):
    """A model with layers and a function of its own."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = forward

    def forward(self, x: Tensor) -> Any:
        """Apply the function to the model and the batch."""
        return self._function(self, x)


def dense(middle: nn.Module, first: nn.Module | None = None) -> nn.Module:
    """Return two dense layers with something in between."""
    return nn.Sequential(first or nn.Linear(12, 8), middle, nn.Linear(8, 4))


def convolutional(conv: nn.Module, *middle: nn.Module) -> nn.Module:
    """Return a convolution on 2 x 6 x 6 pictures, and a dense layer."""
    return nn.Sequential(conv, *middle, nn.Flatten(), nn.LazyLinear(4))


def built(model: nn.Module, *shape: int) -> nn.Module:
    """Give lazy layers their shapes."""
    model(torch.zeros(1, *shape))
    return model


def attention(mask: Tensor | None, **options: Any) -> nn.Module:
    """Return two-headed attention over 5 positions of 3 numbers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x)
        h = h + m.attend(h, h, h, attn_mask=mask, need_weights=False)[0]
        return m.leave(h.mean(1))

    attend = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    return Calls(forward, enter=nn.Linear(3, 8), attend=attend, leave=nn.Linear(8, 4))


def recurrent(kind: type[nn.Module], **options: Any) -> nn.Module:
    """Return a recurrent network over 5 positions of 3 numbers."""
    inner = kind(3, 6, batch_first=True, **options)
    width = 12 if options.get("bidirectional") else 6
    return Calls(lambda m, x: m.leave(m.inner(x)[0][:, -1]), inner=inner, leave=nn.Linear(width, 4))


class Block(nn.Module):
    """Causal attention and a gated layer, with RMSNorm; projections may have adapters."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], adapted: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm(width), norm(width)])
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 16, bias=False) for _ in range(2))
        self.down = nn.Linear(16, width, bias=False)
        self.adapters = nn.ModuleList()
        if adapted:
            self.requires_grad_(False)
            self.adapters.extend(
                [nn.Linear(width, 2, bias=False), nn.Linear(2, 3 * width, bias=False)]
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and the gated layer to the input."""
        h = self.norms[0](x)
        mixed = self.mix(h)
        if self.adapters:
            mixed = mixed + self.adapters[1](self.adapters[0](h))
        q, k, v = mixed.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


def language(norm: Any = nn.RMSNorm, tied: bool = False, adapted: bool = False) -> nn.Module:
    """Return a language model of two blocks over 11 tokens."""
    table, head = nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 11, bias=False)
    blocks = nn.Sequential(Block(8, norm, adapted), Block(8, norm, adapted))
    if adapted:
        table.requires_grad_(False)
    if tied:
        head.weight = table.weight
    model = Calls(
        lambda m, x: m.head(m.norm(m.blocks(m.table(x)))),
        table=table, blocks=blocks, norm=norm(8), head=head,
    )  # fmt: skip
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0, 0.1)
    return model


def next_token(outputs: Tensor, tokens: Tensor) -> Tensor:
    """Loss of the next token; padding does not count."""
    wanted = tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, -100)
    return functional.cross_entropy(outputs[:, :-1].flatten(0, 1), wanted.flatten())


def aided(outputs: Any, target: Tensor) -> Tensor:
    """Loss of GoogLeNet, which has two more outputs while it is trained."""
    return sum(  # type: ignore[return-value]
        weight * functional.cross_entropy(logits, target)
        for weight, logits in zip((1.0, 0.3, 0.3), outputs, strict=True)
    )


def grouped(model: nn.Module) -> nn.Module:
    """Put group norm in the place of batch norm."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, nn.GroupNorm(8, child.num_features))
        else:
            grouped(child)
    return model


def narrow(num_classes: int) -> nn.Module:
    """Return VGG-11 with fewer of its 129 million numbers, most of which are in one layer."""
    model = torchvision.models.vgg11(num_classes=num_classes)
    model.classifier[0], model.classifier[3] = nn.Linear(25_088, 32), nn.Linear(32, 64)
    model.classifier[6] = nn.Linear(64, num_classes)
    return model


def pruned() -> nn.Module:
    """Return a network without a third of its first weights."""
    model = dense(nn.Tanh())
    prune.l1_unstructured(model[0], "weight", 0.3)  # type: ignore[no-untyped-call,index]
    return model


def twice() -> nn.Module:
    """Return a network in which two layers have one weight."""
    a, b = nn.Linear(12, 12), nn.Linear(12, 12)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), nn.Linear(12, 4))


def saved(reentrant: bool) -> nn.Module:
    """Return a network whose middle is computed again on the way back."""
    return Calls(
        lambda m, x: m.c(checkpoint(m.b, m.a(x), use_reentrant=reentrant)),
        a=nn.Linear(12, 8), b=nn.Sequential(nn.Linear(8, 8), nn.Tanh()), c=nn.Linear(8, 4),
    )  # fmt: skip


class Average(nn.Module):
    """Keeps a running mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        """Take off the mean so far."""
        out = x - self.seen
        self.seen.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return out


_tv = torchvision.models
_norm = partial(nn.GroupNorm, 8)
_future = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
_minus = torch.zeros(5, 5).masked_fill(_future, float("-inf"))
_picture, _small, _sequence = (3, 32, 32), (2, 6, 6), (5, 3)
_text = {"shape": (9,), "tokens": 11, "labels": (9,), "loss": next_token}


def _vision(make: Callable[..., nn.Module], size: int = 32, **options: Any) -> Case:
    return Case(lambda: make(num_classes=4, **options), (3, size, size), slow=True)


CASES: dict[str, Case] = {
    "dense": Case(lambda: dense(nn.Tanh()), (12,)),
    "MNIST CNN, channels last": Case(lambda: mnist_cnn((1, 16, 16), 4), (1, 16, 16)),
    "CIFAR CNN, group norm": Case(lambda: cifar_cnn(_picture, 4), _picture),
    "ResNet-18 of the package": Case(lambda: resnet18(_picture, 4, width=8), _picture),
    "ReLU in place": Case(lambda: dense(nn.ReLU(inplace=True)), (12,)),
    "arithmetic in place": Case(
        lambda: Calls(lambda m, x: m.b(m.a(x).add_(1).mul_(2)), a=nn.Linear(12, 8),
                      b=nn.Linear(8, 4)), (12,)),
    "convolution, circular": Case(
        lambda: built(convolutional(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")),
                      *_small), _small),
    "convolution, reflecting": Case(
        lambda: built(convolutional(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")),
                      *_small), _small),
    "convolution, grouped, dilated": Case(
        lambda: built(convolutional(nn.Conv2d(2, 4, 3, padding="same", groups=2, dilation=2),
                                    nn.SiLU(inplace=True)), *_small), _small),
    "convolution, transposed": Case(
        lambda: built(convolutional(nn.ConvTranspose2d(2, 3, 2)), *_small), _small),
    "convolution 1d, instance norm": Case(
        lambda: built(nn.Sequential(nn.Conv1d(5, 4, 2), nn.InstanceNorm1d(4, affine=True),
                                    nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)), 5, 9), (5, 9)),
    "convolution 3d": Case(
        lambda: built(convolutional(nn.Conv3d(2, 3, 2)), 2, 4, 4, 4), (2, 4, 4, 4)),
    "PReLU": Case(lambda: dense(nn.PReLU(8)), (12,)),
    "scalar parameter": Case(
        lambda: Calls(lambda m, x: m.a(x) * m.t, a=nn.Linear(12, 4),
                      t=nn.Parameter(torch.tensor(1.5))), (12,)),
    "biases only": Case(
        lambda: dense(nn.Tanh(), nn.Linear(12, 8)).requires_grad_(False).apply(
            lambda m: m.bias.requires_grad_() if isinstance(m, nn.Linear) else None), (12,)),
    "LSTM": Case(lambda: recurrent(nn.LSTM), _sequence),
    "GRU, two layers, dropout": Case(
        lambda: recurrent(nn.GRU, num_layers=2, dropout=0.2), _sequence),
    "RNN, both directions": Case(lambda: recurrent(nn.RNN, bidirectional=True), _sequence),
    "attention": Case(lambda: attention(None), _sequence),
    "attention, dropout": Case(lambda: attention(None, dropout=0.2), _sequence),
    "attention, boolean mask": Case(lambda: attention(_future), _sequence),
    "attention, mask of -inf": Case(lambda: attention(_minus.double()), _sequence,
                                    dtype=torch.float64),
    "transformer encoder": Case(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, norm_first=True), nn.Flatten(), nn.Linear(40, 4)),
        _sequence),
    "embedding, padding": Case(
        lambda: nn.Sequential(nn.Embedding(11, 4, padding_idx=0), nn.Flatten(),
                              nn.Linear(36, 4)), (9,), tokens=11),
    "bag of embeddings": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(11, 4), nn.Linear(4, 4)), (9,), tokens=11),
    "language model, RMSNorm": Case(language, **_text),
    "language model, tied": Case(lambda: language(nn.LayerNorm, tied=True), **_text),
    "language model, LoRA": Case(lambda: language(adapted=True), **_text),
    "a weight in two layers": Case(twice, (12,)),
    "a weight in a function too": Case(
        lambda: Calls(lambda m, x: m.b(functional.linear(torch.tanh(m.a(x)), m.a.weight.T)),
                      a=nn.Linear(12, 8), b=nn.Linear(12, 4)), (12,)),
    "weight norm, old": Case(lambda: dense(nn.Tanh(), weight_norm(nn.Linear(12, 8))), (12,)),
    "weight norm, new": Case(
        lambda: dense(nn.Tanh(), parametrizations.weight_norm(nn.Linear(12, 8))), (12,)),
    "spectral norm, old": Case(lambda: dense(nn.Tanh(), spectral_norm(nn.Linear(12, 8))), (12,)),
    "spectral norm, new": Case(
        lambda: dense(nn.Tanh(), parametrizations.spectral_norm(nn.Linear(12, 8))), (12,)),
    "pruned": Case(pruned, (12,)),
    "checkpoint": Case(lambda: saved(False), (12,)),
    "checkpoint, reentrant": Case(lambda: saved(True), (12,)),
    "float64": Case(lambda: dense(nn.GELU()), (12,), dtype=torch.float64),
    "float16": Case(lambda: dense(nn.GELU()), (12,), dtype=torch.float16),
    "bfloat16, CNN": Case(
        lambda: built(convolutional(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), *_small),
        _small, dtype=torch.bfloat16),
    "ResNet-18, group norm": _vision(_tv.resnet18, norm_layer=_norm),
    "MobileNetV2, group norm": _vision(_tv.mobilenet_v2, norm_layer=_norm),
    "MobileNetV3, group norm": _vision(_tv.mobilenet_v3_small, 64, norm_layer=_norm),
    "EfficientNet-B0, group norm": _vision(_tv.efficientnet_b0, 64, norm_layer=_norm),
    "RegNetY-400MF, group norm": _vision(_tv.regnet_y_400mf, norm_layer=_norm),
    "DenseNet-121, group norm": _vision(lambda **o: grouped(_tv.densenet121(**o)), 64),
    "ShuffleNetV2, group norm": _vision(lambda **o: grouped(_tv.shufflenet_v2_x0_5(**o)), 64),
    "GoogLeNet, group norm": Case(
        lambda: grouped(_tv.googlenet(num_classes=4, init_weights=True)), (3, 48, 48),
        loss=aided, slow=True),
    "VGG-11, narrow end": _vision(narrow),
    "AlexNet": _vision(_tv.alexnet, 64),
    "SqueezeNet": _vision(_tv.squeezenet1_1, 64),
    "ConvNeXt-Tiny": _vision(_tv.convnext_tiny),
    "Swin-T": _vision(_tv.swin_t, 64),
    "Vision transformer": _vision(
        _tv.VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=4,
        hidden_dim=32, mlp_dim=64, dropout=0.1),
    "ResNet-18, batch norm": Case(
        lambda: _tv.resnet18(num_classes=4), _picture, "'bn1' (BatchNorm2d) mixes", slow=True),
    "instance norm with statistics": Case(
        lambda: built(convolutional(nn.InstanceNorm2d(2, track_running_stats=True)), *_small),
        _small, "'0' (InstanceNorm2d) writes"),
    "running mean in a buffer": Case(
        lambda: nn.Sequential(Average(), nn.Linear(12, 4)), (12,), "'0' (Average) writes"),
    "centred by a function": Case(
        lambda: nn.Sequential(Calls(lambda m, x: m.a(x) - m.a(x).mean(0).detach(),
                                    a=nn.Linear(12, 4)), nn.Softplus()), (12,),
        "'0' (Calls) mixes"),
}  # fmt: skip
