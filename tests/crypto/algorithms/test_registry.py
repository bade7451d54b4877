from __future__ import annotations

import dataclasses
import doctest
import importlib
import sys
from pathlib import Path

import pytest

from qsfl_flower.crypto.algorithms import (
    Signature,
    find_kem,
    find_signature,
    kem_names,
    register_kem,
    register_signature,
    registry,
    signature_names,
)
from qsfl_flower.crypto.algorithms.providers import load_kem, load_signature
from qsfl_flower.crypto.algorithms.registry import PREFERENCE
from qsfl_flower.crypto.errors import AlgorithmUnavailable
from qsfl_flower.errors import CryptoError

PLUGIN = """
from qsfl_flower.crypto.algorithms import Kem, KemFunctions, register_kem

def register():
    functions = KemFunctions(
        lambda: (bytes(8), bytes(8)), lambda public: (public, public), lambda secret, _: secret
    )
    register_kem(Kem("plugin-kem", "plugin", 8, 8, 8, 8, functions))
"""


def test_auto_takes_the_preferred_provider_and_falls_to_the_next() -> None:
    assert PREFERENCE == ("cryptography", "pqcrypto")
    assert find_kem("ml-kem-768").provider == "cryptography"
    assert find_kem("ml-kem-512").provider == "pqcrypto"  # only pqcrypto has it
    assert find_signature("ml-dsa-65").provider == "cryptography"
    assert find_signature("slh-dsa-shake-128f").provider == "pqcrypto"


def test_every_required_name_is_known() -> None:
    assert {"ml-kem-512", "ml-kem-768", "ml-kem-1024", "hqc-128", "hqc-192", "hqc-256"} <= set(
        kem_names()
    )
    assert {"ml-dsa-44", "ml-dsa-65", "ml-dsa-87", "slh-dsa-sha2-256s"} <= set(signature_names())
    assert kem_names()["ml-kem-768"] == ("cryptography", "pqcrypto")


def test_every_slh_dsa_set_can_be_loaded() -> None:
    names = [name for name in signature_names() if name.startswith("slh-dsa")]
    assert len(names) == 12
    for name in names:
        assert find_signature(name).signature_size > 7000


def test_secret_key_size_selects_the_provider_of_a_stored_key() -> None:
    assert find_signature("ml-dsa-65", secret_key_size=32).provider == "cryptography"
    assert find_signature("ml-dsa-65", secret_key_size=4032).provider == "pqcrypto"
    with pytest.raises(AlgorithmUnavailable, match="secret keys of 31 bytes"):
        find_signature("ml-dsa-65", secret_key_size=31)


@pytest.mark.parametrize(
    ("name", "provider", "message"),
    [
        ("kyber", "auto", "unknown KEM 'kyber': known are hqc-128"),
        ("ml-kem-512", "cryptography", "use 'auto' or one of pqcrypto"),
        ("ml-kem-768", "nobody", "use 'auto' or one of cryptography, pqcrypto"),
    ],
)
def test_what_cannot_be_found_is_named(name: str, provider: str, message: str) -> None:
    with pytest.raises(AlgorithmUnavailable, match=message):
        find_kem(name, provider)


def test_missing_provider_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    for provider in PREFERENCE:
        with pytest.raises(AlgorithmUnavailable, match=r"install 'pqcrypto>=1\.0,<2'"):
            load_kem("ml-kem-768", provider)
        with pytest.raises(AlgorithmUnavailable, match="install"):
            load_signature("ml-dsa-65", provider)


def test_registered_algorithm_is_found_by_name_and_never_replaces_another() -> None:
    mine = dataclasses.replace(find_signature("ml-dsa-44"), name="my-signature", provider="mine")
    register_signature(mine)
    assert find_signature("my-signature") is mine
    assert signature_names()["my-signature"] == ("mine",)
    with pytest.raises(CryptoError, match="already registered"):
        register_signature(mine)
    with pytest.raises(CryptoError, match="provider name 'cryptography' is reserved"):
        register_signature(dataclasses.replace(mine, provider="cryptography"))
    with pytest.raises(CryptoError, match="provider name 'auto' is reserved"):
        register_kem(dataclasses.replace(find_kem("ml-kem-768"), provider="auto"))
    other: Signature = dataclasses.replace(mine, name="ml-dsa-44")
    register_signature(other)
    assert find_signature("ml-dsa-44") is not other  # a built-in provider is preferred
    assert find_signature("ml-dsa-44", "mine") is other


def test_entry_point_adds_an_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qsfl_test_plugin.py").write_text(PLUGIN)
    info = tmp_path / "qsfl_test_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qsfl-test-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qsfl_flower.algorithms]\nplugin = qsfl_test_plugin:register\n"
    )
    with pytest.raises(AlgorithmUnavailable):
        find_kem("plugin-kem")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    kem = find_kem("plugin-kem")
    public, secret = kem.keygen()
    assert kem.decapsulate(secret, kem.encapsulate(public).ciphertext).reveal() == bytes(8)
    assert kem_names()["plugin-kem"] == ("plugin",)


def test_failing_entry_point_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "qsfl_broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qsfl-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qsfl_flower.algorithms]\nbad = not_there:register\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    with pytest.raises(CryptoError, match="entry point 'bad'"):
        kem_names()


def test_documented_example() -> None:
    failures, examples = doctest.testmod(registry)
    assert (failures, examples) == (0, 6)
