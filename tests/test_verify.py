"""The proof accepts right cuts, rejects wrong ones, and says which kind of certificate it gives."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, drop, features, images, of_size, solved

from surgeon.errors import GateError
from surgeon.verify import Certificate, masked, prove, relative_error


def cut_two_layers():
    found = solved(features("c = Sigmoid (a)\nb = MatMul (c, w)", 10, {"w": (12, 10)}))
    smaller, plan = found.cut({of_size(found, 12).id: drop(12, 2, 5)})
    return found, smaller, plan


def test_a_right_cut_is_exact():
    found, smaller, plan = cut_two_layers()
    certificate = prove(found.analysis, smaller, plan.tensors)
    assert certificate.status == "exact"
    assert certificate.max_rel_err <= 1e-5
    assert certificate.probes == 3  # the probe sizes, batch 1 and batch 3


def test_real_inputs_are_probes_too():
    found, smaller, plan = cut_two_layers()
    feeds = [{"x": np.full((4, 7, 5), 2.5, np.float32)}]
    assert prove(found.analysis, smaller, plan.tensors, feeds=feeds).probes == 4


def test_a_weight_that_was_changed_is_noticed():
    found, smaller, plan = cut_two_layers()
    weight = smaller.nodes[0].inputs[1]
    weight.values = weight.values + np.float32(0.01)
    with pytest.raises(GateError, match="differs from the masked original"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_wrong_index_is_noticed():
    """The consumer drops another channel than the producer."""
    found, smaller, plan = cut_two_layers()
    whole = found.analysis.graph.nodes[2].inputs[1].values
    smaller.nodes[2].inputs[1].values = np.delete(whole, [3, 5], axis=0)
    with pytest.raises(GateError, match="differs from the masked original"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_plan_that_says_something_else_is_noticed():
    found, smaller, plan = cut_two_layers()
    other = {
        name: {axis: tuple(k for k in range(12) if k not in (0, 1)) for axis in axes}
        for name, axes in plan.tensors.items()
    }
    with pytest.raises(GateError, match="differs"):
        prove(found.analysis, smaller, other)


@pytest.mark.parametrize("offset", [-15.0, 30.0])
def test_outputs_that_a_sigmoid_has_all_but_rounded_away_are_compared_before_it(offset):
    weights = {"w1": (7, 12), "w2": (12, 5), "b": np.full(5, offset, np.float32)}
    body = "a = MatMul (x, w1) r = Relu (a) s = MatMul (r, w2) t = Add (s, b) y = Sigmoid (t)"
    found = solved(build("float[N,7] x", "float[N,5] y", body, weights))
    smaller, plan = found.cut({of_size(found, 12).id: drop(12, 2, 5)})
    assert prove(found.analysis, smaller, plan.tensors).status == "exact"
    assert smaller.outputs[0].name == "y"
    smaller.nodes[0].inputs[1].values = smaller.nodes[0].inputs[1].values * np.float32(1.01)
    with pytest.raises(GateError, match="differs from the masked original"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_sigmoid_of_what_is_an_output_too_or_an_input_is_compared_as_it_is():
    body = "a = MatMul (x, w1) t = MatMul (a, w2) y = Sigmoid (t) z = Sigmoid (x)"
    weights = {"w1": (7, 12), "w2": (12, 5)}
    found = solved(build("float[N,7] x", "float[N,5] y, float[N,5] t, float[N,7] z", body, weights))
    smaller, plan = found.cut({of_size(found, 12).id: drop(12, 2, 5)})
    assert prove(found.analysis, smaller, plan.tensors).status == "exact"


def test_a_model_that_does_not_load_is_not_proved():
    found, smaller, plan = cut_two_layers()
    smaller.nodes[1].op = "NoSuchOperator"
    with pytest.raises(GateError, match="does not load"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_model_that_does_not_run_is_not_proved():
    found, smaller, plan = cut_two_layers()
    weight = smaller.nodes[2].inputs[1]
    weight.values = weight.values[:-1]
    with pytest.raises(GateError, match=r"does not (load|run)"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_statistic_over_a_cut_axis_gives_a_structural_certificate():
    found = solved(features("b = LayerNormalization (a, s)", 12, {"s": (12,)}))
    smaller, plan = found.cut({found.groups[0].id: drop(12, 2, 5)})
    certificate = prove(found.analysis, smaller, plan.tensors, structural=True)
    assert certificate.status == "structural"
    assert certificate.max_rel_err > 1e-4
    with pytest.raises(GateError, match="differs"):
        prove(found.analysis, smaller, plan.tensors)


def test_a_structural_cut_that_happens_to_be_exact_is_called_exact():
    found, smaller, plan = cut_two_layers()
    assert prove(found.analysis, smaller, plan.tensors, structural=True).status == "exact"


def test_what_is_masked_is_zero_and_divisors_are_not():
    weights = {"s": (12,), "o": (12,), "m": (12,), "v": np.linspace(1, 2, 12, dtype=np.float32)}
    found = solved(images("b = BatchNormalization (a, s, o, m, v)", 12, weights))
    _, plan = found.cut({found.groups[0].id: drop(12, 4)})
    constants = {
        tensor.name: tensor.values
        for node in masked(found.analysis, plan.tensors).nodes
        for tensor in node.inputs[1:]
    }
    assert not constants["w_in"][4].any()
    assert not constants["w_out"][:, 4].any()
    assert (constants["s"][4], constants["o"][4]) == (0, 0)
    assert constants["v"][4] > 0
    assert constants["w_in"][3].all()
    original = found.analysis.graph.nodes[0].inputs[1].values
    assert original.all()


def test_a_model_that_runs_on_none_of_the_probes_is_not_proved():
    """Made-up positions are out of range: nothing can be said, and the hint asks for real inputs."""
    model = build(
        "float[N,7,5] x, int64[1] position",
        "float[N,1,3] y",
        "a = MatMul (x, w1)\ni = Sub (offset, position)\ng = Gather <axis=1> (a, i)\ny = MatMul (g, w2)",
        {"w1": (5, 12), "offset": np.array([1000]), "w2": (12, 3)},
    )
    found = solved(model)
    smaller, plan = found.cut({found.groups[0].id: drop(12, 0)})
    with pytest.raises(GateError, match="runs on none") as caught:
        prove(found.analysis, smaller, plan.tensors)
    assert "--data" in (caught.value.hint or "")
    feeds = [{"x": np.ones((2, 7, 5), np.float32), "position": np.array([997])}]
    assert prove(found.analysis, smaller, plan.tensors, feeds=feeds).status == "exact"


def test_relative_errors():
    one = [np.array([1.0, -2.0], np.float32)]
    assert relative_error(one, one) == 0
    assert relative_error(one, [np.array([1.0, -2.2], np.float32)]) == pytest.approx(0.1, rel=1e-3)
    assert relative_error(one, [np.array([1.0], np.float32)]) == float("inf")
    assert relative_error(one, [np.array([np.nan, -2.0], np.float32)]) == float("inf")
    assert relative_error([np.array([np.inf, 1.0])], [np.array([np.inf, 1.0])]) == 0
    assert relative_error([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0
    assert relative_error([np.array([1, 2])], [np.array([1, 2])]) == 0
    assert relative_error([np.array([1, 2])], [np.array([1, 3])]) == float("inf")
    assert relative_error([np.array([True])], [np.array([True])]) == 0


def test_certificates_as_json():
    assert Certificate("exact", 0.0, 3).to_json() == {"status": "exact", "max_rel_err": 0.0, "probes": 3}


def test_answers_that_are_not_finite_prove_nothing():
    nothing = np.full((12, 10), np.nan, np.float32)
    found = solved(features("c = Sigmoid (a)\nb = MatMul (c, w)", 10, {"w": nothing}))
    smaller, plan = found.cut({of_size(found, 12).id: drop(12, 2, 5)})
    certificate = prove(found.analysis, smaller, plan.tensors)
    assert (certificate.status, certificate.max_rel_err) == ("structural", None)
