"""QSFL-Flower: private, robust, quantum-safe federated learning, as an extension of Flower."""

from qsfl_flower import moved

__version__ = "0.1.0"

moved.install()
