"""Made-up pictures: surfaces that hide one another ("dead leaves"), and noise with the spectrum of natural images.

Dead leaves have what networks trained on images look for: edges, corners, flat areas and occlusion at all scales.
Lee, Mumford and Huang, Occlusion Models for Natural Images, 2001; Baradad et al., Learning to See by Looking at Noise,
2021 (arXiv 2106.05963), who train networks on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

FEWEST, MOST = 5, 60  # surfaces in one picture
COMMON = (
    0.8  # the share of a surface's variance that all its channels have in common: most things are greyish
)
TEXTURE = 0.15
SLOPES = (0.3, 2.2)  # natural images have amplitudes of about 1 / frequency


def dead_leaves(count: int, shape: tuple[int, int, int], random: np.random.Generator) -> Floats:
    """Pictures ``[count, *shape]`` of mean 0 and deviation 1; ``shape`` is channels, height, width."""
    pictures = _spectrum(count, shape, np.full(count, 1.5), random)
    for picture in pictures:
        _cover(picture, random)
    strength = random.uniform(0, 2 * TEXTURE, (count, 1, 1, 1))
    return _standard(pictures + strength * _spectrum(count, shape, np.ones(count), random))


def coloured_noise(count: int, shape: tuple[int, int, int], random: np.random.Generator) -> Floats:
    """Gaussian noise of many slopes, contrasts and brightnesses, ``[count, *shape]``, of mean 0 and deviation 1."""
    slopes = random.uniform(*SLOPES, count)
    pictures = _spectrum(count, shape, slopes, random)
    contrast = np.exp(random.normal(0, 0.4, (count, 1, 1, 1)))
    return _standard(pictures * contrast + random.normal(0, 0.5, (count, 1, 1, 1)))


def _cover(picture: Floats, random: np.random.Generator) -> None:
    """Put disks and rectangles over one another, the largest first."""
    channels, height, width = picture.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    number = int(random.integers(FEWEST, MOST))
    colours = random.normal(0, np.sqrt(COMMON), (number, 1)) + random.normal(
        0, np.sqrt(1 - COMMON), (number, channels)
    )
    sizes = np.sort(0.6 * max(height, width) * random.uniform(0.04, 1, number) ** 1.5 + 1)[::-1]
    for colour, size in zip(colours, sizes, strict=True):
        down, right = rows - random.uniform(0, height), columns - random.uniform(0, width)
        stretch, angle = np.exp(random.normal(0, 0.4)), random.uniform(0, np.pi)
        along = (right * np.cos(angle) + down * np.sin(angle)) * stretch / size
        across = (down * np.cos(angle) - right * np.sin(angle)) / stretch / size
        round_one = random.random() < 0.5
        inside = along**2 + across**2 < 1 if round_one else np.maximum(abs(along), abs(across)) < 1
        shade = random.normal(0, 0.4) * along[inside]
        picture[:, inside] = colour[:, None] + shade


def _spectrum(count: int, shape: tuple[int, int, int], slopes: Floats, random: np.random.Generator) -> Floats:
    """Noise whose amplitudes fall with the frequency to these powers, of deviation 1 each."""
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    result = np.empty((count, *shape), np.float32)
    for k, slope in enumerate(slopes):
        white = np.sqrt(COMMON) * random.standard_normal((1, height, width)) + np.sqrt(
            1 - COMMON
        ) * random.standard_normal((channels, height, width))
        made = np.fft.irfft2(np.fft.rfft2(white) / frequency**slope, s=(height, width))
        result[k] = made / max(float(made.std()), 1e-6)
    return result


def _standard(pictures: Floats) -> Floats:
    spread = max(float(pictures.std()), 1e-6)
    return np.asarray((pictures - pictures.mean()) / spread, np.float32)
