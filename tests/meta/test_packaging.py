"""What is shipped: a list of files by rule, no helper program, light dependencies with both ends."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENT = re.compile(r"^([a-z0-9-]+)(?:>=([\w.]+))?(?:,<([\w.]+))?(?:; .*)?$")
DATA = re.compile(
    r"zg_async/(py\.typed|cli/texts/[\w.]+|serve/page/[\w.]+|wire/_keccak\w*\.(c|h|pyi)"
    r"|devnet/contracts/(\w+\.sol|package(-lock)?\.json)|devnet/artifacts/\w+\.json|devnet/data/[\w.]+)"
)
EXTENSION = re.compile(r"zg_async/wire/_keccak(\.[\w-]+)*\.(so|pyd)")


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory):
    """A wheel built of what is there, away from the tree."""
    return _built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(wheel_file):
    with zipfile.ZipFile(wheel_file) as archive:
        yield {name: archive.read(name) for name in archive.namelist()}


def _built(folder: pathlib.Path, *, at: float | None = None) -> pathlib.Path:
    pytest.importorskip("setuptools", minversion="77")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    hidden = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "node_modules")
    shutil.copytree(ROOT / "zg_async", source / "zg_async", ignore=hidden)
    for path in source.rglob("*") if at is not None else ():
        os.utime(path, (at, at))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("zg_async-*.whl"))


def _metadata(wheel) -> list[str]:
    name = next(n for n in wheel if n.endswith(".dist-info/METADATA"))
    return wheel[name].decode().split("\n\n")[0].splitlines()


@pytest.mark.slow
@pytest.mark.goal("DOC-06", part="no helper binaries")
def test_a_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "zg_async").rglob("*.py")}
    modules = {name for name in modules if "node_modules" not in name}
    inside = {name for name in wheel if ".dist-info/" not in name}
    assert modules - inside == set()
    assert [name for name in inside - modules if not DATA.fullmatch(name) and not EXTENSION.fullmatch(name)] == []
    assert not [name for name in wheel if name.startswith(("tests", "benchmarks", "examples"))]


@pytest.mark.slow
@pytest.mark.goal("DOC-05", part="py.typed")
def test_a_wheel_holds_the_type_marker_contracts_artifacts_and_data(wheel):
    assert "zg_async/py.typed" in wheel
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "zg_async/devnet").rglob("*") if p.is_file()}
    wanted = {n for n in sources if re.match(r"zg_async/devnet/(contracts/\w+\.sol|artifacts/|data/)", n)}
    assert wanted - set(wheel) == set()
    assert any("/data/" in name for name in wanted)


@pytest.mark.slow
@pytest.mark.goal("HRD-23", part="two builds are bit-equal")
def test_a_checkout_of_another_time_gives_the_same_wheel_to_the_bit(wheel_file, tmp_path):
    other = _built(tmp_path, at=1.6e9)
    assert other.name == wheel_file.name
    assert other.read_bytes() == wheel_file.read_bytes()


@pytest.mark.slow
@pytest.mark.goal("DOC-06", part="optional extension")
def test_the_only_compiled_file_is_the_optional_extension(wheel):
    magic = (b"\x7fELF", b"MZ", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe")
    assert [n for n, data in wheel.items() if data.startswith(magic) and not EXTENSION.fullmatch(n)] == []


@pytest.mark.slow
def test_the_metadata_names_extras_license_and_pythons(wheel):
    lines = _metadata(wheel)
    assert {"Requires-Python: >=3.11", "License-Expression: MIT"} <= set(lines)
    extras = {line.split(": ")[1] for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == set(PROJECT["optional-dependencies"])
    assert extras >= {"devnet", "test", "fast"}
    entry = next(text for name, text in wheel.items() if name.endswith("entry_points.txt")).decode()
    assert all(f"{name} = {target}" in entry for name, target in PROJECT["scripts"].items())
    assert "zg" in PROJECT["scripts"]


@pytest.mark.goal("DOC-06", part="dependency ranges")
def test_every_runtime_dependency_has_a_lower_and_an_upper_end():
    loose = [d for d in PROJECT["dependencies"] if not (m := REQUIREMENT.match(d)) or not m[2] or not m[3]]
    assert loose == []


@pytest.mark.goal("DOC-06", part="heavy parts are extras")
def test_heavy_parts_are_no_runtime_dependencies():
    names = {REQUIREMENT.match(d)[1] for d in PROJECT["dependencies"]}
    heavy = {"py-evm", "numpy", "torch", "transformers", "tokenizers", "coincurve", "cryptography", "opentelemetry-api"}
    assert names & heavy == set()
    assert len(names) <= 10
