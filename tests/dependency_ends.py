"""Both ends of the dependency ranges: `python -m tests.dependency_ends [lowest|newest|wheels] ...` (default all).

`lowest` and `newest` each make a venv with the oldest and the newest versions that pyproject.toml allows, import the
whole package there and run the part of the suite that touches every dependency. `wheels` asks the package index
whether the runtime dependencies can be had as wheels alone, for every Python that is supported. Needs the network, so
it isn't part of the suite.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["devnet"]]
TOOLS = [d for d in PROJECT["optional-dependencies"]["test"] if not re.match(r"zg-async|mypy|ruff", d)]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_11_0_arm64", "win_amd64")
SUBSET = (
    "tests/unit/test_errors.py",
    "tests/unit/test_contracts.py",
    "tests/unit/test_hashing.py",
    "tests/unit/test_signing.py",
    "tests/unit/test_signer.py",
    "tests/unit/test_envelope.py",
    "tests/unit/test_retry.py",
    "tests/unit/test_rpc.py",
    "tests/unit/test_clock_background.py",
    "tests/fault/test_http_control.py",
    "tests/devnet/test_ledger.py",
)
IMPORTS = (
    "import importlib, pkgutil, zg_async\n"
    "names = [m.name for m in pkgutil.walk_packages(zg_async.__path__, 'zg_async.')]\n"
    "[importlib.import_module(n) for n in names if not n.endswith('__main__')]\n"
    "[getattr(zg_async, n) for n in zg_async.__all__]\n"
    "print(len(names), 'modules,', len(zg_async.__all__), 'public names')\n"
)


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def lower(requirement: str) -> str:
    """Pin a requirement to its lower end."""
    return re.sub(r">=([\w.]+).*", r"==\1", requirement)


def end(name: str) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = pathlib.Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pinned = [lower(d) for d in RUNTIME] if name == "lowest" else RUNTIME
        run(python, "-m", "pip", "install", "-q", "--upgrade", *pinned, *TOOLS)
        installed = dict(line.split("==") for line in run(python, "-m", "pip", "freeze").splitlines() if "==" in line)
        print(name, ", ".join(f"{n} {installed[n]}" for d in RUNTIME if (n := re.split("[<>=]", d)[0]) in installed))
        print(" ", run(python, "-W", "error", "-c", IMPORTS).strip())
        print(" ", run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUBSET).strip().splitlines()[-1])
    print(f"  {time.monotonic() - began:.0f} s")


def wheels() -> None:
    for version in PYTHONS:
        for platform in PLATFORMS:
            command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
            command += ["--report", "-", "--only-binary", ":all:", "--python-version", version, "--platform", platform]
            command += ["--target", "unused", *PROJECT["dependencies"]]
            if platform.startswith("manylinux"):  # older tags are compatible with a newer C library
                tail = platform.removeprefix("manylinux_2_28")
                command += [
                    w for tag in ("manylinux2014", "manylinux_2_17", "manylinux1") for w in ("--platform", tag + tail)
                ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = f"{done.stdout.count('download_info')} wheels" if not done.returncode else done.stderr.strip()[-300:]
            print(f"{version} {platform}: {said}")


if __name__ == "__main__":
    for what in sys.argv[1:] or ("lowest", "newest", "wheels"):
        wheels() if what == "wheels" else end(what)
