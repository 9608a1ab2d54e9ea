"""Start times: `zg --help`, `zg --version`, a completion, `import zg_async`; and the official CLI's help beside them.

    python benchmarks/startup.py [rounds]        default 10

Contenders take turns and the best round counts. The official command line takes part when ZG_OFFICIAL_CLI names its
script (`@0gfoundation/0g-compute-ts-sdk`, cli.commonjs/cli/index.js); it runs under node, with its update check left as
it is. Aims: help in at most a quarter of its time in the same run, the import under 100 ms.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ZG = "import sys; sys.argv = ['zg', *sys.argv[1:]]; from zg_async.cli.entry import entry; entry()"


def commands() -> dict[str, list[str]]:
    """Name to command line, each in a process of its own."""
    ours = [sys.executable, "-c", ZG]
    found = {
        "python alone": [sys.executable, "-c", ""],
        "import zg_async": [sys.executable, "-c", "import zg_async"],
        "zg --version": [*ours, "--version"],
        "zg --help": [*ours, "--help"],
        "zg __complete": [*ours, "__complete", "--", "ft", "create-task", "--po"],
        "zg run --help": [*ours, "run", "--help"],
    }
    official, node = os.environ.get("ZG_OFFICIAL_CLI"), shutil.which("node")
    if official and node:
        found["official --help"] = [node, official, "--help"]
    return found


def measure(rounds: int, *only: str) -> dict[str, float]:
    """Return the best seconds of each command, or of those named."""
    best: dict[str, float] = {}
    chosen = {name: command for name, command in commands().items() if not only or name in only}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home}
        for _ in range(rounds):
            for name, command in chosen.items():
                start = time.perf_counter()
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
                best[name] = min(best.get(name, 1e9), time.perf_counter() - start)
    return best


def main() -> None:
    best = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for name, seconds in best.items():
        print(f"{name:<18} {seconds * 1000:7.1f} ms", file=sys.stderr)
    result = {name: round(seconds, 4) for name, seconds in best.items()}
    own = best["import zg_async"] - best["python alone"]
    result["import alone"] = round(own, 4)
    print(f"{'import alone':<18} {own * 1000:7.1f} ms", file=sys.stderr)
    if "official --help" in best:
        ratio = best["zg --help"] / best["official --help"]
        result["help against official"] = round(ratio, 3)
        print(f"zg --help takes {ratio:.2f} of the official time; the aim is 0.25", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    main()
