"""Fewer bytes: what of a vector is sent, in how many bits, and what happens to the rest.

Plain arrays and bytes in and out; nothing here knows Flower, torch, or the network.
"""

from qsfl_flower.mechanisms.compression.core.feedback import Memory
from qsfl_flower.mechanisms.compression.core.mask import Mask
from qsfl_flower.mechanisms.compression.core.record import decode_record, encode_record
from qsfl_flower.mechanisms.compression.core.scheme import Scheme, derive_seed
from qsfl_flower.mechanisms.compression.core.select import above, keep_count, random_k, top_k
from qsfl_flower.mechanisms.compression.core.values import FORMATS, decode_values, encode_values

__all__ = [
    "FORMATS",
    "Mask",
    "Memory",
    "Scheme",
    "above",
    "decode_record",
    "decode_values",
    "derive_seed",
    "encode_record",
    "encode_values",
    "keep_count",
    "random_k",
    "top_k",
]
