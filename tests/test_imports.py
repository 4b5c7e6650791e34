"""The import arrows of the design, read from the source, and an `import mmssl` that stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmssl

ROOT = Path(mmssl.__file__).parent
# Importable by all, and import nothing of ours but one another.
BASE = {"errors", "registry", "config", "keys", "paths", "statistics"}
TOKENS = {"tokenizers", "nn"}
MODEL = {"encoder", "encoder_config", "features", "losses", "masking", "joint_masking", "trajectory_masking"} | TOKENS
WINGS = {"data", "envs", "weights", "methods"} | MODEL
JOBS = {"training", "evaluation", "control", "report", "recording"}
# part -> the parts that it may import, besides itself and the base
ARROWS = {
    "nn": set(),
    "tokenizers": {"nn"},
    "masking": TOKENS,
    "joint_masking": TOKENS | {"masking"},
    "trajectory_masking": TOKENS | {"masking", "joint_masking"},
    "features": set(),
    "encoder_config": TOKENS,
    "losses": TOKENS,
    "encoder": TOKENS | {"masking", "features", "encoder_config"},
    "methods": MODEL,
    "weights": MODEL | {"methods"},
    "data": set(),
    "envs": set(),
    "report": set(),
    "training": WINGS | {"report"},
    "evaluation": WINGS | {"training", "report"},
    "control": WINGS | {"training", "report"},
    "recording": {"control", "envs", "data"},
    "demo": WINGS | {"demo_plan", "demo_fitting", "demo_trajectories"} | JOBS,
    "demo_plan": set(),
    "demo_fitting": WINGS | {"training"},
    "demo_trajectories": {"demo_plan", "demo_fitting", "demo_acting", "demo_filling"} | WINGS | JOBS,
    "demo_acting": WINGS | {"control", "report"},
    "demo_filling": WINGS,
    "doctor": {"doctor_checks", "doctor_data"} | WINGS | {"training", "evaluation", "control", "report", "recording"},
    "doctor_checks": WINGS | {"recording"},
    "doctor_data": {"data"},
    "trajectories": WINGS | {"training", "evaluation", "control", "report"},
    "benchmark": WINGS | {"training", "evaluation", "control", "report", "recording"},
    "cli": WINGS | {"training", "evaluation", "control", "report", "recording", "demo", "doctor", "benchmark"},
    "__init__": {"errors"},
}
SOURCES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Parts of mmssl that a file imports anywhere, in functions too."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "mmssl" else [node.module]
        parts |= {name.split(".")[1] for name in names if name.startswith("mmssl.")}
    return parts


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    part = part_of(path)
    if path == ROOT / "__init__.py":
        return_types_only = imported_parts(path)
        assert return_types_only <= {"errors", "encoder", "methods", "weights", "data"}
        return
    allowed = BASE if part in BASE else ARROWS[part] | BASE | {part}
    assert imported_parts(path) <= allowed | {"__version__"}


def test_registry_and_config_import_nothing_of_ours_but_errors():
    for name in ("registry", "config"):
        assert imported_parts(ROOT / f"{name}.py") == {"errors"}


def test_import_is_light():
    code = (
        "import sys, mmssl; heavy = {'torch', 'transformers', 'timm', 'mujoco', 'matplotlib', 'gymnasium', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    for name in mmssl.__all__:
        assert getattr(mmssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmssl.nothing  # noqa: B018


def test_house_rules():
    """No file over 400 lines, no function over 60."""
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is too long"
