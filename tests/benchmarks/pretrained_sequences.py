"""Loaders and metrics of the pretrained models that see sequences: words, stories, and sound with its states.

There are no recordings here, so that sound is made: a seeded voice of harmonics, formants, syllables and pauses in noise.
States and caches are never made up: the original runs over the sequence, and what it carries along is noted down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from pretrained import DATA, Array, Feeds, Session, Task, dense, draw
from scipy.signal import get_window, lfilter

from surgeon.stats.metrics import edit_distance

RATE = 16000
FORMANTS = ((700, 1200, 2600), (300, 2200, 3000), (450, 900, 2400), (550, 1800, 2500))  # a, i, o, e in Hz
WORDS_POOL, STEPS = 600, 20
START, END, UNKNOWN = "<s>", "</s>", "<unk>"


def voice(seconds: float, seed: int) -> Array:
    """Something like speech in noise, float32 at 16 kHz, within ±1."""
    random = np.random.default_rng(seed)
    parts: list[Array] = []
    pitch = random.uniform(90, 220)
    while sum(len(part) for part in parts) < seconds * RATE:
        count = int(random.uniform(0.1, 0.35) * RATE)
        if random.random() < 0.25:
            parts.append(np.zeros(count))
            continue
        glide = pitch * np.linspace(1, random.uniform(0.8, 1.25), count)
        phase = 2 * np.pi * np.cumsum(glide) / RATE
        sound = sum(np.sin(k * phase) / k for k in range(1, 30)) + 0.1 * random.standard_normal(count)
        for formant in FORMANTS[random.integers(len(FORMANTS))]:
            radius, angle = 0.97, 2 * np.pi * formant / RATE
            sound = sound + 0.3 * lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
        parts.append(np.hanning(count) * sound * random.uniform(0.3, 1))
    whole = np.concatenate(parts)[: int(seconds * RATE)]
    noise = random.standard_normal(len(whole)) * random.uniform(0.003, 0.05)
    return np.asarray(0.3 * whole / np.abs(whole).max() + noise, np.float32)


def noted(
    model: str, sounds: Sequence[Sequence[Feeds]], states: Mapping[str, str], every: int
) -> Iterator[Feeds]:
    """Feeds of a model that carries states: the original runs over each sequence from zeros.

    Args:
        model: The model.
        sounds: Sequences of feeds without states.
        states: Output that becomes an input, by the input.
        every: One in so many steps is kept.
    """
    run = dense(model)
    outputs = [output.name for output in run.get_outputs()]
    shapes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in run.get_inputs()}
    for sound in sounds:
        state = {name: np.zeros(shapes[name], np.float32) for name in states}
        for step, feeds in enumerate(sound):
            if step % every == every - 1:
                yield {**feeds, **state}
            found = dict(zip(outputs, run.run(None, {**feeds, **state}), strict=True))
            state = {name: found[output] for name, output in states.items()}


Frames = Callable[[Array], list[Feeds]]


def _heard(model: str, frames: Frames, states: Mapping[str, str], seeds: Sequence[int]) -> Iterator[Feeds]:
    yield from noted(model, [frames(voice(3, seed)) for seed in seeds], states, every=7)


def _heard_calibration(model: str, frames: Frames, states: Mapping[str, str], seed: int) -> Iterator[Feeds]:
    yield from _heard(model, frames, states, range(1000 * seed + 1, 1000 * seed + 13))


def _with_state(model: str, frames: Frames, states: Mapping[str, str]) -> Task:
    trial = partial(_heard, model, frames, states, range(901, 907))
    return Task(model, partial(_heard_calibration, model, frames, states), trial)


def _vad_frames(sound: Array) -> list[Feeds]:
    """512 samples at a time with the 64 before them."""
    rate = np.array(RATE, np.int64)
    return [
        {"input": sound[k - 64 : k + 512][np.newaxis], "sr": rate} for k in range(64, len(sound) - 512, 512)
    ]


def _spectra(sound: Array) -> list[Feeds]:
    """Spectra of 512 samples, half of them new, under the square root of a Hann window."""
    window = np.sqrt(get_window("hann", 512)).astype(np.float32)
    found = []
    for start in range(0, len(sound) - 512, 256):
        spectrum = np.fft.rfft(sound[start : start + 512] * window)
        parts = np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)
        found.append({"mix": parts[np.newaxis, :, np.newaxis]})
    return found


def _blocks(sound: Array) -> list[Feeds]:
    """512 samples, 128 of them new."""
    return [{"input_4": sound[k : k + 512][np.newaxis, np.newaxis]} for k in range(0, len(sound) - 512, 128)]


def _log_mel(sound: Array) -> Array:
    """Five frames of 128 mel bands each in decibels [N, 640], of 1,024 samples every 512 (MLPerf Tiny)."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 1024)[::512]
    power = np.abs(np.fft.rfft(frames * get_window("hann", 1024), axis=1)) ** 2
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, 130) / 2595) - 1)
    hertz = np.fft.rfftfreq(1024, 1 / RATE)
    rising = (hertz - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
    falling = (edges[2:, np.newaxis] - hertz) / np.diff(edges)[1:, np.newaxis]
    bands = np.minimum(rising, falling).clip(0) * (2 / (edges[2:] - edges[:-2]))[:, np.newaxis]
    decibels = 10 * np.log10(power @ bands.T + 1e-12)
    return np.asarray(
        np.concatenate([decibels[k : len(decibels) - 4 + k] for k in range(5)], axis=1), np.float32
    )


def _machine(seeds: Sequence[int]) -> Iterator[Feeds]:
    """A machine's hum: harmonics of a slowly changing speed, and noise."""
    for seed in seeds:
        random = np.random.default_rng(seed)
        time = np.arange(4 * RATE) / RATE
        speed = random.uniform(40, 120) * (1 + 0.02 * np.sin(2 * np.pi * random.uniform(0.2, 2) * time))
        phase = 2 * np.pi * np.cumsum(speed) / RATE
        hum = sum(random.random() * np.sin(k * phase) / k for k in range(1, 40))
        noise = lfilter([1], [1, -random.uniform(0.3, 0.95)], random.standard_normal(len(time)))
        yield {"input": _log_mel(0.01 * hum + random.uniform(0.001, 0.01) * noise)[::4]}


def _machine_calibration(seed: int) -> Iterator[Feeds]:
    yield from _machine(range(1000 * seed + 1, 1000 * seed + 17))


def _machine_trial() -> Iterator[Feeds]:
    yield from _machine(range(901, 909))


@cache
def _dictionary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "g2p_cmudict.json").read_text())
    return found


def _words(*, held_out: bool) -> list[str]:
    words = list(_dictionary()["words"])
    order = np.random.default_rng(0).permutation(len(words))
    return [words[k] for k in (order[WORDS_POOL:] if held_out else order[:WORDS_POOL])]


def _spelt(word: str) -> Feeds:
    letters = _dictionary()["graphemes"]
    known = [letters.index(c if c in letters else UNKNOWN) for c in word]
    return {"ids": np.array([[*known, letters.index(END)]], np.int64)}


def _spoken(word: str, encoder: Session, decoder: Session) -> Iterator[tuple[Feeds, int]]:
    """Every step of the decoder: what goes in, and the phoneme that comes out."""
    phonemes = _dictionary()["phonemes"]
    hidden, previous = encoder.run(None, _spelt(word))[0], phonemes.index(START)
    for _ in range(STEPS):
        feeds = {"prev": np.array([previous], np.int64), "hidden_in": hidden}
        scores, hidden = decoder.run(None, feeds)
        previous = int(scores.argmax())
        yield feeds, previous
        if previous == phonemes.index(END):
            return


def phoneme_error(encoder: Session, decoder: Session, words: Sequence[str] | None = None) -> float:
    """Edits to the nearest pronunciation over the lengths of those, greedy decoding."""
    phonemes, edits, length = _dictionary()["phonemes"], 0, 0
    for word in words or _words(held_out=True):
        said = [phoneme for _, phoneme in _spoken(word, encoder, decoder) if phonemes[phoneme] != END]
        known = [[phonemes.index(each) for each in way] for way in _dictionary()["words"][word]]
        distance, size = min((edit_distance(said, way), len(way)) for way in known)
        edits, length = edits + distance, length + size
    return edits / length


def _encoded(seed: int | None) -> Iterator[Feeds]:
    words = _words(held_out=True)[:200] if seed is None else draw(_words(held_out=False), 400, seed)
    yield from map(_spelt, sorted(words, key=len))


def _decoded(seed: int | None) -> Iterator[Feeds]:
    words = _words(held_out=True)[:50] if seed is None else draw(_words(held_out=False), 150, seed)
    for word in words:
        yield from (
            feeds for feeds, _ in _spoken(word, dense("g2p_gru_encoder"), dense("g2p_gru_decoder_step"))
        )


def _encoder_error(run: Session) -> float:
    return phoneme_error(run, dense("g2p_gru_decoder_step"))


def _decoder_error(run: Session) -> float:
    return phoneme_error(dense("g2p_gru_encoder"), run)


def _stories() -> Array:
    with np.load(DATA / "stories.npz") as data:
        ids: Array = data["ids"]
        return ids


def _story_calibration(seed: int) -> Iterator[Feeds]:
    for start in range(0, 16, 4):
        yield {"input_ids": np.stack(draw(list(_stories()[:20]), 16, seed)[start : start + 4])}


def _story_trial() -> Iterator[Feeds]:
    for story in _stories()[20:]:
        yield {"input_ids": story[np.newaxis]}


def cross_entropy(run: Session, first: int = 20) -> float:
    """Mean over tokens of minus the logarithm of the probability of the next one."""
    losses = []
    for story in _stories()[first:]:
        scores = run.run(None, {"input_ids": story[np.newaxis]})[0][0, :-1].astype(np.float64)
        total = np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)) + scores.max(axis=1)
        losses.append(total - scores[np.arange(len(scores)), story[1:]])
    return float(np.mean(losses))


def sequence_tasks() -> list[Task]:
    """Every model of this file."""
    caches = {name: f"{name}_out" for name in ("conv_cache", "tra_cache", "inter_cache")}
    error = "phoneme error"
    return [
        _with_state("silero_vad", _vad_frames, {"state": "stateN"}),
        _with_state("dtln_model_2", _blocks, {"input_5": "tf_op_layer_stack_5"}),
        _with_state("gtcrn", _spectra, caches),
        Task("g2p_gru_encoder", _encoded, partial(_encoded, None), _encoder_error, error),
        Task("g2p_gru_decoder_step", _decoded, partial(_decoded, None), _decoder_error, error),
        Task("stories_llama", _story_calibration, _story_trial, cross_entropy, "cross-entropy"),
        Task("anomaly_autoencoder", _machine_calibration, _machine_trial),
    ]
