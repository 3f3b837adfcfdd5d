"""What a `pip install` of the wheel brings."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.integration
def test_wheel_holds_the_library_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"r2m_jax"}
    for needed in ("models/tiny_base/model.safetensors", "demo/full.yaml", "recipes/train/specialist.yaml", "py.typed"):
        assert f"r2m_jax/{needed}" in names
    # Run from the wheel, outside the repository.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import r2m_jax as r; d = r.load_detector(r.tiny_base()); print(r.__file__, d.config.hidden_size)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        timeout=120,
    )
    assert result.stdout == f"{tmp_path / 'site' / 'r2m_jax' / '__init__.py'} 192\n", result.stderr


def test_layers_depend_one_way():
    """`merging` takes plain trees; `trees` and `parallel` know nothing of detectors; nobody imports the top."""
    allowed = {
        "trees": {"errors"},
        "parallel": {"errors", "atomic"},
        "models": {"errors", "trees"},
        "checkpoints": {"errors", "atomic", "trees", "models", "parallel", "version"},
        "data": {"errors", "atomic", "checkpoints", "trees"},
        "merging": {"errors", "trees"},
        "compression": {"errors", "trees", "models", "checkpoints", "merging", "parallel"},
        "training": {"errors", "atomic", "trees", "models", "data", "checkpoints", "parallel"},
        "evaluation": {"errors", "atomic", "trees", "models", "data", "checkpoints", "parallel", "training"},
        "recipes": {"errors", "models", "data", "checkpoints", "training", "merging", "evaluation"},
        "export": {"errors", "data", "models"},
    }
    for folder, others in allowed.items():
        for path in (ROOT / "r2m_jax" / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith("r2m_jax."):
                    target = words[1].split(".")[1]
                    assert target in others | {folder}, f"{path.relative_to(ROOT)}: {line.strip()}"
            if folder == "merging":
                assert "flax" not in path.read_text().lower(), path
