"""The pass ``reconstruct``: what was cut or damaged comes nearer to the original, without labels, or stays as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import trainable
from ops.oracle import build
from trainable import classifier, context_for, error, images, noisy, picture_model, vectors

import surgeon
from surgeon.errors import GateError, UsageError
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.sources import load_script
from surgeon_passes.reconstruct import Reconstruct

QUICK = {"steps": 60, "rate": 5e-3, "batch": 16}


def distance(demo, model, feeds):
    first, second = (run(session(each), feeds)[0] for each in (onnx.load(demo), model))
    return float(np.square(first - second).mean() / first.var())


def test_a_hard_cut_is_made_up_for_on_images_it_has_not_seen(demo):
    options = {
        "data": f"{demo.parent}/digits_data.py:calibration",
        "evaluation": f"{demo.parent}/digits_data.py:test",
    }
    cut = surgeon.run(demo, trainable.CUT, **options)
    better = surgeon.run(demo, f"{trainable.CUT},reconstruct{{steps=30}}", **options)
    module = load_script(demo.parent / "digits_data.py")
    unseen = {"input": np.concatenate([batch["input"] for batch in module.test()])}
    assert distance(demo, better.model, unseen) < 0.3 * distance(demo, cut.model, unseen)
    assert better.report["after"]["metric"] > cut.report["after"]["metric"] + 0.3
    assert better.report["certificate"]["status"] == "exact"
    facts = better.report["passes"][-1]
    assert facts["changed"]
    assert facts["variants"] == 0
    assert facts["training"]["stopped"] == {}
    blocks = facts["training"]["blocks"]
    assert [each["block"] for each in blocks[-2:]] == ["logits", "logits, 3 blocks"]
    assert all(each["error_after"] <= each["error_before"] for each in blocks)
    assert all(each["kept"] == (each["error_after"] < each["error_before"]) for each in blocks)
    assert facts["training"]["seconds"] > 0


def test_labels_are_not_read():
    results = []
    for labels in (None, np.zeros(400, np.int64)):
        graph, reference = noisy(classifier())
        context = context_for(graph, reference, vectors(), labels)
        results.append(to_model(Reconstruct(**QUICK).run(graph, context)).SerializeToString())
    assert results[0] == results[1]


def test_damage_is_undone_and_seeds_and_threads_decide_nothing_else():
    results = []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        graph, reference = noisy(classifier())
        before = error(classifier(), graph, vectors(200, 9))
        Reconstruct(**QUICK).run(graph, context_for(graph, reference, vectors(), seed=seed, threads=threads))
        assert error(classifier(), graph, vectors(200, 9)) < 0.3 * before
        results.append(to_model(graph).SerializeToString())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(("pattern", "stays"), [("w2", "w2"), ("MatMul_s", "w2"), ("w?", "w1")])
@pytest.mark.parametrize("of_the_run", [False, True])
def test_what_is_excluded_stays(pattern, stays, of_the_run):
    graph, reference = noisy(classifier())
    before = trainable.state(graph)
    context = context_for(graph, reference, vectors(), exclude=(pattern,) if of_the_run else ())
    Reconstruct(**QUICK, exclude=() if of_the_run else (pattern,)).run(graph, context)
    assert stays not in trainable.changed(graph, before)
    assert trainable.changed(graph, before)


def test_nothing_to_learn_is_told_and_fails_the_run(demo):
    graph, reference = noisy(classifier(), 0)
    before, context = trainable.state(graph), context_for(graph, reference, vectors())
    Reconstruct(**QUICK).run(graph, context)
    assert trainable.changed(graph, before) == set()
    assert context.record["changed"] is False
    with pytest.raises(GateError, match="nothing"):
        surgeon.run(demo, "reconstruct{steps=1}", data=f"{demo.parent}/digits_data.py:search")


def test_a_rate_that_is_too_large_changes_nothing():
    graph, reference = noisy(classifier())
    before, context = trainable.state(graph), context_for(graph, reference, vectors())
    Reconstruct(steps=20, rate=1e9).run(graph, context)
    assert trainable.changed(graph, before) == set()
    assert context.record["changed"] is False
    assert [each["kept"] for each in context.record["training"]["blocks"]] == [False]
    assert "no block better" in context.warnings[0]


def test_weights_of_another_type_are_named_and_nothing_else_is_said():
    body = "a = Cast <to = 11> (x)\nb = MatMul (a, w)\ny = Cast <to = 1> (b)"
    graph, reference = noisy(build("float[N,6] x", "float[N,4] y", body, {"w": np.ones((6, 4))}))
    context = context_for(graph, reference, vectors())
    Reconstruct(**QUICK).run(graph, context)
    assert context.record["training"]["stopped"] == {"w": "it is float64, and only float32 is trained"}
    assert len(context.warnings) == 1


def test_images_are_varied_and_others_only_by_their_own_function():
    graph, reference = noisy(picture_model())
    for wanted in (0, 2):
        context = images(graph, reference, 24)
        Reconstruct(**QUICK, variants=wanted).run(graph, context)
        assert context.record["variants"] == wanted
    graph, reference = noisy(classifier())
    with pytest.raises(UsageError, match="only images") as caught:
        Reconstruct(**QUICK, variants=1).run(graph, context_for(graph, reference, vectors()))
    assert "augment" in caught.value.hint


def test_little_memory_means_no_variants():
    graph, reference = noisy(picture_model())
    context = images(graph, reference, 300)
    Reconstruct(steps=2, memory=1).run(graph, context)
    assert context.record["variants"] == 0


def test_a_function_of_the_data_file_is_used():
    graph, reference = noisy(classifier())
    context, seen = context_for(graph, reference, vectors()), []

    def augment(feeds, random):
        seen.append(len(feeds["x"]))
        return {"x": feeds["x"] + 0.1 * random.standard_normal(feeds["x"].shape).astype(np.float32)}

    context.data._origin.augment = augment
    Reconstruct(**QUICK, variants=2).run(graph, context)
    assert context.record["variants"] == 2
    assert sum(seen) == 800
    assert context.record["changed"]


def test_cut_inputs_do_not_fit_the_data_any_more():
    graph, reference = noisy(classifier())
    before, context = trainable.state(graph), context_for(graph, reference, vectors())
    context.plan = trainable.plan_that_cut_inputs()
    Reconstruct(**QUICK).run(graph, context)
    assert trainable.changed(graph, before) == set()
    assert "data do not fit" in context.warnings[0]


def test_without_an_original_there_is_nothing_to_learn():
    graph, _ = noisy(classifier())
    with pytest.raises(UsageError, match="no original"):
        Reconstruct().run(graph, context_for(graph, None, vectors()))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"memory": 0}, "memory"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"variants": -1}, "variants"),
    ],
)
def test_wrong_options_are_refused(options, where):
    with pytest.raises(UsageError) as caught:
        Reconstruct(**options)
    assert caught.value.where == f"reconstruct.{where}"


def test_a_quantized_model_is_refused(tmp_path):
    import tiny

    with pytest.raises(UsageError, match="'float'"):
        surgeon.run(tiny.quantized(tmp_path / "q.onnx"), "reconstruct")
