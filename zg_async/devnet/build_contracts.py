"""Compile the devnet's contracts: `contracts/*.sol` in, `artifacts/*.json` out.

Needs node and the pinned compiler: `npm ci --ignore-scripts` in the `contracts` folder, then
`python -m zg_async.devnet.build_contracts [contract ...]`. Only for who changes a contract: the artifacts are part of
the package.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

SOURCES_DIR: Final = Path(__file__).parent / "contracts"
ARTIFACTS_DIR: Final = Path(__file__).parent / "artifacts"
COMPILER: Final = "0.8.30"
CONTRACTS: Final[Mapping[str, str]] = {
    "LedgerManager": "LedgerManager.sol",
    "InferenceServing": "InferenceServing.sol",
    "FineTuningServing": "FineTuningServing.sol",
    "UpgradeableBeacon": "Proxies.sol",
    "BeaconProxy": "Proxies.sol",
    "FixedPriceFlow": "Flow.sol",
    "FixedPriceMarket": "Market.sol",
    "MiningReward": "Market.sol",
}
"""What is deployed, and where it is written down."""

SETTINGS: Final[Mapping[str, Any]] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 200},
    "viaIR": True,
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
}

PURITY_WARNING: Final = "2018"
"""A view could be pure: the published interface says view."""

_IMPORT: Final = re.compile(r'from "\./(\w+\.sol)";')


class BuildError(Exception):
    """The compiler is missing, of another version, or refused the sources."""


def read_sources(file: str) -> dict[str, str]:
    """Read a Solidity file and what it imports, by name, with Unix line ends."""
    sources: dict[str, str] = {}
    missing = [file]
    while missing:
        name = missing.pop()
        if name not in sources:
            sources[name] = (SOURCES_DIR / name).read_text("utf-8")
            missing += _IMPORT.findall(sources[name])
    return dict(sorted(sources.items()))


def hash_sources(sources: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each source's UTF-8 text, by name."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sources.items()}


def find_compiler() -> tuple[str, Path] | None:
    """Where node and solc's script are, or None if one of them is missing."""
    node = shutil.which("node")
    script = SOURCES_DIR / "node_modules" / "solc" / "solc.js"
    return (node, script) if node and script.is_file() else None


def compile_artifacts(names: Iterable[str] = CONTRACTS) -> dict[str, dict[str, Any]]:
    """Compile contracts, each with no more than the files it needs, and return the artifacts by contract name.

    Takes up to a minute: the compiler is JavaScript.

    Raises:
        BuildError: No compiler, another version than `COMPILER`, or an error in a source.
    """
    artifacts: dict[str, dict[str, Any]] = {}
    answers: dict[str, Any] = {}
    for name in names:
        file = CONTRACTS[name]
        sources = read_sources(file)
        if file not in answers:
            answers[file] = _run_compiler(sources)
        artifacts[name] = _artifact(name, answers[file]["contracts"][file][name], sources)
    return artifacts


def artifact_text(artifact: Mapping[str, Any]) -> str:
    """The committed spelling of an artifact."""
    return json.dumps(artifact, indent=1) + "\n"


def main(names: Sequence[str] = ()) -> int:
    """Compile and write the named artifacts or all; the exit code is 0, or 1 with a reason on standard error."""
    try:
        if unknown := set(names) - set(CONTRACTS):
            raise BuildError(f"no such contract: {', '.join(sorted(unknown))}")
        artifacts = compile_artifacts(names or CONTRACTS)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    ARTIFACTS_DIR.mkdir(exist_ok=True)
    for name, artifact in artifacts.items():
        (ARTIFACTS_DIR / f"{name}.json").write_text(artifact_text(artifact), "utf-8", newline="\n")
        sys.stdout.write(f"{name}: {artifact['deployedSize']} bytes\n")
    return 0


def _run_compiler(sources: Mapping[str, str]) -> Any:
    found = find_compiler()
    if found is None:
        raise BuildError(f"node or solc is missing: run `npm ci --ignore-scripts` in {SOURCES_DIR}")
    node, script = found
    version = json.loads((script.parent / "package.json").read_text("utf-8"))["version"]
    if version != COMPILER:
        raise BuildError(f"solc {COMPILER} is needed, {version} is installed")
    question = {
        "language": "Solidity",
        "sources": {name: {"content": text} for name, text in sources.items()},
        "settings": {
            **SETTINGS,
            "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"]}},
        },
    }
    # Plain files: solc's script neither waits for a pipe it reads from nor for one it writes to.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as source,
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
    ):
        json.dump(question, source)
        source.seek(0)
        subprocess.run([node, str(script), "--standard-json"], stdin=source, stdout=out, check=False)
        out.seek(0)
        text = out.read()
    start = text.find("{")  # a line about missing SMT solvers comes before the JSON
    if start < 0:
        raise BuildError("solc gave no answer")
    answer = json.loads(text[start:])
    problems = [e["formattedMessage"] for e in answer.get("errors", ()) if e["errorCode"] != PURITY_WARNING]
    if problems:
        raise BuildError("\n".join(problems))
    return answer


def _artifact(name: str, output: Any, sources: Mapping[str, str]) -> dict[str, Any]:
    code = output["evm"]["bytecode"]["object"]
    size = len(output["evm"]["deployedBytecode"]["object"]) // 2
    return {
        "contract": name,
        "compiler": COMPILER,
        "settings": SETTINGS,
        "sources": hash_sources(sources),
        "deployedSize": size,
        "abi": output["abi"],
        "bytecode": "0x" + code,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
