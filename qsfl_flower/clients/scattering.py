"""Wavelet scattering of pictures: features that no data has shaped, so they cost no privacy.

References
----------
J. Bruna, S. Mallat, "Invariant scattering convolution networks", 2013. arXiv:1203.1513.
F. Tramer, D. Boneh, "Differentially private learning needs better features (or much more data)",
2021. arXiv:2011.11660.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qsfl_flower.errors import ConfigError

SCALES = 2
ANGLES = 8
GROUPS = 27
"""Scattering channels that are normalized together."""


def scattering(pictures: Tensor, batch_size: int = 500) -> Tensor:
    """Return normalized scattering coefficients up to the second order.

    Moduli of Morlet wavelets at 2 scales and 8 angles, and those of the moduli at the coarser
    scale, averaged over 4 x 4 pixels: 81 channels per colour. Each picture is normalized by itself,
    in 27 groups of channels.

    Parameters
    ----------
    pictures : Tensor
        Shape (n, channels, height, width), height and width multiples of 4.
    batch_size : int
        Pictures transformed at a time, >= 1.

    Returns
    -------
    Tensor
        float32, shape (n, 81 * channels * height / 4 * width / 4).
    """
    if pictures.dim() != 4 or pictures.shape[2] % 4 or pictures.shape[3] % 4:
        raise ConfigError(
            "scattering needs pictures (n, channels, height, width) with sides that are multiples "
            f"of 4, found {tuple(pictures.shape)}"
        )
    count, channels, height, width = pictures.shape
    pad = 4
    size = (height + 2 * pad, width + 2 * pad)
    wavelets = _wavelets(*size)
    down, across = _average(height, pad), _average(width, pad)
    out = torch.empty(count, channels * 81 * (height // 4) * (width // 4))
    for start in range(0, count, batch_size):
        batch = pictures[start : start + batch_size].to(torch.float32)
        padded = torch.nn.functional.pad(batch, (pad, pad, pad, pad), mode="reflect")
        flat = padded.reshape(-1, 1, *size)
        spectrum = torch.fft.fft2(flat)
        first = torch.fft.ifft2(spectrum * wavelets).abs()
        fine = torch.fft.fft2(first[:, :ANGLES]).unsqueeze(2)
        second = torch.fft.ifft2(fine * wavelets[ANGLES:]).abs().flatten(1, 2)
        layers = torch.cat([flat, first, second], 1)
        smooth = down @ layers @ across.T
        normal = torch.nn.functional.group_norm(smooth.contiguous(), GROUPS)
        out[start : start + batch_size] = normal.reshape(len(batch), -1)
    return out


def _average(length: int, pad: int) -> Tensor:
    """Return weights of the average around every fourth pixel, shape (length / 4, padded)."""
    centres = torch.arange(pad + 1, pad + length, 4.0)
    pixels = torch.arange(length + 2.0 * pad)
    weights = torch.exp(-((pixels - centres[:, None]) ** 2) / (2 * (0.8 * 2**SCALES) ** 2))
    return weights / weights.sum(1, keepdim=True)


def _wavelets(height: int, width: int) -> Tensor:
    """Return the spectra of the 16 wavelets, shape (16, h, w)."""
    y, x = torch.meshgrid(
        torch.fft.fftfreq(height, 1 / height), torch.fft.fftfreq(width, 1 / width), indexing="ij"
    )
    wavelets = []
    for scale in range(SCALES):
        sigma, frequency = 0.8 * 2**scale, 0.75 * math.pi / 2**scale
        for angle in range(ANGLES):
            theta = math.pi * angle / ANGLES
            along = x * math.cos(theta) + y * math.sin(theta)
            across = -x * math.sin(theta) + y * math.cos(theta)
            envelope = torch.exp(-(along**2 + (across * 0.5) ** 2) / (2 * sigma**2))
            wave = torch.exp(1j * frequency * along)
            centred = envelope * (wave - (envelope * wave).sum() / envelope.sum())
            spectrum = torch.fft.fft2(centred)
            wavelets.append(spectrum / spectrum.abs().max())
    return torch.stack(wavelets)
