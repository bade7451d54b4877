"""The server's half."""

from __future__ import annotations

from flwr.app import ArrayRecord

from qsfl_flower.numerics import Vector
from qsfl_flower.rounds.context import RoundContext, State, Steps
from qsfl_flower.rounds.stages import DecodeStage
from qsfl_flower.wire import ClientPhase, PlanItem, from_blob
from sign_updates import SignOptions, decode


class Sign(DecodeStage):
    """Read signs."""

    name = "sign"
    encoding = "sign"

    def __init__(self, options: SignOptions | None = None, *, seed: int = 0) -> None:
        del seed
        self.options = options or SignOptions()

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        return [(ClientPhase.ENCODE, PlanItem("sign", self.options.to_dict()))]

    def upload(self, size: int, clients: int) -> int:
        return 8 + -(-size // 8)

    def decode(self, payload: ArrayRecord, context: RoundContext) -> Vector:
        return Vector.dense(decode(from_blob(payload, "signs"), context.layout.size, self.options))
