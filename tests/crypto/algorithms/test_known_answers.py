"""Known answers for ML-KEM and ML-DSA.

The vectors are those of the reference implementations of FIPS 203 and FIPS 204 that the package
``cryptography-vectors`` ships (seeds and expected keys, ciphertexts, secrets, signatures); they are
read from the installed test dependency and are not part of this repository.

Not covered, because no provider exposes the randomness: encapsulation and signing with given coins.
Both are covered indirectly: what a provider encapsulates or signs, the other one, which did pass,
must accept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsfl_flower.crypto.algorithms import find_kem, find_signature
from qsfl_flower.crypto.secret import Secret

vectors = pytest.importorskip(
    "cryptography_vectors", reason="needs the test dependency cryptography-vectors"
)
ROOT = Path(vectors.__file__).parent / "asymmetric"
LIMIT = 100  # cases per parameter set; the ML-KEM files hold 1000


def cases(path: str) -> Iterator[dict[str, str]]:
    case: dict[str, str] = {}
    with (ROOT / path).open() as lines:
        for line in lines:
            name, _, value = line.strip().partition(" = ")
            if name == "count" and case:
                yield case
                case = {}
            if name:
                case[name] = value
    yield case


def kem_cases(level: int) -> list[dict[str, bytes]]:
    found = itertools.islice(cases(f"MLKEM/kat_MLKEM_{level}.rsp"), LIMIT)
    return [{k: bytes.fromhex(v) for k, v in case.items() if k != "count"} for case in found]


def signature_cases(level: int) -> list[dict[str, bytes]]:
    found = cases(f"MLDSA/kat_MLDSA_{level}_det_pure.rsp")
    return [
        {k: bytes.fromhex(v) for k, v in case.items() if k not in ("count", "mlen", "smlen")}
        for case in found
    ]


@pytest.mark.parametrize("level", [512, 768, 1024])
def test_decapsulation(level: int) -> None:
    kem = find_kem(f"ml-kem-{level}", "pqcrypto")
    known = kem_cases(level)
    assert len(known) == LIMIT
    for case in known:
        secret = Secret(case["sk"])
        assert kem.decapsulate(secret, case["ct"]).reveal() == case["ss"]
        # bad vector: a ciphertext that does not re-encrypt gives the rejection secret
        assert kem.decapsulate(secret, case["ct_n"]).reveal() == case["ss_n"]


@pytest.mark.parametrize("level", [768, 1024])
def test_keygen_and_decapsulation_from_the_seed(level: int) -> None:
    kem = find_kem(f"ml-kem-{level}", "cryptography")
    classes = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mlkem")
    private = getattr(classes, f"MLKEM{level}PrivateKey")
    for case in kem_cases(level):
        seed = case["d"] + case["z"]
        assert private.from_seed_bytes(seed).public_key().public_bytes_raw() == case["pk"]
        assert kem.decapsulate(Secret(seed), case["ct"]).reveal() == case["ss"]
        assert kem.decapsulate(Secret(seed), case["ct_n"]).reveal() == case["ss_n"]


@pytest.mark.parametrize("level", [512, 768, 1024])
@pytest.mark.parametrize("provider", ["cryptography", "pqcrypto"])
def test_encapsulation_to_a_known_key_is_opened_by_its_secret(level: int, provider: str) -> None:
    if (level, provider) == (512, "cryptography"):
        pytest.skip("cryptography has no ML-KEM-512")
    opener = find_kem(f"ml-kem-{level}", "pqcrypto")
    for case in kem_cases(level)[:20]:
        ciphertext, shared = find_kem(f"ml-kem-{level}", provider).encapsulate(case["pk"])
        assert opener.decapsulate(Secret(case["sk"]), ciphertext) == shared


@pytest.mark.parametrize("level", [44, 65, 87])
@pytest.mark.parametrize("provider", ["cryptography", "pqcrypto"])
def test_verification(level: int, provider: str) -> None:
    scheme = find_signature(f"ml-dsa-{level}", provider)
    known = signature_cases(level)
    assert len(known) == 100
    for case in known:
        message, signature = case["msg"], case["sm"][: scheme.signature_size]
        assert case["sm"] == signature + message
        assert scheme.verify(case["pk"], message, signature, case["ctx"])
        # bad vectors: message, context, signature and key altered
        assert not scheme.verify(case["pk"], message + b"\0", signature, case["ctx"])
        assert not scheme.verify(case["pk"], message, signature, case["ctx"] + b"\0")
        assert not scheme.verify(case["pk"], message, signature[:-1] + b"\xff", case["ctx"])
        altered = case["pk"][:-1] + bytes([case["pk"][-1] ^ 1])
        assert not scheme.verify(altered, message, signature, case["ctx"])


@pytest.mark.parametrize("level", [44, 65, 87])
def test_keygen_from_the_seed(level: int) -> None:
    classes = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    private = getattr(classes, f"MLDSA{level}PrivateKey")
    for case in signature_cases(level):
        assert private.from_seed_bytes(case["xi"]).public_key().public_bytes_raw() == case["pk"]


@pytest.mark.parametrize("level", [44, 65, 87])
@pytest.mark.parametrize(("provider", "secret"), [("cryptography", "xi"), ("pqcrypto", "sk")])
def test_signing_with_a_known_key_verifies_under_the_known_public_key(
    level: int, provider: str, secret: str
) -> None:
    scheme = find_signature(f"ml-dsa-{level}", provider)
    for case in signature_cases(level)[:8]:
        signature = scheme.sign(Secret(case[secret]), case["msg"], case["ctx"])
        for verifier in ("cryptography", "pqcrypto"):
            other = find_signature(f"ml-dsa-{level}", verifier)
            assert other.verify(case["pk"], case["msg"], signature, case["ctx"])
