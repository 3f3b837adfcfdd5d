"""The command as a user meets it: a process, its exit code, what it prints."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r2m_jax import save_detector
from r2m_jax.checkpoints.convert import ConversionReport
from r2m_jax.progress import Reporter
from r2m_jax.version import __version__


def r2m(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "r2m_jax", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200", "JAX_PLATFORMS": "cpu"},
    )


def one_sentence(result):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


def test_help_names_every_command():
    result = r2m("--help")
    assert result.returncode == 0
    for command in ("demo", "convert", "info"):
        assert command in result.stdout
    assert r2m("--version").stdout == f"r2m-jax {__version__}\n"


def test_import_is_light():
    """Neither the package nor the parsing of a command line loads a framework."""
    code = (
        "import sys, r2m_jax, r2m_jax.cli.app;"
        "print([m for m in ('jax', 'flax', 'transformers', 'tensorflow', 'torch', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr


def test_scoring_does_not_load_tensorflow(detector, tmp_path):
    save_detector(detector, tmp_path / "m")
    code = (
        "import sys, numpy as np, r2m_jax as r2m;"
        f"d = r2m.load_detector({str(tmp_path / 'm')!r});"
        "print(d(np.zeros((2, 32, 32, 3), np.float32)).shape);"
        "print('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "(2, 2)\nFalse\n", result.stderr


@pytest.mark.integration
def test_convert_then_info(tiny_hf_dir, tmp_path):
    result = r2m("convert", tiny_hf_dir, tmp_path / "base")
    assert result.returncode == 0, result.stderr
    assert "matched    56 tensors" in result.stdout
    assert "head: the source has none" in result.stdout
    assert "unmatched  none" in result.stdout

    weights = load_file(tmp_path / "base/model.safetensors")
    weights["vision_model.post_layernorm.bias"] = weights["vision_model.post_layernorm.bias"] + 0.5
    weights["head.weight"] = np.ones((2, 64), np.float32)
    r2m("convert", tmp_path / "base", tmp_path / "tuned")
    save_file(weights, tmp_path / "tuned/model.safetensors", metadata={"format": "pt"})
    facts = json.loads(r2m("info", tmp_path / "tuned", "--base", tmp_path / "base", "--json").stdout)
    assert facts["sizes"]["layers"] == 3
    assert facts["kind"] == "converted"
    assert facts["head"] == "norm 11.31"
    assert facts["task vector"]["norm"] == "4"  # 64 biases moved by one half
    assert facts["task vector"]["post_norm/bias"] == "4"
    text = r2m("info", tmp_path / "base").stdout
    assert "zero: p(fake) = 0.5" in text
    assert "quick_gelu" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["convert", "nowhere", "OUT"], "nowhere does not exist"),
        (["convert", "HF", "OUT", "--dtype", "int4"], "--dtype int4"),
        (["convert", "HF", "OUT", "--activation", "gelu"], "contradicts"),
        (["convert", "HF", "HF"], "already exists"),
        (["convert", "NOTES", "OUT"], "no checkpoint of a known kind"),
        (["info", "OUT"], "OUT is no directory"),
        (["demo", "--images", "OUT", "--out", "OUT2"], "OUT"),
        (["demo", "--seed", "-1", "--out", "OUT2"], "seed"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tiny_hf_dir, tmp_path, arguments, named):
    (tmp_path / "notes.txt").write_text("hello")
    places = {"OUT": tmp_path / "OUT", "OUT2": tmp_path / "OUT2", "HF": tiny_hf_dir, "NOTES": tmp_path / "notes.txt"}
    before = sorted(path.name for path in tiny_hf_dir.iterdir())
    sentence = one_sentence(r2m(*(places.get(argument, argument) for argument in arguments)))
    assert named in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]
    assert sorted(path.name for path in tiny_hf_dir.iterdir()) == before


def test_unknown_options_are_usage_errors():
    result = r2m("demo", "--fast")
    assert result.returncode == 2
    assert "--fast" in result.stderr
    assert "Traceback" not in result.stderr


def test_plain_lines_where_there_is_no_terminal(capsys):
    reporter = Reporter(every_s=0.0)
    with reporter.track("work", 3, unit="steps") as advance:
        for _ in range(3):
            advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("work: 1/3, ")
    assert lines[0].endswith("s left  loss 0.5")
    assert lines[-1].startswith("work: 3 steps in ")


def test_report_folds_reasons(capsys, tmp_path):
    from r2m_jax.cli.convert import print_report

    left_out = [("text_model.a", "text tower"), ("text_model.b", "text tower"), ("logit_scale", "scale")]
    print_report(ConversionReport("a file", left_out=left_out, inferred=["[bold]x"]), tmp_path)
    out = capsys.readouterr().out
    assert "2 tensors: text tower (text_model.a …)" in out
    assert "inferred   [bold]x" in out
