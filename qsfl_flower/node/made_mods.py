"""Mods that are made by a call: what happens to one that was not called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flwr.app import Message

from qsfl_flower.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def made_by_call(make: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that makes a mod, so that Flower's call of it as a mod says so."""

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_message(make.__name__, args)
        return make(*args, **kwargs)

    return made


def refuse_message(name: str, args: tuple[object, ...]) -> None:
    """Refuse a message where a mod's settings belong.

    Raises
    ------
    ConfigError
        With what to write.
    """
    if args and isinstance(args[0], Message):
        raise ConfigError(
            f"{name} makes a mod and is none itself: write {name}(...) with its parentheses in "
            "ClientApp(mods=[...])"
        )
