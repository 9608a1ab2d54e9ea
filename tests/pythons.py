"""The suite on other Pythons: `python -m tests.pythons [3.12 3.13 ...] [-- pytest arguments]`.

For each version that is installed (as `python3.12` and so on) it makes a venv, installs the package with its tests and
runs them. Versions that aren't there are named and skipped. Needs the network for the installation.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
VERSIONS = ("3.12", "3.13", "3.14")


def works(version: str) -> bool:
    python = shutil.which(f"python{version}")
    return python is not None and not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode


def suite(version: str, arguments: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([f"python{version}", "-m", "venv", folder], check=True)
        python = pathlib.Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", f"{ROOT}[test]"], check=True)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main(words: list[str]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    results = {}
    for version in words[:cut] or VERSIONS:
        results[version] = (
            ("passed" if suite(version, words[cut + 1 :]) else "FAILED") if works(version) else "not here"
        )
    print(", ".join(f"{version}: {result}" for version, result in results.items()))
    return 1 if "FAILED" in results.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
