"""What makes runs repeat themselves: how far it goes, and where it is refused."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from qsfl_flower.crypto.algorithms import find_kem, find_signature
from qsfl_flower.crypto.hybrid import HybridKey, decapsulate, encapsulate
from qsfl_flower.crypto.sources import random_below, random_bytes, unix_time
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.testing import fixed

PACKAGE = Path(__file__).parents[2] / "qsfl_flower"


def drawn():
    key = HybridKey.generate("ml-kem-768")
    ciphertext, root = encapsulate(key.public, b"context")
    assert decapsulate(key, ciphertext, b"context").reveal() == root.reveal()
    scheme = find_signature("ml-dsa-65+ed25519")
    pair = scheme.keygen()
    signature = scheme.sign(pair.secret, b"message")
    assert scheme.verify(pair.public, b"message", signature)
    assert not scheme.verify(pair.public, b"other", signature)
    noise = Keystream.secure().words(4).tolist()
    return key.public, ciphertext, root.reveal(), pair.public, signature, noise, unix_time()


def test_one_seed_repeats_keys_noise_and_time_and_another_does_not():
    with fixed(1):
        first = drawn()
    with fixed(1):
        second = drawn()
    with fixed(2):
        other = drawn()
    assert first == second
    assert all(a != b for a, b in zip(first[:-1], other[:-1], strict=True))


def test_bytes_of_one_use_do_not_depend_on_those_of_others():
    with fixed():
        alone = random_bytes(8, "a")
    with fixed():
        random_bytes(8, "b")
        assert random_bytes(8, "a") == alone
        assert random_bytes(8, "a") != alone


def test_afterwards_everything_is_fresh_again():
    with fixed():
        find_kem("ml-kem-768").keygen()
    assert find_kem("ml-kem-768").functions.keygen.__qualname__.startswith("_cryptography_kem")
    assert drawn()[:-1] != drawn()[:-1]


def test_integers_are_uniform_below_their_bound():
    counts = [0] * 5
    for _ in range(5000):
        counts[random_below(5, "test")] += 1
    assert min(counts) > 1000 - 6 * 28  # six standard deviations: fails once in 1e8 runs
    assert random_below(1, "test") == 0


def test_outside_pytest_it_is_refused_whatever_the_environment_says():
    code = "from qsfl_flower.testing import fixed\nwith fixed(): pass"
    environment = {**os.environ, "PYTEST_CURRENT_TEST": "x", "PYTEST_VERSION": "9"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "refused outside pytest" in done.stderr


def test_only_one_module_takes_randomness_or_the_time_of_day_from_outside():
    """And only the kit for tests reaches for its two sources, or for `fixed`."""
    takes, reaches = set(), set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or ""
                names |= {module, *(f"{module}.{a.name}".strip(".") for a in node.names)}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names.add(f"{node.value.id}.{node.attr}")
        if names & {
            "secrets", "uuid", "os.urandom", "os.getrandom", "random.SystemRandom", "time.time",
        }:  # fmt: skip
            takes.add(place)
        seam = {"sources._source", "sources._clock", "qsfl_flower.testing.seam.fixed"}
        if names & (seam | {"qsfl_flower.testing.fixed"}):
            reaches.add(place)
    assert takes == {"crypto/sources.py"}
    assert reaches == {"testing/__init__.py"}
