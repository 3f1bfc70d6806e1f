"""The accuracy budget: the search against scripted metrics, and runs that are as small as their metric allows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

import surgeon
from surgeon import cli
from surgeon.stats.metrics import Metric
from surgeon_passes.prune import Prune
from surgeon_passes.pruning import obs
from surgeon_passes.pruning.budget import BRACKET, Trial, best, smallest

LEAST = 0.02
UP = Metric("up", lambda outputs, truth: 0.0)
DOWN = Metric("down", lambda outputs, truth: 0.0, higher_is_better=False)


def search(curve, *, before=1.0, max_drop=0.1, metric=UP, least=LEAST, tries=7, left=lambda asked: asked):
    """Runs the search on a metric given as a function of the fraction; also returns what was asked for."""
    asked = []

    def attempt(fraction):
        asked.append(fraction)
        value = curve(fraction)
        if value is None:
            return None
        return Trial(fraction, left(fraction), value, metric.within(before, value, max_drop))

    return smallest(attempt, least, tries), asked


def answer(trials):
    return next((trial for trial in trials if trial.within), None)


@pytest.mark.parametrize("knee", [0.1, 0.3, 0.5, 0.77, 0.9])
def test_a_monotone_metric_is_followed_to_its_knee(knee):
    trials, asked = search(lambda fraction: 1.0 if fraction >= knee else 0.5)
    assert knee <= answer(trials).left <= knee + BRACKET
    assert len(asked) <= 7


def test_the_limit_of_the_drop_is_within():
    assert answer(search(lambda fraction: 0.9)[0]) is not None


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_metric_gives_the_smallest_that_was_measured_within(seed):
    random = np.random.default_rng(seed)
    measured = {}

    def noisy(fraction):
        measured[fraction] = float(1 - 0.3 * (1 - fraction) ** 3 + random.normal(0, 0.1))
        return measured[fraction]

    trials, _ = search(noisy)
    within = [fraction for fraction, value in measured.items() if value >= 0.9 - 1e-9]
    found = answer(trials)
    assert (found.asked if found else None) == min(within, default=None)
    assert [trial.left for trial in trials] == sorted(measured)


def test_a_flat_metric_leads_to_what_is_reachable_and_no_further():
    trials, asked = search(lambda fraction: 1.0)
    assert LEAST < min(asked) <= LEAST + BRACKET
    assert answer(trials).asked == min(asked)


def test_where_all_fail_the_mildest_was_mild():
    trials, _ = search(lambda fraction: 0.1)
    assert answer(trials) is None
    assert trials[-1].left >= 1 - BRACKET


def test_a_metric_better_than_the_original_is_within():
    trials, _ = search(lambda fraction: 2 - fraction, max_drop=0.0)
    assert answer(trials).left <= LEAST + BRACKET


def test_lower_may_be_better():
    trials, _ = search(lambda fraction: (1 - fraction) ** 2, before=0.0, max_drop=0.25, metric=DOWN)
    assert 0.5 <= answer(trials).left <= 0.5 + BRACKET


def test_what_is_no_number_is_not_within():
    assert answer(search(lambda fraction: float("nan"))[0]) is None
    assert not UP.within(float("nan"), 1.0, 1.0)


@pytest.mark.parametrize("tries", range(1, 12))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tries_are_bounded_and_none_is_repeated(tries, value):
    trials, asked = search(lambda fraction: value, tries=tries)
    assert 1 <= len(trials) == len(asked) <= min(tries, 7)
    assert len(set(asked)) == len(asked)
    assert all(LEAST < fraction < 1 for fraction in asked)


def test_what_cannot_be_reached_is_no_try():
    trials, asked = search(lambda fraction: None if fraction < 0.6 else 1.0, tries=3)
    assert len(trials) == 3 < len(asked)
    assert answer(trials).left < 0.7


def test_a_cut_that_went_further_than_asked_is_known_to_be_smaller():
    """Groups shrink in steps: what was asked for between two sizes gives the smaller one."""
    trials, asked = search(lambda fraction: 1.0, left=lambda fraction: np.floor(fraction * 4) / 4, least=0.25)
    assert answer(trials).left == 0.25
    assert len(asked) <= 3


def test_a_narrow_range_is_tried_once():
    trials, _ = search(lambda fraction: 1.0, least=0.99)
    assert len(trials) == 1


SETTLED = Trial(1.0, 1.0, 1.0, within=True, worth=1.0)


def best_of(worth, tries=7, least=LEAST, uncut=SETTLED, left=lambda asked: asked):
    """Runs the search for the best result; ``worth`` gives None where a cut is not within the budget."""
    asked = []

    def attempt(fraction):
        asked.append(fraction)
        value = worth(fraction)
        within = value is not None
        return Trial(fraction, left(fraction), 0.0, within, value if within else 1.0)

    return best(attempt, least, tries, uncut), asked


@pytest.mark.parametrize("optimum", [0.1, 0.3, 0.5, 0.62, 0.77, 0.9])
def test_the_best_need_not_be_the_smallest(optimum):
    """Smaller cuts leave less of the budget to what comes later."""
    trials, asked = best_of(lambda x: 0.2 + (x - optimum) ** 2, tries=10)
    found = min(trials, key=lambda trial: trial.worth)
    assert abs(found.asked - optimum) < 0.05
    assert len(asked) == len(set(asked)) <= 10
    assert trials == sorted(trials, key=lambda trial: trial.left)


@pytest.mark.parametrize("knee", [0.2, 0.55, 0.8, 0.95])
def test_where_smaller_is_better_the_knee_is_found_as_by_bisection(knee):
    trials, _ = best_of(lambda x: x if x >= knee else None, tries=12)
    assert 0 <= min(trial.asked for trial in trials if trial.within) - knee <= BRACKET


def test_where_no_cut_is_better_the_search_ends_near_the_original():
    trials, asked = best_of(lambda x: 2 - x, tries=20)
    assert all(trial.worth > 1 for trial in trials)
    assert 1 - max(asked) <= BRACKET
    assert len(asked) < 20


def test_where_the_original_is_not_within_either_any_cut_that_is_leads():
    trials, _ = best_of(
        lambda x: x if 0.4 < x < 0.6 else None, uncut=Trial(1.0, 1.0, 0.0, within=False, worth=1.0)
    )
    assert [trial.asked for trial in trials if trial.within]


def test_what_a_cut_went_further_is_not_tried_again():
    _, asked = best_of(lambda x: x, left=lambda x: min(x, 0.26))
    assert all(x < 0.26 or x > 0.5 for x in asked[1:])


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": -0.1},
        {"max_drop": 1.5},
        {"max_drop": 0.1, "ratio": 0.5},
        {"max_drop": 0.1, "macs": 0.5},
        {"max_drop": 0.1, "drop": ("w1:0=3",)},
    ],
)
def test_a_budget_excludes_targets(options):
    with pytest.raises(surgeon.UsageError) as caught:
        Prune(**options)
    assert caught.value.where == "prune.max_drop"


@pytest.fixture
def model(tmp_path):
    return tiny.convnet(tmp_path / "m.onnx")


@pytest.fixture
def data(tmp_path):
    return tiny.samples(tmp_path / "d.npz", 200, labels=False)


@pytest.fixture
def command(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def budget_of(report):
    return next(each["budget"] for each in report["passes"] if each["name"] == "prune")


def taken(budget):
    return next(point for point in budget["curve"] if point["taken"])


def test_unlabelled_data_are_enough(command, model, data, tmp_path, monkeypatch):
    """A tenth is held out for agreement, and the original is measured once however many cuts are tried."""
    measured = []
    error_curves = obs.error_curves

    def counted(*arguments, current=None, **keywords):
        measured.append(current)
        return error_curves(*arguments, current=current, **keywords)

    monkeypatch.setattr(obs, "error_curves", counted)
    out = tmp_path / "o.onnx"
    arguments = ["run", model, "-o", out, "--data", data, "--max-drop", 0.2, "--report", tmp_path, "--json"]
    code, text, err = command(*arguments)
    assert (code, err) == (0, "")
    report = json.loads(text)
    budget = budget_of(report)
    assert measured == [None]
    assert report["metric"]["name"] == budget["metric"] == "agreement"
    assert (budget["before"], budget["max_drop"], budget["by"]) == (1.0, 0.2, "macs")
    assert 3 <= len(budget["curve"]) <= 9
    assert sum(point["quick"] for point in budget["curve"]) <= 7
    assert [point["macs"] for point in budget["curve"]] == sorted(point["macs"] for point in budget["curve"])
    for point in budget["curve"]:
        assert point["macs"] <= point["asked"] * report["before"]["macs"] + 1
        assert point["within"] == (point["metric"] >= 0.8 - 1e-9)
    after = {name: report["after"][name] for name in ("macs", "params", "metric")}
    assert after == {name: taken(budget)[name] for name in after}
    lines = (tmp_path / "o.report.md").read_text().splitlines()
    table = lines[lines.index("## Accuracy budget") + 2 :]
    assert table[0].startswith("| asked | MACs | parameters | agreement | change |")
    assert sum("| taken |" in line for line in table) == 1


def test_the_answer_is_what_a_target_gives(model, data, tmp_path):
    found, again = tmp_path / "found.onnx", tmp_path / "again.onnx"
    first = surgeon.run(model, "prune{tries=3}", data=data, max_drop=0.2, destination=found)
    target = {"macs": taken(budget_of(first.report))["asked"]}
    second = surgeon.run(model, data=data, max_drop=0.2, target=target, destination=again)
    assert "budget" not in second.report["passes"][-1]
    assert found.read_bytes() == again.read_bytes()


def test_for_people(command, model, data):
    code, text, _ = command(
        "run", model, "--data", data, "--max-drop", 0.2, "--set", "prune.tries=2", "--no-latency"
    )
    assert code == 0
    lines = text.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("asked"))
    assert [word for word in lines[head].split() if word] == [
        "asked", "MACs", "parameters", "agreement", "change",
    ]  # fmt: skip
    last = next(k for k, line in enumerate(lines) if line.rstrip().endswith("original"))
    rows = lines[head + 1 : last]
    assert 3 <= len(rows) <= 4  # two tries, and a good refit of what they found
    assert all(row.split()[0].startswith("macs=") for row in rows)
    assert sum(row.rstrip().endswith("taken") for row in rows) == 1


def test_a_budget_that_no_cut_meets_is_exit_1_and_writes_nothing(command, model, data, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, text, err = command(
        "run",
        model,
        "--data",
        data,
        "--max-drop",
        0,
        "--metric",
        "cosine",
        "--set",
        "prune.tries=2",
        "--json",
    )
    assert code == 1
    error = json.loads(text)["error"]
    assert (error["kind"], error["where"]) == ("GateError", "--max-drop")
    assert "no cut costs at most 0 of cosine, 1.0000 before" in error["message"]
    assert "the mildest of 2" in error["message"]
    assert "the best cosine was 0.9" in error["message"]
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_another_measure_and_a_metric_where_lower_is_better(model, data, tmp_path):
    script = tmp_path / "own.py"
    script.write_text(
        "def far(outputs, original):\n    return abs(outputs[0] - original[0]).mean(axis=1)\n"
        "far.higher_is_better = False\n"
    )
    result = surgeon.run(
        model, "prune{by=params tries=4 score=l2}", data=data, metric=f"{script}:far", max_drop=0.02
    )
    budget = budget_of(result.report)
    assert (budget["before"], budget["by"]) == (0.0, "params")
    assert {point["within"] for point in budget["curve"]} == {True, False}
    assert result.report["after"]["metric"] == taken(budget)["metric"] <= 0.02
    sizes = [point["params"] for point in budget["curve"]]
    assert sizes == sorted(sizes)


def test_a_pass_may_leave_a_share_for_the_next(model, data):
    passes = "prune{max_drop=0.1 tries=2 by=size},quantize{guard=false}"
    report = surgeon.run(model, passes, data=data, max_drop=0.4, force=True).report
    assert budget_of(report)["max_drop"] == 0.1
    assert taken(budget_of(report))["metric"] >= 0.9
    assert report["after"]["metric"] >= 0.6


def test_a_budget_of_the_pass_needs_data_and_no_target(model, data):
    with pytest.raises(surgeon.UsageError, match="needs data") as caught:
        surgeon.run(model, "prune{max_drop=0.1}", data=data)
    assert caught.value.where == "prune.max_drop"
    with pytest.raises(surgeon.UsageError, match="either a target or a budget"):
        surgeon.run(model, "prune{max_drop=0.1}", data=data, evaluation=data, target={"macs": 0.5})


def test_where_nothing_can_go_that_is_the_reason(model, data):
    with pytest.raises(surgeon.GateError, match="nothing to do"):
        surgeon.run(model, data=data, max_drop=0.1, exclude=["Conv*"])


def test_a_metric_that_sees_no_loss_is_refused(model, tmp_path):
    np.savez(tmp_path / "w.npz", x=np.load(tiny.samples(tmp_path / "d.npz"))["x"], labels=np.full(20, 77))
    with pytest.raises(surgeon.UsageError, match="0 for the original already"):
        surgeon.run(model, evaluation=tmp_path / "w.npz", max_drop=0.1)


def test_calibration_never_sees_labels(model, tmp_path):
    evaluation = tiny.samples(tmp_path / "e.npz", 60)
    arrays = dict(np.load(tiny.samples(tmp_path / "d.npz", 60)))
    outputs = []
    for name, labels in (("a", arrays["labels"]), ("b", arrays["labels"][::-1]), ("c", None)):
        given = {"x": arrays["x"]} if labels is None else {"x": arrays["x"], "labels": labels}
        out = tmp_path / f"{name}.onnx"
        surgeon.run(
            model, "prune{tries=2}", data=given, evaluation=evaluation, max_drop=0.05, destination=out
        )
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("options", "allowed", "macs"),
    [
        (["prune.reconstruct=false", "prune.score=l2"], 0.2, 0.9),
        pytest.param(["prune.sensitivity=false"], 0.01, 0.52, marks=pytest.mark.slow),
    ],
    ids=["as it is", "refitted"],
)
def test_the_digit_classifier_keeps_its_accuracy(options, allowed, macs, command, demo, repository, tmp_path):
    """Ninety-six images, of which only the metric sees labels, say what a few cuts cost."""
    script = tmp_path / "few.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(repository / 'models')!r})\nimport digits_data\n"
        "def calibration():\n"
        "    batch = next(digits_data.calibration())\n"
        "    yield {name: values[:96] for name, values in batch.items()}\n"
    )
    sets = [word for option in [*options, "prune.tries=3"] for word in ("--set", option)]
    code, text, err = command(
        "run", demo, "-o", tmp_path / "o.onnx", "--data", f"{script}:calibration",
        "--eval", f"{repository / 'models' / 'digits_data.py'}:search", "--max-drop", allowed, "--metric", "top1",
        *sets, "--no-latency", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(text)
    budget = budget_of(report)
    assert len(budget["curve"]) == 3
    assert report["before"]["metric"] == budget["before"] >= 0.98
    assert report["after"]["metric"] == taken(budget)["metric"] >= budget["before"] - allowed
    assert report["after"]["macs"] == taken(budget)["macs"] <= macs * report["before"]["macs"]
    assert report["certificate"]["status"] == "exact"
