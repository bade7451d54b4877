"""Write what every configuration gives: ``python -m tests.golden [NAME ...]``."""

import logging
import sys
import tempfile
from pathlib import Path

import pytest  # noqa: F401 - keys and noise are fixed under pytest only

from tests.golden.runs import CONFIGS, write

logging.disable(logging.WARNING)
for name in sys.argv[1:] or CONFIGS:
    with tempfile.TemporaryDirectory() as folder:
        write(name, Path(folder))
    print(name)
