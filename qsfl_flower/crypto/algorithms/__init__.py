"""KEMs and signature schemes by name, from several providers behind two small interfaces."""

from qsfl_flower.crypto.algorithms.interface import (
    Encapsulation,
    Kem,
    KemFunctions,
    KeyPair,
    Signature,
    SignatureFunctions,
)
from qsfl_flower.crypto.algorithms.registry import (
    find_kem,
    find_signature,
    kem_names,
    register_kem,
    register_signature,
    signature_names,
)

__all__ = [
    "Encapsulation",
    "Kem",
    "KemFunctions",
    "KeyPair",
    "Signature",
    "SignatureFunctions",
    "find_kem",
    "find_signature",
    "kem_names",
    "register_kem",
    "register_signature",
    "signature_names",
]
