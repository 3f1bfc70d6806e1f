"""Variants of samples to learn from: images moved and, where the model does not mind, mirrored.

What a model makes of a variant is known without labels, so few samples become many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feeds: TypeAlias = Mapping[str, Array]

MOST_CHANNELS, SMALLEST = 4, 16  # of what is taken for an image
ALIKE = 0.5  # of the outputs' variance; a model that does not know left from right stays far below
LOOKED_AT = 4  # batches
MOST = 3  # variants of a sample
FAR = 0.125  # of a side, by which an image is moved at most


@dataclass(frozen=True)
class ImageVariation:
    """Moves every image of a batch a little, and mirrors every second one.

    Convolutions with strides, poolings and patches see places of a moved image that they had not seen. What comes in at
    an edge is what lies there, reflected.

    Attributes:
        mirror: Whether images are mirrored at all.
    """

    mirror: bool

    def mirrored(self, feeds: Feeds) -> dict[str, Array]:
        """A batch with left and right exchanged, and nothing else."""
        return {
            name: np.ascontiguousarray(np.flip(x, (_spatial(x) or (0, 0))[1])) for name, x in feeds.items()
        }

    def __call__(self, feeds: Feeds, random: np.random.Generator) -> dict[str, Array]:
        """A variant of a batch, all inputs alike; arrays are left as they are."""
        count = len(next(iter(feeds.values())))
        turned = (random.random(count) < 0.5) & self.mirror
        moves = random.uniform(-FAR, FAR, (count, 2))
        return {
            name: np.stack(
                [_moved(image, axes, *each) for image, *each in zip(array, moves, turned, strict=True)]
            )
            for name, array in feeds.items()
            if (axes := _spatial(array)) is not None
        }


def variation_for(graph: gs.Graph, feeds: Sequence[Feeds], threads: int = 1) -> ImageVariation | None:
    """How samples of a model can be varied; None where some input is no image.

    They are mirrored where the model puts out nearly the same for mirrored images, compared with how samples differ.

    Args:
        graph: The model.
        feeds: Batches.
        threads: Threads for onnxruntime.
    """
    if any(_spatial(array) is None for array in feeds[0].values()):
        return None
    looked_at = feeds[:LOOKED_AT]
    twins = [ImageVariation(mirror=True).mirrored(batch) for batch in looked_at]
    return ImageVariation(_is_symmetric(graph, looked_at, twins, threads))


def variants_of(
    feeds: Sequence[Feeds], vary: Callable[..., Mapping[str, Array]], count: int, seed: int
) -> list[dict[str, Array]]:
    """So many variants of all batches, one after the other; the first of images is mirrored only, if that may be.

    Args:
        feeds: Batches.
        vary: Called with a batch and, as ``random``, a generator.
        count: How many variants.
        seed: Seed of all of them.
    """
    result = []
    for k in range(count):
        for number, batch in enumerate(feeds):
            if k == 0 and isinstance(vary, ImageVariation) and vary.mirror:
                result.append(vary.mirrored(batch))
            else:
                random = np.random.default_rng((seed, k, number))
                result.append({**batch, **vary(batch, random=random)})
    return result


def filled_up(
    feeds: Sequence[Feeds],
    samples: int,
    graph: gs.Graph,
    *,
    augment: Callable[..., Mapping[str, Array]] | None = None,
    seed: int = 0,
    threads: int = 1,
) -> list[Feeds]:
    """Batches, and where they hold fewer samples than wanted some of their variants, at most `MOST` of each.

    Weights that are fitted to few samples fit these only: behind a pooling, a sample is one equation for each output. What is not an
    image that may be mirrored is not varied, unless the data say how.

    Args:
        feeds: Batches.
        samples: How many are wanted.
        graph: What should put out nearly the same for mirrored images.
        augment: How the data are varied instead.
        seed: Seed of the variants.
        threads: Threads for onnxruntime.
    """
    count = sum(map(samples_in, feeds))
    missing = samples - count
    if missing <= 0 or not feeds:
        return list(feeds)
    vary: Callable[..., Mapping[str, Array]] | None = augment
    if vary is None:
        images = variation_for(graph, feeds, threads)
        vary = images if images is not None and images.mirror else None
    if vary is None:
        return list(feeds)
    result = list(feeds)
    for batch in variants_of(feeds, vary, min(MOST, -(-missing // count)), seed):
        if missing <= 0:
            break
        result.append(batch)
        missing -= samples_in(batch)
    return result


def samples_in(batch: Feeds) -> int:
    """How many samples a batch holds: the largest first dimension of its arrays."""
    return max((len(array) for array in batch.values() if np.ndim(array)), default=1)


def _moved(image: Array, axes: tuple[int, int], move: Array, turned: bool) -> Array:
    """One image, without the axis of the batch."""
    for axis, share in zip(axes, move, strict=True):
        last = image.shape[axis - 1] - 1
        places = np.arange(last + 1) + round(float(share) * (last + 1))
        image = image.take(last - np.abs(last - np.abs(places)), axis=axis - 1)
    return np.flip(image, axes[1] - 1) if turned else image


def _is_symmetric(graph: gs.Graph, feeds: Sequence[Feeds], twins: Sequence[Feeds], threads: int) -> bool:
    runner = session(to_model(graph), threads=threads)
    counts = [len(next(iter(batch.values()))) for batch in feeds]
    found = [[run(runner, _whole(batch)) for batch in batches] for batches in (feeds, twins)]
    for index in range(len(graph.outputs)):
        pairs = [(np.asarray(a[index]), np.asarray(b[index])) for a, b in zip(*found, strict=True)]
        if not _are_comparable(pairs, counts):
            return False
        one, other = (np.concatenate([pair[side] for pair in pairs]).astype(float) for side in (0, 1))
        spread = np.square(one - one.mean(axis=0)).sum()
        if not np.square(one - other).sum() < ALIKE * spread:
            return False
    return True


def _are_comparable(pairs: Sequence[tuple[Array, Array]], counts: Sequence[int]) -> bool:
    """Whether results are numbers, of one shape for every sample: not so lists of what was found."""
    arrays = [array for pair in pairs for array in pair]
    return all(
        array.ndim > 0 and array.dtype.kind in "fiub" and array.shape[1:] == arrays[0].shape[1:]
        for array in arrays
    ) and all(len(array) == count for pair, count in zip(pairs, counts, strict=True) for array in pair)


def _whole(batch: Feeds) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array) for name, array in batch.items()}


def _spatial(array: Array) -> tuple[int, int] | None:
    """The axes from top to bottom and from left to right of images ``[N, C, H, W]`` or ``[N, H, W, C]``."""
    if array.ndim != 4 or array.dtype.kind not in "fu":
        return None
    for axes, channels in (((2, 3), 1), ((1, 2), 3)):
        if array.shape[channels] <= MOST_CHANNELS and min(array.shape[k] for k in axes) >= SMALLEST:
            return axes
    return None
