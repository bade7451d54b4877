"""Top-k of ten million parameters beside torch.topk with NumPy, and bytes of replies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.timing import alternate
from qsfl_flower.mechanisms.compression.core import (
    FORMATS,
    Memory,
    Scheme,
    decode_record,
    encode_record,
    random_k,
    top_k,
)
from qsfl_flower.numerics import Vector

NAME = "compression"
DESCRIPTION = "encode and decode of 10 M parameters at 1 %, bytes per format, against torch.topk"
RATIO = 0.01
LIMIT_MS = 500.0
"""Most that encoding and decoding may take each, on one core."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Time both ways on one thread and count bytes."""
    size = 200_000 if quick else 10_000_000
    count = int(size * RATIO)
    values = (1e-3 * np.random.default_rng(0).standard_normal(size)).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_times(values, count, quick), *_bytes(values, count)]
    finally:
        torch.set_num_threads(threads)


def _naive_encode(values: np.ndarray, count: int) -> bytes:
    tensor = torch.from_numpy(values)
    _, indices = torch.topk(tensor.abs(), count)
    return indices.to(torch.int32).numpy().tobytes() + tensor[indices].numpy().tobytes()


def _naive_decode(data: bytes, size: int) -> np.ndarray:
    half = len(data) // 2
    out = np.zeros(size, np.float32)
    out[np.frombuffer(data[:half], np.int32)] = np.frombuffer(data[half:], np.float32)
    return out


def _encode(values: np.ndarray, count: int, name: str) -> bytes:
    chosen = top_k(values, count)
    record, *_ = encode_record(values[chosen], values.size, chosen, values_format=name)
    return record


def _decode(record: bytes, size: int) -> np.ndarray:
    vector = decode_record(record, size)
    out = np.empty(size)
    vector.read(0, size, out)
    return out


def _times(values: np.ndarray, count: int, quick: bool) -> list[dict[str, Any]]:
    size, scheme = values.size, Scheme(ratio=RATIO)
    record, naive = _encode(values, count, "int8"), _naive_encode(values, count)
    delta, memory = values.astype(np.float64), Memory.empty(size)

    def with_feedback() -> Memory:
        corrected = memory.correct(delta)
        chosen = scheme.choose(corrected.residual, 1, 0)
        _, taken, sent = scheme.encode(corrected.residual[chosen], size, chosen, 0)
        return corrected.after(chosen, taken, sent)

    ways = {
        "encode": lambda: _encode(values, count, "int8"),
        "encode, naive": lambda: _naive_encode(values, count),
        "encode with feedback, float64": with_feedback,
        "random coordinates from a seed": lambda: random_k(size, count, 1),
        "decode": lambda: decode_record(record, size),
        "decode to a dense vector": lambda: _decode(record, size),
        "decode, naive": lambda: _naive_decode(naive, size),
    }
    times = alternate(ways, 2 if quick else 5)
    rows = []
    for name, time in times.items():
        row: dict[str, Any] = {"what": name, "wall_ms": time.wall, "cpu_ms": time.cpu}
        if name in ("encode", "decode"):
            peer = times[f"{name}, naive"]
            row["peer_ratio"] = peer.cpu / time.cpu
            row["ok"] = quick or (time.cpu <= LIMIT_MS and row["peer_ratio"] > 1)
        rows.append(row)
    return rows


def _bytes(values: np.ndarray, count: int) -> list[dict[str, Any]]:
    rows = []
    chosen = top_k(values, count)
    dense = 4 * values.size
    rows.append(
        {"what": "naive: int32, float32", "bytes": 8 * count, "share_of_dense": 8 * count / dense}
    )
    for name in FORMATS:
        length = {
            zstd: len(
                encode_record(values[chosen], values.size, chosen, values_format=name, zstd=zstd)[0]
            )
            for zstd in (False, True)
        }
        row: dict[str, Any] = {
            "what": f"1 % as {name}",
            "bytes": length[False],
            "share_of_dense": length[False] / dense,
            "zstd_share": length[True] / dense,
        }
        if name == "int8":
            row["ok"] = row["share_of_dense"] <= 0.01
        rows.append(row)
    assert isinstance(decode_record(_encode(values, count, "int8"), values.size), Vector)
    return rows
