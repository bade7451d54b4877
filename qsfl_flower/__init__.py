"""QSFL-Flower: private, robust, quantum-safe federated learning, as an extension of Flower."""

__version__ = "0.1.0"
