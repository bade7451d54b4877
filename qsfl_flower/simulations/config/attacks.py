"""The `attacks` section: which clients attack, when, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from qsfl_flower.mechanisms.robust.attacks import DESCRIBED
from qsfl_flower.simulations.config.base import Section
from qsfl_flower.simulations.config.described import section_of
from qsfl_flower.simulations.config.sections import Rounds


class AttackKeys(Section):
    """Keys that every attack has."""

    attack: str = Field(description="Name of the attack.")
    clients: tuple[Annotated[int, Field(ge=0, le=99_999)], ...] = Field(
        strict=False,
        min_length=1,
        description="Indices of the clients that attack, counted from 0 to clients.count - 1; "
        "those of one entry act together.",
    )
    rounds: Rounds = Field(
        default="all", description="Rounds in which they attack, counted from 1."
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys of the attack itself."""
        return self.model_dump(exclude={"attack", "clients", "rounds"})


if TYPE_CHECKING:
    AttackSpec = Any
else:
    AttackSpec = Annotated[
        Union[tuple(section_of(one, "attack", AttackKeys) for one in DESCRIBED)],  # noqa: UP007
        Field(discriminator="attack"),
    ]
