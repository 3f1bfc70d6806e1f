"""Loaders and metrics of the pretrained models that see photographs: people, detection, segmentation, text, plates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from detection import Box, mean_average_precision, yolox_boxes
from PIL import Image
from pretrained import DATA, Array, Feeds, Session, Task, batched, draw, top1

PHOTOGRAPHS = DATA / "coco128_val"
POOL = 80  # photographs to calibrate with, of 128; the others are for trials
PERSON, PERSON_SHARE = 0, 0.005
# COCO panoptic ids of the classes of PASCAL VOC, in the order of VOC; 0 is the background
VOC = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
GREY = 114


@dataclass(frozen=True)
class Photograph:
    """A photograph with its labels beside it."""

    path: Path

    def image(self) -> Image.Image:
        """The picture in RGB."""
        return Image.open(self.path).convert("RGB")

    def boxes(self) -> Array:
        """Rows of class, centre, width and height, as fractions of the picture."""
        text = self.path.parents[1] / "labels" / f"{self.path.stem}.txt"
        rows = text.read_text().split("\n") if text.exists() else []
        return np.array([row.split() for row in rows if row], float).reshape(-1, 5)

    def mask(self) -> Image.Image | None:
        """COCO panoptic ids, where there are any."""
        path = self.path.parents[1] / "sem_masks" / f"{self.path.stem}.png"
        return Image.open(path) if path.exists() else None


@cache
def photographs() -> tuple[list[Photograph], list[Photograph]]:
    """Those to calibrate with and those to try."""
    every = [Photograph(path) for path in sorted((PHOTOGRAPHS / "images").glob("*.jpg"))]
    order = np.random.default_rng(0).permutation(len(every))
    return [every[k] for k in order[:POOL]], [every[k] for k in order[POOL:]]


Prepare = Callable[[Image.Image], Array]


def _calibration(name: str, prepare: Prepare, count: int, batch: int, seed: int) -> Iterator[Feeds]:
    chosen = draw(photographs()[0], count, seed)
    yield from batched([prepare(photograph.image()) for photograph in chosen], name, batch)


def _trial(name: str, prepare: Prepare) -> Iterator[Feeds]:
    for photograph in photographs()[1]:
        yield {name: prepare(photograph.image())[np.newaxis]}


def _scaled(
    side: int | tuple[int, int], mean: object, std: object, image: Image.Image, *, bgr: bool = False
) -> Array:
    """The picture stretched to a size (width, height), normalised, CHW."""
    size = (side, side) if isinstance(side, int) else side
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    pixels = (pixels[..., ::-1] if bgr else pixels) - np.asarray(mean, np.float32)
    return np.ascontiguousarray((pixels / np.asarray(std, np.float32)).transpose(2, 0, 1))


def _people(prepare: Prepare) -> Iterator[Feeds]:
    for photograph in photographs()[1]:
        boxes = photograph.boxes()
        present = (boxes[boxes[:, 0] == PERSON, 3:].prod(axis=1) > PERSON_SHARE).any()
        yield {"input": prepare(photograph.image())[np.newaxis], "labels": np.array([int(present)])}


def _letterboxed(image: Image.Image, side: int = 416) -> Array:
    """Scaled to fit into the upper left of a grey square; BGR in 0..255."""
    ratio = min(side / image.width, side / image.height)
    small = image.resize((int(image.width * ratio), int(image.height * ratio)), Image.Resampling.BILINEAR)
    pixels = np.full((side, side, 3), GREY, np.float32)
    pixels[: small.height, : small.width] = np.asarray(small)[..., ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _map50(run: Session, chosen: list[Photograph] | None = None) -> float:
    """Mean average precision at an overlap of 0.5 over the classes that occur."""
    found: list[list[Box]] = []
    truth: list[list[Box]] = []
    for photograph in chosen or photographs()[1]:
        image = photograph.image()
        ratio = min(416 / image.width, 416 / image.height)
        found.append(yolox_boxes(run.run(None, {"images": _letterboxed(image)[np.newaxis]})[0][0], ratio))
        scale = np.array([image.width, image.height] * 2)
        corners = [
            np.concatenate([c - s / 2, c + s / 2])
            for c, s in zip(photograph.boxes()[:, 1:3], photograph.boxes()[:, 3:], strict=True)
        ]
        truth.append(
            [
                Box(int(row[0]), 1.0, corner * scale)
                for row, corner in zip(photograph.boxes(), corners, strict=True)
            ]
        )
    return mean_average_precision(found, truth)


def _miou(prepare: Prepare, run: Session, chosen: list[Photograph] | None = None) -> float:
    """Mean intersection over union over VOC's classes that occur in the masks."""
    classes = np.zeros(256, np.int64)
    classes[list(VOC)] = np.arange(1, len(VOC) + 1)
    table = np.zeros((len(VOC) + 1, len(VOC) + 1), np.int64)
    for photograph in chosen or photographs()[1]:
        mask = photograph.mask()
        if mask is None:
            continue
        predicted = run.run(None, {"input": prepare(photograph.image())[np.newaxis]})[0][0]
        truth = classes[np.asarray(mask.resize((513, 513), Image.Resampling.NEAREST))]
        np.add.at(table, (truth.ravel(), predicted.ravel()), 1)
    occur = table.sum(axis=1) > 0
    union = table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
    return float((np.diag(table)[occur] / union[occur]).mean())


def _faces(chosen: list[Photograph], limit: int) -> list[Array]:
    """Upper squares of people, where a face is likely: 48 x 48."""
    crops = []
    for photograph in chosen:
        image = photograph.image()
        for _, x, y, width, height in photograph.boxes()[photograph.boxes()[:, 0] == PERSON]:
            side = min(width * image.width, height * image.height)
            if side < 48:
                continue
            left, top = x * image.width - side / 2, (y - height / 2) * image.height
            crop = image.crop((int(left), int(top), int(left + side), int(top + side)))
            crops.append(_scaled(48, 127.5, 128, crop))
    return crops[:limit]


def _face_calibration(seed: int) -> Iterator[Feeds]:
    yield from batched(draw(_faces(photographs()[0], 1000), 96, seed), "input", 32)


def _face_trial() -> Iterator[Feeds]:
    yield from batched(_faces(photographs()[1], 1000), "input", 1)


def _luminance(image: Image.Image, side: int) -> Image.Image:
    """The middle square at a size, as Y of YCbCr."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
    return square.convert("YCbCr").getchannel(0)


def _small(image: Image.Image) -> Array:
    small = _luminance(image, 672).resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32)[np.newaxis] / 255


def _psnr(run: Session, chosen: list[Photograph] | None = None) -> float:
    """Mean peak signal-to-noise ratio of the luminance in decibels."""
    ratios = []
    for photograph in chosen or photographs()[1]:
        image = photograph.image()
        found = run.run(None, {"input": _small(image)[np.newaxis]})[0][0, 0].clip(0, 1)
        truth = np.asarray(_luminance(image, 672), np.float32) / 255
        ratios.append(-10 * np.log10(float(np.square(found - truth).mean())))
    return float(np.mean(ratios))


def _written(pool: Sequence[Photograph], first: int) -> list[Array]:
    """Photographs with two plates enlarged in each, so that there is text to find: 320 x 320."""
    with np.load(DATA / "plates.npz") as data:
        plates = data["x"]
    found = []
    for k, photograph in enumerate(pool):
        image = photograph.image().resize((320, 320), Image.Resampling.BILINEAR)
        random = np.random.default_rng(first + k)
        for half in range(2):
            plate = Image.fromarray(plates[first + 2 * k + half])
            width = int(random.uniform(120, 280))
            place = (int(random.integers(0, 320 - width)), half * 160 + int(random.integers(0, 80)))
            image.paste(plate.resize((width, width * 24 // 94), Image.Resampling.BICUBIC), place)
        found.append(_scaled(320, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4), image, bgr=True))
    return found


def _text_calibration(seed: int) -> Iterator[Feeds]:
    yield from batched(draw(_written(photographs()[0], 0), 48, seed), "x", 4)


def _text_trial() -> Iterator[Feeds]:
    yield from batched(_written(photographs()[1], 800), "x", 1)


@cache
def _plates() -> tuple[Array, list[str], str]:
    """Pictures, their text, and the characters; the last one is CTC's blank."""
    with np.load(DATA / "plates.npz") as data:
        bgr = data["x"][..., ::-1].astype(np.float32)
        pictures = ((bgr - 127.5) / 128).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pictures), [str(text) for text in data["labels"]], "".join(data["chars"])


def _plate_calibration(seed: int) -> Iterator[Feeds]:
    yield from batched(draw(list(_plates()[0][:400]), 256, seed), "input", 1)


def _plate_trial() -> Iterator[Feeds]:
    yield from batched(list(_plates()[0][800:]), "input", 1)


def _exact_plates(run: Session, first: int = 400) -> float:
    """Share of plates that are read without a mistake: best character per step, repeats and blanks removed."""
    pictures, texts, characters = _plates()
    right = 0
    for picture, text in zip(pictures[first:], texts[first:], strict=True):
        best = run.run(None, {"input": picture[np.newaxis]})[0][0].argmax(axis=0)
        changes = best[np.flatnonzero(np.diff(best, prepend=-1))]
        right += "".join(characters[k] for k in changes if k != len(characters) - 1) == text
    return right / len(texts[first:])


def _seen(model: str, name: str, prepare: Prepare, count: int, batch: int) -> Task:
    """A model that sees photographs and has no figure."""
    return Task(model, partial(_calibration, name, prepare, count, batch), partial(_trial, name, prepare))


def image_tasks() -> list[Task]:
    """Every model of this file."""
    person = partial(_scaled, 96, 0, 255)
    scene = partial(_scaled, 513, 127.5, 127.5)
    faces = partial(_scaled, (320, 240), 127, 128)
    style = partial(_scaled, 128, 0, 1)
    people = _seen("vww_mobilenet_v1", "input", person, 64, 16)
    boxes = _seen("yolox_nano", "images", _letterboxed, 64, 1)
    scenes = _seen("deeplab_mobilenet_v2", "input", scene, 24, 1)
    larger = _seen("espcn_x3", "input", _small, 32, 4)
    return [
        _scored(people, partial(top1, partial(_people, person)), "top-1", classifier=True),
        _scored(boxes, _map50, "mAP50"),
        _scored(scenes, partial(_miou, scene), "mIoU"),
        _seen("ultraface_rfb", "input", faces, 64, 1),
        Task("mtcnn_onet", _face_calibration, _face_trial),
        Task("ppocrv3_det", _text_calibration, _text_trial),
        Task("lprnet", _plate_calibration, _plate_trial, _exact_plates, "exact plates"),
        _scored(larger, _psnr, "Y-PSNR in dB"),
        _seen("style_udnie", "input", style, 32, 4),
    ]


def _scored(task: Task, metric: Callable[[Session], float], unit: str, *, classifier: bool = False) -> Task:
    return Task(task.model, task.calibration, task.trial, metric, unit, classifier)
