"""Variants keep shapes and types, are the same for the same seed, and mirror only what a model does not mind."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build

from surgeon.errors import DataError
from surgeon.graph.load import from_model
from surgeon.stats.data import open_data
from surgeon.stats.variants import ImageVariation, filled_up, variants_of, variation_for


def pictures(*shape, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return (
        random.integers(0, 255, shape).astype(dtype)
        if np.dtype(dtype).kind == "u"
        else random.standard_normal(shape).astype(dtype)
    )


def vary(array, mirror=False, seed=0):
    return ImageVariation(mirror)({"x": array}, np.random.default_rng(seed))["x"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((6, 3, 20, 24), np.float32),
        ((6, 20, 24, 3), np.uint8),
        ((6, 1, 16, 16), np.uint8),
        ((6, 20, 24, 1), np.float16),
    ],
)
@pytest.mark.parametrize("mirror", [False, True])
def test_shapes_types_and_seeds(shape, dtype, mirror):
    images = pictures(*shape, dtype=dtype)
    before = images.copy()
    varied = vary(images, mirror)
    assert varied.shape == shape
    assert varied.dtype == dtype
    assert not np.array_equal(varied, images)
    assert np.array_equal(images, before)
    assert np.array_equal(varied, vary(images, mirror))
    assert not np.array_equal(varied, vary(images, mirror, seed=1))


def places(count=40, height=20, width=30):
    """Images whose values say where they come from: a row and a column, ``[N, 2, H, W]``."""
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    return np.repeat(grid[None], count, 0).astype(np.float32)


def test_images_move_by_an_eighth_at_most_and_edges_are_reflected():
    moves = []
    for image in vary(places()):
        rows, columns = image[0, :, :1], image[1, :1]
        assert (image == np.stack(np.broadcast_arrays(rows, columns))).all()
        for shown, size in ((rows[:, 0], 20), (columns[0], 30)):
            assert set(np.abs(np.diff(shown))) == {1}  # nothing is left out, and nothing torn apart
            middle = size // 2
            moves.append((shown[middle] - middle) / size)
            outside = np.abs(np.arange(size) + shown[middle] - middle)
            assert np.array_equal(shown, np.minimum(outside, 2 * (size - 1) - outside))
    assert max(moves) <= 0.15
    assert min(moves) >= -0.15
    assert np.std(moves) > 0.05


def test_one_image_alone_moves_as_well():
    one = pictures(1, 3, 20, 20)
    assert not np.array_equal(vary(one), one)


def test_half_of_them_are_mirrored_and_none_where_it_matters():
    def mirrored(images):
        columns = images[:, 1, 0].astype(int)
        return columns[:, 0] > columns[:, -1]

    assert 10 < mirrored(vary(places(), mirror=True)).sum() < 30
    assert not mirrored(vary(places())).any()


def test_all_inputs_are_varied_alike():
    both = ImageVariation(mirror=True)({"a": places(), "b": places()}, np.random.default_rng(0))
    assert np.array_equal(both["a"], both["b"])


def pooled():
    return from_model(
        build(
            "float[N,3,16,16] x", "float[N,5] y",
            "p = GlobalAveragePool (x)\nf = Flatten (p)\ny = MatMul (f, w)", {"w": (3, 5)},
        )
    )  # fmt: skip


def sided():
    body = "f = Flatten (x)\ny = MatMul (f, w)"
    return from_model(build("float[N,3,16,16] x", "float[N,5] y", body, {"w": (768, 5)}))


def batches(count=6):
    return [{"x": pictures(8, 3, 16, 16, seed=seed)} for seed in range(count)]


def test_only_models_that_do_not_know_left_from_right_see_mirrored_images():
    assert variation_for(pooled(), batches()).mirror
    assert not variation_for(sided(), batches()).mirror


@pytest.mark.parametrize("step", [0.0, 0.2])
def test_outputs_of_which_nothing_can_be_said(step):
    """A list of what was found, as long for mirrored images or not."""
    body = "m = Mul (x, w)\ng = Greater (m, h)\nz = NonZero (g)\ny = Transpose (z)"
    weights = {"w": 1 + step * np.arange(16, dtype=np.float32), "h": np.float32(0.5)}
    found = from_model(build("float[N,3,16,16] x", "int64[M,4] y", body, weights))
    assert not variation_for(found, batches()).mirror


def test_one_sample_says_nothing_of_mirrors():
    one = variation_for(pooled(), [{"x": pictures(1, 3, 16, 16)}])
    assert one is not None
    assert not one.mirror


@pytest.mark.parametrize(
    "array",
    [
        pictures(4, 3, 8, 8),
        pictures(4, 16, 32, 32),
        pictures(4, 32, 32),
        pictures(4, 3, 32, 32).astype(np.int64),
    ],
    ids=["small", "many channels", "three axes", "token numbers"],
)
def test_what_is_no_image_is_not_varied(array):
    assert variation_for(pooled(), [{"x": array}]) is None
    assert variation_for(pooled(), [{"x": pictures(4, 3, 16, 16), "other": array}]) is None


def opened(folder, text):
    (folder / "loader.py").write_text(
        "import numpy as np\n\n\ndef data():\n    yield {'x': np.ones((4, 3), np.float32), 'labels': np.arange(4)}\n\n\n"
        + text
    )
    return open_data(f"{folder}/loader.py:data", [("x", np.float32, ("N", 3))])


def augmented(folder, text, **more):
    given = opened(folder, text)
    feeds = {**next(iter(given))[0], **more}
    return given.augment(feeds, random=np.random.default_rng(0))


def test_a_data_file_may_vary_samples_itself(tmp_path):
    text = "def augment(feeds, random):\n    return {'x': feeds['x'] * random.uniform(2, 3)}"
    found = augmented(tmp_path, text)
    assert found.keys() == {"x"}
    assert found["x"].dtype == np.float32
    assert (found["x"] > 2).all()


def test_without_a_function_there_is_none(tmp_path):
    assert opened(tmp_path, "").augment is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("augment = 3", "is not a function"),
        ("def augment(feeds, random): return 1 / 0", "raised ZeroDivisionError"),
        ("def augment(feeds): return feeds", "raised TypeError"),
        ("def augment(feeds, random): return None", "returns NoneType, not a dict"),
        ("def augment(feeds, random): return {'z': feeds['x']}", "returns 'z', which it was not given"),
        ("def augment(feeds, random): return {'x': feeds['x'][:2]}", r"makes 'x' \[2, 3\] of \[4, 3\]"),
    ],
)
def test_faults_of_the_function_are_told_as_its_own(tmp_path, text, said):
    with pytest.raises(DataError, match=said) as caught:
        augmented(tmp_path, text)
    assert caught.value.where.endswith("loader.py:augment")
    assert caught.value.exit_code == 2


def test_the_first_variant_is_mirrored_only():
    batches = [{"x": pictures(16, 3, 16, 16, seed=k)} for k in range(2)]
    made = variants_of(batches, ImageVariation(mirror=True), 2, seed=0)
    assert len(made) == 4
    for batch, variant in zip(batches, made[:2], strict=True):
        assert np.array_equal(variant["x"], batch["x"][..., ::-1])
    assert not any(np.array_equal(made[2]["x"], batches[0]["x"][..., ::way]) for way in (1, -1))
    never = variants_of(batches, ImageVariation(mirror=False), 1, seed=0)
    assert not np.array_equal(never[0]["x"], batches[0]["x"][..., ::-1])


def test_few_samples_are_filled_up_with_variants():
    given = batches(3)
    assert filled_up(given, 24, pooled()) == given
    more = filled_up(given, 60, pooled())
    assert [batch["x"].shape[0] for batch in more] == [8] * 8
    assert np.array_equal(more[3]["x"], given[0]["x"][..., ::-1])
    assert len(filled_up(given, 10_000, pooled())) == 3 * 4
    alone = [{"x": batch["x"][:1]} for batch in batches(6)]
    assert len(filled_up(alone, 100, pooled())) == 24


def test_what_must_not_be_mirrored_is_not_varied_unless_the_data_say_how():
    given = batches(3)
    assert filled_up(given, 100, sided()) == given
    words = [{"x": np.arange(8).reshape(2, 4)}]
    assert filled_up(words, 100, sided()) == words
    louder = filled_up(given, 40, sided(), augment=lambda feeds, random: {"x": feeds["x"] * 2})
    assert np.array_equal(louder[4]["x"], 2 * given[1]["x"])
    assert len(louder) == 5
