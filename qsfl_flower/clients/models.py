"""Models by name, built from a seed, and their arrays in ``state_dict`` order.

Group norm is the default: batch norm's running statistics leak data outside differential privacy,
are not meaningful averaged over clients, and Opacus refuses it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.roles import BUFFER, FROZEN, LOCAL, TIED

ModelFactory = Callable[..., nn.Module]
"""Takes (input_shape, num_classes, **options) and returns a module that maps a float32 batch
(N, *input_shape) to logits (N, num_classes)."""


def linear(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return logistic regression: few parameters, hence little noise under privacy."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def mlp(input_shape: Sequence[int], num_classes: int, hidden: int = 128) -> nn.Module:
    """Return a perceptron with one hidden layer, for examples of any shape."""
    size = int(np.prod(input_shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )


def mnist_cnn(
    input_shape: Sequence[int], num_classes: int, norm: str = "none", dropout: float = 0.0
) -> nn.Module:
    """Return two convolutions and two dense layers (46,730 parameters for 1 x 28 x 28, 10 classes).

    Parameters
    ----------
    input_shape : sequence of int
        (channels, height, width), at least 16 x 16 pixels.
    num_classes : int
        Number of logits.
    norm : {"none", "group", "batch"}
        Normalization after each convolution.
    dropout : float
        Share of features dropped before the last layer, 0 <= dropout < 1.
    """
    channels, height, width = _picture("mnist-cnn", input_shape, 16)
    features = 32 * ((height - 12) // 4) * ((width - 12) // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5),
        nn.MaxPool2d(2),
        _norm(norm, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5),
        nn.MaxPool2d(2),
        _norm(norm, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 64),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(64, num_classes),
    ).to(memory_format=torch.channels_last)


def cifar_cnn(
    input_shape: Sequence[int], num_classes: int, norm: str = "group", dropout: float = 0.0
) -> nn.Module:
    """Return three convolutions and two dense layers for colour pictures.

    151,842 parameters for 3 x 32 x 32 and 10 classes. Pooling comes before normalization, which
    costs a quarter as much there.

    Parameters
    ----------
    input_shape : sequence of int
        (channels, height, width), at least 16 x 16 pixels.
    num_classes : int
        Number of logits.
    norm : {"none", "group", "batch"}
        Normalization after each convolution.
    dropout : float
        Share of features dropped before the dense layers, 0 <= dropout < 1.
    """
    channels, height, width = _picture("cifar-cnn", input_shape, 16)
    widths = (24, 48, 96)
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=norm == "none"),
            nn.MaxPool2d(2),
            _norm(norm, after),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(widths[-1] * (height // 8) * (width // 8), 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    ).to(memory_format=torch.channels_last)


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=norm == "none"),
            _norm(norm, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=norm == "none"),
            _norm(norm, after),
        )
        same = stride == 1 and before == after
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=norm == "none"), _norm(norm, after)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both ways, rectified."""
        return functional.relu(self.path(x) + self.shortcut(x))


def resnet18(
    input_shape: Sequence[int], num_classes: int, norm: str = "group", width: int = 64
) -> nn.Module:
    """Return ResNet-18 with group norm, in the version for small pictures.

    11,173,962 parameters for 3 x 32 x 32 and 10 classes: a 3 x 3 convolution without pooling at the
    start, as usual for CIFAR.

    Parameters
    ----------
    input_shape : sequence of int
        (channels, height, width), at least 16 x 16 pixels.
    num_classes : int
        Number of logits.
    norm : {"none", "group", "batch"}
        Normalization after each convolution; group norm mixes no examples, as privacy needs.
    width : int
        Channels of the first stage, a multiple of 8.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2016.
    arXiv:1512.03385.
    Y. Wu, K. He, "Group normalization", 2018. arXiv:1803.08494.
    """
    channels, _, _ = _picture("resnet18", input_shape, 16)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none"),
        _norm(norm, width),
        nn.ReLU(),
    ]
    before = width
    for stage in range(4):
        for block in range(2):
            after, stride = width << stage, 2 if stage and not block else 1
            layers.append(_Block(before, after, stride, norm))
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


MODELS: dict[str, ModelFactory] = {
    "linear": linear,
    "mlp": mlp,
    "mnist-cnn": mnist_cnn,
    "cifar-cnn": cifar_cnn,
    "resnet18": resnet18,
}
"""Built-in models; any other is given as ``package.module:factory``."""


def build_model(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model whose first weights depend on the seed alone.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`, or ``"package.module:factory"`` with a :data:`ModelFactory`.
    input_shape : sequence of int
        Shape of one example.
    num_classes : int
        Number of logits.
    seed : int
        Same seed, same weights; torch's own random state is left as it was.
    options : mapping, optional
        Keyword arguments for the factory.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode.

    Raises
    ------
    ConfigError
        If the name is unknown, cannot be imported, or does not fit shape, classes or options.
    """
    factory = find_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = factory(tuple(input_shape), num_classes, **(options or {}))
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"model {name!r} cannot be built for examples of shape {tuple(input_shape)}, "
                f"{num_classes} classes and options {dict(options or {})}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} returned {type(model).__name__}, not a torch.nn.Module")
    _check_output(name, model, input_shape, num_classes)
    return model


def get_arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of all parameters and buffers, in ``state_dict`` order."""
    return {key: value.numpy(force=True).copy() for key, value in model.state_dict().items()}


def arrays_of(model: nn.Module, layers: Sequence[str], setting: str = "layers") -> set[str]:
    """Return the names of the arrays of some layers.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    layers : Sequence[str]
        Each is the place of a layer (``"body.norm"``), the class of layers (``"BatchNorm2d"``), or
        the name of one array.
    setting : str
        Where they were written, for the error.

    Raises
    ------
    ConfigError
        If the model has nothing of a name.
    """
    if not layers:
        return set()
    found: dict[str, set[str]] = {name: {name} for name in model.state_dict()}
    for place, module in model.named_modules():
        arrays = {f"{place}.{name}" if place else name for name in module.state_dict()}
        for name in (place, type(module).__name__) if place and arrays else ():
            found[name] = found.get(name, set()) | arrays
    for name in layers:
        if name not in found:
            close = difflib.get_close_matches(name, found, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{setting}: the model has no layer, class of layers or array {name!r:.80}{hint}; "
                f"it has {', '.join(list(found)[:20])}{', ...' if len(found) > 20 else ''}"
            )
    return {array for name in layers for array in found[name]}


def freeze(model: nn.Module, layers: Sequence[str], setting: str = "layers") -> None:
    """Let layers keep their weights; see `arrays_of` for the names.

    Raises
    ------
    ConfigError
        If the model has nothing of a name.
    """
    frozen = arrays_of(model, layers, setting)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(False)


def roles_of(
    model: nn.Module | Any,
    *,
    local: Sequence[type[nn.Module] | str] = (),
    numbered: bool = False,
) -> dict[str, str]:
    """Return what becomes of the arrays of a model that are not simply trained.

    Parameters without gradient are frozen, floats in buffers are averaged, and arrays that share
    their storage are one. Give the result to a strategy as ``roles=``.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
        As the clients train it: freeze its layers first.
    local : Sequence of type or str
        Parameters and buffers of these layers stay on each device: classes, or names as `arrays_of`
        takes them. FedBN is ``local=(nn.BatchNorm1d, nn.BatchNorm2d)``. Of torch modules only.
    numbered : bool
        Whether the app sends a list, ``[v.numpy() for v in model.state_dict().values()]``, so that
        arrays have numbers for names. The ``get_weights()`` of a Keras model are always a list.

    Returns
    -------
    dict of str to str
        Role by name of ``state_dict``, see `qsfl_flower.numerics.roles`.

    Raises
    ------
    ConfigError
        If the model has nothing of a name, or only one of two names of an array is local.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    >>> roles_of(model)["1.running_mean"]
    'buffer'
    """
    if not isinstance(model, nn.Module):
        return _roles_of_keras(model, local)
    classes = tuple(layer for layer in local if not isinstance(layer, str))
    own = arrays_of(model, [layer for layer in local if isinstance(layer, str)], "local") | {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        if isinstance(module, classes)
        for name in module.state_dict()
    }
    roles: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        known = first.setdefault(place, name) if value.numel() else name
        if known != name:
            if (name in own) != (known in own):
                raise ConfigError(f"local: {name!r} and {known!r} are one array; name both of them")
            roles[name] = TIED + known
        elif name in own:
            roles[name] = LOCAL
        elif isinstance(value, nn.Parameter):
            if not value.requires_grad:
                roles[name] = FROZEN
        elif value.is_floating_point():
            roles[name] = BUFFER
    if not numbered:
        return roles
    number = {name: str(i) for i, name in enumerate(model.state_dict())}
    targets = {TIED + name: TIED + number[name] for name in number}
    return {number[name]: targets.get(role, role) for name, role in roles.items()}


def _roles_of_keras(model: Any, local: Sequence[object]) -> dict[str, str]:
    """Return the roles of a Keras model: statistics are those of normalization, by name."""
    if local or not hasattr(model, "get_weights"):
        raise ConfigError(
            f"roles_of: {type(model).__name__} is no torch module"
            + (": local= names layers of torch modules only" if local else " and no Keras model")
        )
    trained = {id(weight) for weight in model.trainable_weights}
    return {
        str(i): BUFFER if weight.name.startswith("moving_") else FROZEN
        for i, weight in enumerate(model.weights)
        if id(weight) not in trained and "float" in str(weight.dtype)
    }


def set_arrays(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Load arrays into a model; names, shapes and dtypes must be the model's own.

    Raises
    ------
    ConfigError
        If an array is missing, unknown, or of another shape or dtype.
    """
    put_arrays(model.state_dict(), arrays)


def put_arrays(state: Mapping[str, torch.Tensor], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays into tensors of the same names, shapes and dtypes.

    Raises
    ------
    ConfigError
        If an array is missing, unknown, or of another shape or dtype.
    """
    if set(arrays) != set(state):
        missing, unknown = sorted(set(state) - set(arrays)), sorted(set(arrays) - set(state))
        raise ConfigError(f"arrays do not fit the model: missing {missing}, unknown {unknown}")
    for key, target in state.items():
        expected = target.numpy(force=True)
        array = arrays[key]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise ConfigError(
                f"array {key!r} does not fit the model: expected {expected.dtype} "
                f"{expected.shape}, found {array.dtype} {array.shape}"
            )
    with torch.no_grad():
        for key, target in state.items():
            target.copy_(torch.tensor(arrays[key]))


def find_model(name: str) -> ModelFactory:
    """Return a model's factory by its name or import path.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"unknown model {name!r}; allowed are {', '.join(MODELS)} or an import path "
            f"'package.module:factory'.{hint}"
        )
    return imported("model", name)


def imported(kind: str, path: str) -> Callable[..., Any]:
    """Return what an import path ``package.module:name`` names, for a setting of some kind.

    Raises
    ------
    ConfigError
        If it cannot be imported, or called.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"{kind} {path!r}: an import path is 'package.module:name'")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"{kind} {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{kind} {path!r} is a {type(found).__name__}, not callable")
    return found  # type: ignore[no-any-return]


def _check_output(
    name: str, model: nn.Module, input_shape: Sequence[int], num_classes: int
) -> None:
    """Run two zero examples through the model, so that a wrong shape is found before training."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *input_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"model {name!r} does not accept examples of shape {tuple(input_shape)}: {error}"
        ) from error
    finally:
        model.train(training)
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, num_classes):
        raise ConfigError(
            f"model {name!r} must map a batch of 2 to logits (2, {num_classes}), found {shape}"
        )


def _picture(name: str, input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ConfigError(
            f"model {name!r} needs pictures (channels, height, width) of at least "
            f"{smallest} x {smallest} pixels, found examples of shape {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    return channels, height, width


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    raise ConfigError(f"norm must be 'group', 'batch' or 'none', found {kind!r}")
