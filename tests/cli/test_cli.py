"""The command line: exit codes, one-line errors, one JSON object, and a light start."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import tiny
from distributions import announce

from surgeon import cli, entries


@pytest.fixture
def model(tmp_path):
    return tiny.convnet(tmp_path / "m.onnx")


@pytest.fixture
def surgeon(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def spawn(*arguments: object, **keywords: object) -> subprocess.Popen[str]:
    """Starts the command; a shell that runs the tests in the background has it ignore Ctrl-C, which is undone here."""
    command = [sys.executable, "-m", "surgeon", *map(str, arguments)]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **keywords,
    )


def test_starting_up_imports_nothing_heavy():
    program = (
        "import sys; from surgeon.cli.parser import build_parser; build_parser().format_help(); import surgeon.cli.commands;"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'networkx', 'scipy', 'onnx_graphsurgeon', 'rich'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_version(surgeon):
    code, out, _ = surgeon("--help")
    assert code == 0
    for command in ("run", "inspect", "explain", "bench", "size", "verify", "passes", "exit codes"):
        assert command in out
    assert surgeon("--version")[0] == 0
    for command in ("run", "inspect", "explain", "bench", "size", "verify", "passes"):
        assert surgeon(command, "--help")[0] == 0


def test_run_json_is_one_object_and_silent_otherwise(surgeon, model, tmp_path):
    code, out, err = surgeon("run", model, "-o", tmp_path / "o.onnx", "--set", "prune.ratio=0.5", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert out.count("\n") == 1
    assert facts["schema"] == 1
    assert facts["model"] == str(model)
    assert facts["output"] == str(tmp_path / "o.onnx")
    assert set(facts["before"]) == set(facts["after"]) == {
        "params", "macs", "bytes", "latency_ms", "metric", "nonzeros", "distinct_values", "gzip_bytes", "zstd_bytes",
    }  # fmt: skip
    assert facts["before"]["gzip_bytes"] is None
    assert facts["before"]["latency_ms"] is None
    assert {"total", "cut", "whole"} == set(facts["groups"])
    assert {"status", "max_rel_err", "probes"} == set(facts["certificate"])
    assert all(isinstance(each["seconds"], float) for each in facts["passes"])


def test_run_with_evaluation_measures_latency_in_json(surgeon, model, tmp_path):
    data = tiny.samples(tmp_path / "d.npz")
    out = json.loads(surgeon("run", model, "-o", tmp_path / "o.onnx", "--eval", data, "--json")[1])
    assert out["before"]["latency_ms"] > 0
    assert out["after"]["metric"] is not None


def test_run_for_people(surgeon, model, tmp_path):
    code, out, _ = surgeon("run", model, "--target", "macs=0.6", "--report", tmp_path / "r")
    assert code == 0
    for said in ("parameters", "MACs", "latency", "of 2 channel groups", "proved", "m.surgeon.onnx"):
        assert said in out
    written = {path.name for path in tmp_path.iterdir()}
    assert {
        "m.surgeon.onnx",
        "m.surgeon.plan.json",
        "m.surgeon.recipe.toml",
        "m.surgeon.report.json",
        "r",
    } <= written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--passes", "prun"], "did you mean 'prune'"),
        (["--passes", "prune{raito=0.5}"], "did you mean 'ratio'"),
        (["--set", "prnue.ratio=.5"], "did you mean 'prune'"),
        (["--set", "prune.ratio=nan"], "finite"),
        (["--set", "prune.ratio=0"], "prune.ratio"),
        (["--target", "mac=0.5"], "did you mean 'macs'"),
        (["--target", "macs"], "expected key=fraction"),
        (["--target", "macs=0.5,macs=0.4"], "given twice"),
        (["--target", "macs=half"], "number"),
        (["--metric", "topp1"], "did you mean"),
        (["--data", "none.npz"], "none.npz"),
        (["--seed", "x"], "--seed"),
        (["--threads", "0"], "threads"),
        (["--max-drop", "2"], "max"),
        (["--recipe", "none.toml"], "none.toml"),
        (["--exclude", "zzz"], "matches no node"),
        (["--targt", "macs=0.5"], "did you mean '--target'"),
        (["--targ", "macs=0.5"], "did you mean '--target'"),
        (["surplus"], "surplus"),
        (["--set"], "expected one argument"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(surgeon, model, tmp_path, arguments, said):
    before = sorted(tmp_path.iterdir())
    code, out, err = surgeon("run", model, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("surgeon: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [[], ["rnu"], ["--frobnicate"], ["run"], ["explain", "x"], ["verify", "a", "b"]]
)
def test_bad_grammar(surgeon, arguments):
    code, out, err = surgeon(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_unknown_command_is_suggested(surgeon):
    assert "did you mean 'run'" in surgeon("rnu")[2]


@pytest.mark.parametrize("output", ["m.onnx", ".", "none/o.onnx"])
def test_bad_output_is_refused_before_work_starts(surgeon, model, tmp_path, output):
    raw = model.read_bytes()
    assert surgeon("run", model, "-o", tmp_path / output, "--data", "not looked at yet")[0] == 2
    assert model.read_bytes() == raw


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n"])
def test_bad_models(surgeon, tmp_path, content):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    for command in (
        ("run", path),
        ("inspect", path),
        ("explain", path, "x"),
        ("bench", path),
        ("run", path, "--json"),
    ):
        code, _, err = surgeon(*command)
        assert code == 2
        assert err.count("\n") == 1


def test_bad_data_are_exit_2(surgeon, model, tmp_path):
    np.savez(tmp_path / "w.npz", wrong=np.zeros((3, 3), np.float32))
    code, _, err = surgeon("run", model, "--data", tmp_path / "w.npz")
    assert (code, err.count("\n")) == (2, 1)


def test_a_failed_gate_is_exit_1_and_says_so_in_json(surgeon, model, tmp_path):
    code, out, err = surgeon(
        "run", model, "-o", tmp_path / "o.onnx", "--passes", "clean", "--target", "macs=0.5", "--json"
    )
    assert code == 1
    assert json.loads(out)["error"]["kind"] == "GateError"
    assert json.loads(out)["error"]["exit_code"] == 1
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_internal_errors_are_one_line_unless_debug(surgeon, model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("surgeon.api.run", fail)
    code, _, err = surgeon("run", model)
    assert (code, err) == (
        3,
        "surgeon: error: internal error: RuntimeError: two\\nlines (run with --debug)\n",
    )
    code, _, err = surgeon("run", model, "--debug")
    assert code == 3
    assert "Traceback" in err


def test_interrupt_is_130_and_one_line(surgeon, model, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgeon.job.run_passes", interrupt)
    code, _, err = surgeon("run", model)
    assert (code, err.count("\n")) == (130, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_leave_nothing_half_written(model, tmp_path, number, code):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\ndef data():\n    print('up', flush=True)\n    time.sleep(30)\n    yield {}\n"
    )
    process = spawn("run", model, "-o", tmp_path / "o.onnx", "--data", slow)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"m.onnx", "slow.py"}


def test_closed_pipe(model):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "surgeon", "passes", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_bench(surgeon, model):
    code, out, err = surgeon("bench", model, model, "--rounds", "3", "--json")
    facts = json.loads(out)
    assert (code, err, facts["schema"], facts["threads"]) == (0, "", 1, 1)
    assert [each["model"] for each in facts["models"]] == [str(model)] * 2
    assert facts["models"][0]["ratio"] == 1.0
    assert all(each["median_ms"] > 0 for each in facts["models"])
    code, out, _ = surgeon("bench", model, "--rounds", "3")
    assert code == 0
    assert "median" in out


def test_bench_json_contract(surgeon, model):
    code, out, _ = surgeon(
        "bench", model, model, "--seconds", "0.01", "--warm-up", "0", "--batch", "2", "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert set(facts) == {"schema", "threads", "rounds", "warm_up", "batch", "clock", "models"}
    assert (facts["warm_up"], facts["batch"]) == (0, 2)
    assert facts["rounds"] >= 3
    assert facts["clock"] in ("processor", "wall")
    ratios = {"ratio", "ratio_p10", "ratio_p90", "ratio_error"}
    assert all(
        set(row) == {"model", "median_ms", "p10_ms", "p90_ms", "speedup"} | ratios for row in facts["models"]
    )
    second = facts["models"][1]
    assert second["ratio_p10"] <= second["ratio"] <= second["ratio_p90"]
    assert second["ratio_error"] >= 0
    assert (
        json.loads(surgeon("bench", model, "--threads", "2", "--rounds", "2", "--json")[1])["clock"] == "wall"
    )


def test_bench_on_real_inputs_and_open_sizes(surgeon, model, tmp_path):
    data = tiny.samples(tmp_path / "d.npz")
    assert surgeon("bench", model, "--rounds", "2", "--data", data, "--batch", "4")[0] == 0
    assert surgeon("bench", model, "--rounds", "2", "--size", "N=5")[0] == 0
    code, _, err = surgeon("bench", model, "--size", "M=5")
    assert (code, "no input has an open dimension" in err, "'N'" in err or ": N" in err) == (2, True, True)
    assert surgeon("bench", model, "--size", "5")[0] == 2
    assert surgeon("bench", model, "--seconds", "1", "--rounds", "3")[0] == 2
    assert surgeon("bench", model, "--seconds", "0")[0] == 2
    assert surgeon("bench", tmp_path / "missing.onnx")[0] == 2


def test_bench_gives_each_model_inputs_that_fit_it(surgeon, model, tmp_path):
    other = onnx.load(model)
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    other.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 16
    onnx.save(other, tmp_path / "larger.onnx")
    code, out, _ = surgeon("bench", model, tmp_path / "larger.onnx", "--rounds", "2", "--json")
    assert (code, len(json.loads(out)["models"])) == (0, 2)


def test_bench_refuses_other_inputs_and_bad_numbers(surgeon, model, tmp_path):
    other = tiny.quantized(tmp_path / "q.onnx")
    renamed = tmp_path / "other.onnx"
    renamed.write_bytes(model.read_bytes().replace(b"\x01x", b"\x01z"))
    assert surgeon("bench", model, renamed, "--rounds", "2")[0] == 2
    assert surgeon("bench", other, "--rounds", "0")[0] == 2
    assert surgeon("bench", other, "--threads", "many")[0] == 2


def test_passes(surgeon):
    code, out, _ = surgeon("passes", "--json")
    listed = {each["name"]: each for each in json.loads(out)["passes"]}
    assert code == 0
    assert {"clean", "prune"} <= set(listed)
    assert listed["prune"]["distribution"] == "onnx-surgeon"
    options = {option["name"]: option for option in listed["prune"]["options"]}
    assert options["ratio"]["type"] == "float | none"
    assert options["ratio"]["doc"]
    assert "prune" in surgeon("passes")[1]
    code, out, _ = surgeon("passes", "prune")
    assert code == 0
    assert "ratio" in out
    assert len(json.loads(surgeon("passes", "prune", "--json")[1])["passes"]) == 1
    assert surgeon("passes", "prnue")[0] == 2


def test_a_broken_pass_is_listed_and_the_others_work(surgeon, model, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    announce(site, "bad-thing", {entries.PASSES: {"wrong": "no_such_module:Wrong"}})
    monkeypatch.syspath_prepend(str(site))
    code, out, _ = surgeon("passes")
    assert code == 0
    assert "broken: wrong: bad-thing 0.0.1" in out
    assert "prune" in out
    assert surgeon("run", model, "--set", "prune.ratio=0.5", "--json")[0] == 0
    code, _, err = surgeon("run", model, "--passes", "wrong")
    assert (code, err.count("\n")) == (2, 1)
    assert "bad-thing 0.0.1" in err


def test_inspect_and_explain(surgeon, model):
    code, out, err = surgeon("inspect", model, "--json")
    facts = json.loads(out)
    assert (code, err, facts["schema"]) == (0, "", 1)
    assert {"nodes", "params", "macs", "unknown_ops", "groups", "pinned", "ceiling"} <= set(facts)
    assert surgeon("inspect", model)[0] == 0
    code, out, _ = surgeon("explain", model, "w1")
    assert code == 0
    assert out
    assert json.loads(surgeon("explain", model, "w1:0", "w2:1", "--json")[1])["schema"] == 1
    code, _, err = surgeon("explain", model, "nothing")
    assert (code, err.count("\n")) == (2, 1)


def test_module_can_be_run():
    process = spawn("--version")
    started = time.perf_counter()
    out, _ = process.communicate(timeout=20)
    assert out.startswith("surgeon ")
    assert time.perf_counter() - started < 10


def test_size_side_by_side(surgeon, model, tmp_path):
    assert (
        surgeon("run", model, "-o", tmp_path / "o.onnx", "--set", "prune.ratio=0.5", "--no-latency")[0] == 0
    )
    code, out, err = surgeon("size", model, tmp_path / "o.onnx", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["schema"] == 1
    before, after = facts["models"]
    assert (before["model"], after["model"]) == (str(model), str(tmp_path / "o.onnx"))
    for row, path in ((before, model), (after, tmp_path / "o.onnx")):
        assert row["bytes"] == path.stat().st_size
        assert row["gzip_bytes"] == len(gzip.compress(path.read_bytes(), 9, mtime=0))
    assert [each["name"] for each in before["tensors"]] == ["w1", "w2", "w3"]
    assert after["weights"]["elements"] < before["weights"]["elements"]


def test_size_for_people(surgeon, model):
    code, out, _ = surgeon("size", model)
    assert code == 0
    assert "distinct" in out
    assert "w2" not in out
    code, out, _ = surgeon("size", model, "--tensors")
    assert code == 0
    assert all(name in out for name in ("w1", "w2", "w3", "total"))


def test_size_of_what_is_no_model(surgeon, tmp_path):
    code, _, err = surgeon("size", tmp_path / "none.onnx")
    assert code == 2
    assert "none.onnx" in err


def test_run_measures_sizes_when_asked(surgeon, model, tmp_path):
    arguments = (
        "run",
        model,
        "-o",
        tmp_path / "o.onnx",
        "--set",
        "prune.ratio=0.5",
        "--no-latency",
        "--sizes",
    )
    code, out, _ = surgeon(*arguments)
    assert code == 0
    assert all(label in out for label in ("gzip", "zstd", "non-zero weights", "distinct values"))
    facts = json.loads((tmp_path / "o.report.json").read_text())
    for figures, path in ((facts["before"], model), (facts["after"], tmp_path / "o.onnx")):
        measured = json.loads(surgeon("size", path, "--json")[1])["models"][0]
        assert {key: measured[key] for key in figures if key in measured} == {
            key: figures[key] for key in figures if key in measured
        }
        assert {"nonzeros", "distinct_values", "gzip_bytes", "zstd_bytes"} <= figures.keys() & measured.keys()
