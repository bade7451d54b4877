"""QSFL-Flower: private, robust, compressed, asynchronous, quantum-safe federated learning for Flower."""

__version__ = "0.1.0"
