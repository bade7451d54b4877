"""Settings for tests that train."""

from __future__ import annotations

import torch

# Models here are tiny: a second thread only waits, and the bits then depend on the machine.
torch.set_num_threads(1)
