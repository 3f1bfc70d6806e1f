"""The pass ``finetune``: labels make a damaged model right again, whatever form they have, and none are an error."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import trainable
from ops.oracle import build
from trainable import accuracy, classifier, context_for, noisy, right, vectors

import surgeon
from surgeon.cli import main
from surgeon.errors import DataError, GateError, UsageError
from surgeon.grad.samples import Samples
from surgeon.graph.save import to_model
from surgeon.replay import verify_files
from surgeon_passes.finetune import Finetune

QUICK = {"steps": 80, "rate": 1e-2, "batch": 32}


def test_a_classifier_that_guesses_is_right_again(demo):
    options = {
        "data": f"{demo.parent}/digits_data.py:calibration",
        "evaluation": f"{demo.parent}/digits_data.py:test",
    }
    cut = surgeon.run(demo, trainable.CUT, **options)
    result = surgeon.run(demo, f"{trainable.CUT},finetune{{steps=40 rate=0.001}}", **options)
    assert cut.report["after"]["metric"] < 0.3
    assert result.report["after"]["metric"] > 0.6
    assert result.report["certificate"]["status"] == "exact"
    facts = result.report["passes"][-1]
    assert facts["changed"]
    assert facts["training"]["loss_after"] < facts["training"]["loss_before"]
    assert len(facts["training"]["history"]) == 20


@pytest.mark.parametrize("end", ["Identity", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_accuracy_on_unseen_inputs_rises(end, kind):
    model, unseen = classifier(end), vectors(400, 9)
    graph, reference = noisy(model, 0.8)
    before = accuracy(model, graph, unseen)
    Finetune(**QUICK).run(
        graph, context_for(graph, reference, vectors(), right(model, vectors()).astype(kind))
    )
    assert accuracy(model, graph, unseen) > before + 0.1


def test_scores_and_probabilities_of_the_same_model_learn_the_same():
    results = []
    for end in ("Identity", "Softmax", "LogSoftmax"):
        graph, reference = noisy(classifier(end))
        labels = right(classifier(), vectors())
        context = context_for(graph, reference, vectors(), labels)
        Finetune(**QUICK).run(graph, context)
        results.append(context.record["training"])
    for other in results[1:]:
        assert other["loss_before"] == pytest.approx(results[0]["loss_before"], rel=1e-3)
        assert other["loss_after"] == pytest.approx(results[0]["loss_after"], rel=0.05)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_are_learned_by_their_squared_error(kind):
    model, unseen = classifier(), vectors(200, 9)
    graph, reference = noisy(model, 0.3)
    before = trainable.error(model, graph, unseen)
    labels = trainable.outputs(model, vectors()).astype(kind)
    Finetune(**QUICK).run(graph, context_for(graph, reference, vectors(), labels))
    assert trainable.error(model, graph, unseen) < 0.5 * before


def spatial(shape, body, weights):
    return build("float[N,6] x", f"float[{shape}] y", body, weights)


@pytest.mark.parametrize(
    ("shape", "back", "axis"),
    [
        ("N,4,2,3", [0, 4, 2, 3], 1),
        ("N,6,4", [0, 6, 4], 2),
        ("N,4,6", [0, 4, 6], 1),
        ("N,4,1,6", [0, 4, 1, 6], 1),
    ],
)
def test_classes_are_found_whatever_axis_they_are_on(shape, back, axis):
    body = "a = MatMul (x, w)\ny = Reshape (a, s)"
    model = spatial(shape, body, {"w": (6, 24), "s": np.array(back)})
    labels = trainable.outputs(model, vectors()).argmax(axis)
    graph, reference = noisy(model, 0.5)
    context = context_for(graph, reference, vectors(), labels)
    Finetune(**QUICK).run(graph, context)
    record = context.record["training"]
    assert record["loss_after"] < 0.8 * record["loss_before"]
    assert record["loss_after"] < 1.0


def test_labels_may_have_an_axis_of_one():
    losses = []
    for labels in (right(classifier(), vectors()), right(classifier(), vectors())[:, None]):
        graph, reference = noisy(classifier())
        context = context_for(graph, reference, vectors(), labels)
        Finetune(**QUICK).run(graph, context)
        losses.append(context.record["training"]["loss_after"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "labels",
    [np.zeros((400, 3), np.int64), np.zeros((400, 3), np.float32), np.zeros(400), np.full(400, "a")],
    ids=["several numbers", "too few floats", "one float", "words"],
)
def test_labels_that_do_not_fit_say_what_would(labels):
    graph, reference = noisy(classifier())
    with pytest.raises(DataError) as caught:
        Finetune().run(graph, context_for(graph, reference, vectors(), labels))
    assert "numbers" in caught.value.hint
    assert caught.value.exit_code == 2


def test_without_labels_it_exits_with_2(tmp_path, capsys):
    model, data = tiny.convnet(tmp_path / "m.onnx"), tiny.samples(tmp_path / "d.npz", labels=False)
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(["run", str(model), "--data", str(data), "--passes", "finetune"]))
    assert caught.value.code == 2
    assert "the data have no labels" in capsys.readouterr().err
    assert not (tmp_path / "m.surgeon.onnx").exists()


def test_without_data_there_are_no_labels():
    graph, reference = noisy(classifier())
    context = context_for(graph, reference, vectors())
    context.data = None
    with pytest.raises(DataError, match="no labels") as caught:
        Finetune().run(graph, context)
    assert "--data" in caught.value.hint


def test_an_original_is_not_needed():
    graph, _ = noisy(classifier(), 0.5)
    context = context_for(graph, None, vectors(), right(classifier(), vectors()))
    Finetune(**QUICK).run(graph, context)
    assert context.record["changed"]


@pytest.mark.parametrize(("pattern", "stays"), [("w1", "w1"), ("MatMul_s", "w2")])
def test_what_is_excluded_stays(pattern, stays):
    graph, reference = noisy(classifier())
    before = trainable.state(graph)
    context = context_for(graph, reference, vectors(), right(classifier(), vectors()))
    Finetune(**QUICK, exclude=(pattern,)).run(graph, context)
    assert trainable.changed(graph, before) == {"w1", "w2", "b1"} - {stays}


def test_what_gets_no_better_stays_with_a_warning():
    graph, reference = noisy(classifier(), 0)
    before = trainable.state(graph)
    context = context_for(graph, reference, vectors(), right(classifier(), vectors()))
    Finetune(steps=40, rate=1e6).run(graph, context)
    assert trainable.changed(graph, before) == set()
    assert "stays as it was" in context.warnings[0]


@pytest.mark.parametrize(
    ("options", "labels", "said"),
    [
        ({"exclude": ("*",)}, np.zeros(400, np.int64), "no weights to train"),
        ({}, np.full(400, 99), "the loss is 0 before"),
    ],
)
def test_why_nothing_is_learned(options, labels, said):
    graph, reference = noisy(classifier())
    context = context_for(graph, reference, vectors(), labels)
    Finetune(**{**QUICK, **options}).run(graph, context)
    assert [warning for warning in context.warnings if said in warning]
    assert context.record["changed"] is False


def test_samples_that_become_no_numbers_teach_nothing_and_that_is_said():
    graph, reference = noisy(classifier())
    context = context_for(graph, reference, vectors(), right(classifier(), vectors()))

    def augment(feeds, random):
        return {**feeds, "x": feeds["x"] * np.float32(np.nan)}

    context.data._origin.augment = augment
    Finetune(**QUICK).run(graph, context)
    assert "no number in any step" in context.warnings[0]


def test_a_weight_with_part_of_a_gradient_is_named():
    body = "a = MatMul (x, w1)\nm = Mod <fmod = 1> (a, one)\nb = Add (a, m)\ny = MatMul (b, w2)"
    weights = {"w1": (6, 6), "w2": (6, 4), "one": np.float32(1)}
    graph, reference = noisy(build("float[N,6] x", "float[N,4] y", body, weights))
    context = context_for(graph, reference, vectors(), np.zeros(400, np.int64))
    Finetune(steps=2).run(graph, context)
    stopped = context.record["training"]["stopped"]
    assert stopped.keys() == {"w1"}
    assert "Mod" in stopped["w1"]


@pytest.mark.parametrize(
    ("options", "kind", "clip"), [({}, "adam", None), ({"optimizer": "sgd", "clip": 0.5}, "sgd", 0.5)]
)
def test_optimizer_and_clipping(options, kind, clip):
    course = Finetune(**options).course(context_for(*noisy(classifier()), vectors()))
    assert (course.optimizer, course.clip) == (kind, clip)


def test_a_batch_norm_learns_its_scale_and_bias_alone():
    body = "a = MatMul (x, w1)\nb = BatchNormalization (a, g, h, m, v)\nc = Relu (b)\ny = MatMul (c, w2)"
    weights = {"w1": (6, 12), "w2": (12, 4), "g": (12,), "h": (12,), "m": (12,), "v": np.ones(12, np.float32)}
    model = build("float[N,6] x", "float[N,4] y", body, weights)
    graph, reference = noisy(model, 0.3, only=lambda name: name not in "mv")
    before = trainable.state(graph)
    Finetune(**QUICK).run(graph, context_for(graph, reference, vectors(), right(model, vectors())))
    assert trainable.changed(graph, before) == {"w1", "w2", "g", "h"}


def test_an_interrupted_run_is_taken_up_and_ends_alike(tmp_path):
    def run(name, **options):
        graph, reference = noisy(classifier())
        context = context_for(graph, reference, vectors(), right(classifier(), vectors()), **options)
        Finetune(**QUICK, checkpoint=str(tmp_path / name)).run(graph, context)
        return to_model(graph).SerializeToString()

    with pytest.raises(KeyboardInterrupt):
        run("one.npz", monitor=trainable.Interrupting(33))
    assert run("one.npz") == run("other.npz")


def test_the_data_files_function_sees_labels_and_may_change_them():
    graph, reference = noisy(classifier())
    context, seen = context_for(graph, reference, vectors(), np.zeros(400, np.int32)), []

    def augment(feeds, random):
        seen.append(sorted(feeds))
        return {"labels": right(classifier(), feeds["x"])}

    context.data._origin.augment = augment
    Finetune(**QUICK).run(graph, context)
    assert seen == [["labels", "x"]] * len(seen)
    history = context.record["training"]["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["held_out"] > history[-1]["loss"]


def test_cut_inputs_are_refused():
    graph, reference = noisy(classifier())
    context = context_for(graph, reference, vectors(), np.zeros(400, np.int64))
    context.plan = trainable.plan_that_cut_inputs()
    with pytest.raises(UsageError, match="data do not fit"):
        Finetune().run(graph, context)


@pytest.mark.parametrize("option", ["steps", "batch", "patience", "memory", "rate"])
def test_what_has_to_be_positive(option):
    with pytest.raises(UsageError) as caught:
        Finetune(**{option: 0})
    assert caught.value.where == f"finetune.{option}"


def test_decay_must_not_be_negative():
    with pytest.raises(UsageError) as caught:
        Finetune(decay=-0.1)
    assert caught.value.where == "finetune.decay"


def test_a_quantized_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'float'"):
        surgeon.run(tiny.quantized(tmp_path / "q.onnx"), "finetune")


def test_cuts_and_training_take_turns(demo, tmp_path):
    """Half of the cut, training, the other half: the target is met, the plan covers both cuts and can be verified."""
    data = f"{demo.parent / 'digits_data.py'}:calibration"
    result = surgeon.run(
        demo, "finetune{macs=0.4 rounds=2 power=1 steps=20}", data=data, destination=tmp_path / "small.onnx"
    )
    rounds = result.report["passes"][-1]["rounds"]
    assert [round(each["macs"], 1) for each in rounds] == [0.7, 0.4]
    assert result.report["after"]["macs"] <= 0.4 * result.report["before"]["macs"]
    assert result.report["certificate"]["status"] == "exact"
    found = verify_files(demo, tmp_path / "small.onnx", tmp_path / "small.plan.json")
    assert found.certificate.status == "exact"


WRONG = ["macs=0", "rounds=0", "macs=0.5 checkpoint=x", "cut=sudden", "macs=0.5 power=0", "power=-3"]


@pytest.mark.parametrize("options", [*WRONG, "initial=1", "initial=-0.1", "macs=0.5 steps=3", "clip=0"])
def test_schedules_that_cannot_be(demo, options):
    with pytest.raises(surgeon.UsageError):
        surgeon.run(demo, f"finetune{{{options}}}")


def test_rounds_hold_out_the_same_samples(demo):
    """Otherwise what one round has learned by heart the next would take for better."""
    splits = []

    def note(self, share, random):
        splits.append(random.bit_generator.state["state"]["state"])
        return split(self, share, random)

    split = Samples.split
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Samples, "split", note)
        data = f"{demo.parent}/digits_data.py:calibration"
        surgeon.run(demo, "finetune{macs=0.8 rounds=2 power=1 steps=4},distill{steps=2}", data=data)
    assert len(splits) == 3
    assert len(set(splits)) == 1


def test_verify_repeats_no_training(demo, tmp_path):
    data = f"{demo.parent}/digits_data.py:calibration"
    surgeon.run(demo, "finetune{steps=4},prune", data=data, destination=tmp_path / "small.onnx")
    with pytest.raises(GateError, match="finetune before the cut"):
        verify_files(demo, tmp_path / "small.onnx", tmp_path / "small.plan.json")
