"""The mathematics of questions about tables, without Flower: NumPy in, NumPy out."""
