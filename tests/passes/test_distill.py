"""The pass ``distill``: the outputs of a damaged or cut model come nearer to the original's, without labels."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import trainable
from trainable import classifier, context_for, error, noisy, outputs, vectors

import surgeon
from surgeon.errors import DataError, UsageError
from surgeon.graph.save import to_model
from surgeon_passes.distill import Distill

QUICK = {"steps": 80, "rate": 5e-3, "batch": 16}
ENDS = ["Identity", "Softmax", "LogSoftmax"]


def test_a_hard_cut_is_made_up_for(demo):
    options = {
        "data": f"{demo.parent}/digits_data.py:calibration",
        "evaluation": f"{demo.parent}/digits_data.py:test",
    }
    result = surgeon.run(demo, f"{trainable.CUT},distill{{steps=40 rate=0.001}}", **options)
    assert result.report["after"]["metric"] > 0.6
    assert result.report["certificate"]["status"] == "exact"
    facts = result.report["passes"][-1]
    record = facts["training"]
    assert facts["changed"]
    assert record["steps"] == 40
    assert record["loss_after"] < 0.5 * record["loss_before"]
    assert record["loss_after"] == min(each["held_out"] for each in record["history"])
    assert [each["step"] for each in record["history"]] == list(range(2, 41, 2))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("more", [{}, {"temperature": 3.0}, {"hints": 1.0}, {"schedule": "one_cycle"}])
def test_damage_is_undone_on_unseen_inputs(end, more):
    graph, reference = noisy(classifier(end), 0.3)
    unseen = vectors(200, 9)
    before, context = error(classifier(end), graph, unseen), context_for(graph, reference, vectors())
    Distill(**QUICK, **more).run(graph, context)
    assert error(classifier(end), graph, unseen) < 0.5 * before
    assert context.record["changed"]
    assert context.warnings == []


@pytest.mark.parametrize("declared", [1, 8])
@pytest.mark.parametrize("hints", [0.0, 1.0])
def test_samples_of_a_fixed_batch_are_put_together(declared, hints):
    model = classifier()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = declared
    graph, reference = noisy(model, 0.3)
    context = context_for(graph, reference, vectors())
    context.data = trainable.dataset(graph, vectors(), batch=declared)
    Distill(**QUICK, hints=hints).run(graph, context)
    record = context.record["training"]
    assert record["loss_after"] < 0.5 * record["loss_before"]
    assert outputs(to_model(graph), vectors(declared)).shape == (declared, 4)


def test_labels_are_read_only_when_they_are_asked_for():
    results = []
    for weight, labels in ((0.0, None), (0.0, np.zeros(400, np.int64)), (1.0, np.zeros(400, np.int64))):
        graph, reference = noisy(classifier())
        Distill(**QUICK, labels=weight).run(graph, context_for(graph, reference, vectors(), labels))
        results.append(to_model(graph).SerializeToString())
    assert results[0] == results[1] != results[2]
    graph, reference = noisy(classifier())
    with pytest.raises(DataError, match="no labels") as caught:
        Distill(labels=1.0).run(graph, context_for(graph, reference, vectors()))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("pattern", "stays"), [("w1", "w1"), ("MatMul_s", "w2"), ("Add_*", "b1")])
@pytest.mark.parametrize("of_the_run", [False, True])
def test_what_is_excluded_stays(pattern, stays, of_the_run):
    graph, reference = noisy(classifier())
    before = trainable.state(graph)
    context = context_for(graph, reference, vectors(), exclude=(pattern,) if of_the_run else ())
    Distill(**QUICK, exclude=() if of_the_run else (pattern,)).run(graph, context)
    assert trainable.changed(graph, before) == {"w1", "w2", "b1"} - {stays}


def test_what_gets_no_better_stays_with_a_warning():
    graph, reference = noisy(classifier())
    before, context = trainable.state(graph), context_for(graph, reference, vectors())
    Distill(steps=40, rate=1e6, schedule="constant").run(graph, context)
    assert trainable.changed(graph, before) == set()
    assert context.record["changed"] is False
    assert context.record["training"]["steps"] < 40
    assert "stays as it was" in context.warnings[0]


@pytest.mark.parametrize("after", [1, 17, 60])
def test_an_interrupted_run_is_taken_up_and_ends_alike(tmp_path, after):
    def run(**options):
        graph, reference = noisy(classifier())
        context = context_for(graph, reference, vectors(), **options)
        Distill(**QUICK, checkpoint=options.pop("checkpoint", None) or str(tmp_path / "c.npz")).run(
            graph, context
        )
        return to_model(graph).SerializeToString(), context.record["training"]

    with pytest.raises(KeyboardInterrupt):
        run(monitor=trainable.Interrupting(after))
    assert (tmp_path / "c.npz").exists() == (after >= 4)
    again, record = run()
    (tmp_path / "c.npz").unlink()
    whole, expected = run()
    assert again == whole
    assert {**record, "seconds": 0} == {**expected, "seconds": 0}


def test_checkpoints_of_other_runs_and_places_that_do_not_exist_are_refused(tmp_path):
    path = tmp_path / "c.npz"

    def run(**options):
        graph, reference = noisy(classifier())
        Distill(**{**QUICK, "steps": 20, "checkpoint": str(path), **options}).run(
            graph, context_for(graph, reference, vectors())
        )

    run()
    with pytest.raises(UsageError, match="other options"):
        run(rate=1e-3)
    path.write_text("something else")
    with pytest.raises(UsageError, match="not a checkpoint"):
        run()
    for place in (tmp_path / "nowhere" / "c.npz", tmp_path):
        with pytest.raises(UsageError, match="no file can be written") as caught:
            run(checkpoint=str(place))
        assert caught.value.where == "distill.checkpoint"


def test_samples_are_varied_by_the_data_files_function():
    graph, reference = noisy(classifier())
    context, seen = context_for(graph, reference, vectors()), []

    def augment(feeds, random):
        seen.append(sorted(feeds))
        return {"x": feeds["x"] + 0.1 * random.standard_normal(feeds["x"].shape).astype(np.float32)}

    context.data._origin.augment = augment
    Distill(**QUICK).run(graph, context)
    assert seen == [["x"]] * 80
    assert context.record["changed"]


def test_images_are_varied_unless_that_is_unwanted_or_they_have_labels():
    graph, reference = noisy(trainable.picture_model())
    for more, varied in (({}, True), ({"vary": False}, False)):
        context = trainable.images(graph, reference, 24)
        Distill(**QUICK, **more).run(graph, context)
        assert context.record["varied"] is varied
    context = context_for(graph, reference, np.zeros((24, 3, 16, 16), np.float32), np.zeros(24, np.int64))
    Distill(**QUICK, labels=1.0).run(graph, context)
    assert context.record["varied"] is False


def test_little_memory_ends_alike():
    losses = []
    for memory in (2048, 1):
        graph, reference = noisy(trainable.picture_model())
        context = trainable.images(graph, reference, 96)
        Distill(steps=10, memory=memory).run(graph, context)
        losses.append(context.record["training"]["loss_after"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_cut_inputs_are_refused():
    graph, reference = noisy(classifier())
    context = context_for(graph, reference, vectors())
    context.plan = trainable.plan_that_cut_inputs()
    with pytest.raises(UsageError, match="data do not fit"):
        Distill().run(graph, context)


def test_without_an_original_there_is_nothing_to_learn():
    graph, _ = noisy(classifier())
    with pytest.raises(UsageError, match="no original"):
        Distill().run(graph, context_for(graph, None, vectors()))


@pytest.mark.parametrize("option", ["steps", "batch", "patience", "memory", "rate", "temperature"])
def test_what_has_to_be_positive(option):
    with pytest.raises(UsageError) as caught:
        Distill(**{option: 0})
    assert caught.value.where == f"distill.{option}"


@pytest.mark.parametrize("option", ["hints", "labels", "decay"])
def test_what_must_not_be_negative(option):
    for value in (-0.1, float("nan")):
        with pytest.raises(UsageError) as caught:
            Distill(**{option: value})
        assert caught.value.where == f"distill.{option}"


def test_a_quantized_model_is_refused(tmp_path, demo):
    with pytest.raises(UsageError, match="'float'"):
        surgeon.run(tiny.quantized(tmp_path / "q.onnx"), "distill")
    with pytest.raises(UsageError, match="quantize runs before it"):
        surgeon.run(demo, "quantize,distill", data=f"{demo.parent}/digits_data.py:search")
