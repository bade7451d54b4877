"""Numbers and names as a reader wants to see them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

NONE = "–"

_REASONS = {
    "not-finite": "held NaN or infinite numbers",
    "too-large": "were larger than allowed",
    "not-selected": "were not selected by the robust rule",
    "bad-num-examples": "claimed an impossible number of examples",
    "malformed": "were not well-formed",
    "missing-array": "lacked arrays of the model",
    "unknown-array": "held arrays that the model does not have",
    "wrong-shape": "held arrays of the wrong shape",
    "wrong-dtype": "held arrays of the wrong number type",
    "client-error": "reported an error instead",
    "client-crashed": "ended in a crash of the client",
    "client-not-loaded": "failed because the client's app could not be loaded",
    "no-reply": "never came",
    "late-reply": "came too late",
    "cut-off": "were cut off, since enough others had come",
    "too-stale": "were made from too old a version of the model",
    "rolled-back": "were made from a version of the model that was taken back",
    "node-offline": "did not come because the node was offline",
    "unsigned": "were not signed",
    "bad-signature": "were changed after they were signed, or never signed",
    "wrong-key": "were signed with a key that is not enrolled under that name",
    "unknown": "came from a client that is not enrolled",
    "revoked": "came from a client whose keys were revoked",
    "expired": "were signed with keys whose time was over",
    "not-yet-valid": "were signed with keys whose time had not come",
    "downgraded-algorithm": "used a weaker algorithm than agreed",
    "wrong-run": "belonged to another run",
    "wrong-node": "came from another node than was asked",
    "stale-round": "answered an earlier round",
    "replay": "had been sent before",
    "not-encrypted": "came in the clear although encryption was asked for",
    "no-session": "came without a session to encrypt under",
    "second-place": "came from a client that had a place in the buffer already",
    "no-budget": "were not asked for, or not used, since the client's account has no budget left",
    "internal": "could not be read by a fault of the suite; the log has its traceback",
}


def percent(value: float | None) -> str:
    """Write a share of one, for example an accuracy: ``0.9342 -> 93.4 %``."""
    if value is None or not math.isfinite(value):
        return decimal(value)
    return f"{value * 100:.1f} %"


def decimal(value: float | None) -> str:
    """Write a number with four significant digits, whole numbers with separators."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.2e}"


def size(value: float | None) -> str:
    """Write a number of bytes with a decimal unit: ``1234567 -> 1.23 MB``."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def duration(value: float | None) -> str:
    """Write seconds: ``0.0421 -> 42 ms``, ``7.34 -> 7.3 s``, ``3700 -> 1 h 02 min``."""
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.0095 else f"{value * 1000:.2g} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(amount: float, one: str, many: str | None = None) -> str:
    """Write an amount with its noun: ``1 round``, ``2 rounds``."""
    return f"{amount:,.0f} {one if amount == 1 else many or one + 's'}"


def shorten(text: str, most: int) -> str:
    """Cut a text that is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def reason(name: str) -> str:
    """Say what happened to the updates that were rejected; an unknown reason keeps its name."""
    return _REASONS.get(name, f"were rejected as '{name}'")


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts client 10 behind client 9."""
    parts = re.split(r"(\d{1,18})", name)
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part
    ]


def some_clients(listed: Collection[str], most: int = 10) -> str:
    """Name clients in natural order, the first few of them: ``clients 2, 10 and 5 more``."""
    ordered = [shorten(name, 40) for name in sorted(listed, key=natural)]
    noun = "client" if len(ordered) == 1 else "clients"
    rest = f" and {len(ordered) - most:,} more" if len(ordered) > most else ""
    return f"{noun} {', '.join(ordered[:most])}{rest}"
