"""Nothing secret, and nothing of the machine it was made on, is in the repository."""

import base64
import contextlib
import pathlib
import re
import shutil
import subprocess

import pytest

from zg_async.devnet.accounts import MNEMONIC, dev_account

ROOT = pathlib.Path(__file__).parents[2]
HEX64 = re.compile(r"(?<![0-9a-zA-Z])(?:0[xX])?([0-9a-fA-F]{64})(?![0-9a-zA-Z])")
KEY_WORDS = re.compile(r"(?i)\b(?:\w*(?:private|secret|owner|wallet|signing|deployer)_?key\w*|pk|privkey|mnemonic)\b")
WORD = r"[a-z]{3,8}"
RULES = {
    "session token": re.compile(r"app-sk-[A-Za-z0-9+/=_-]{40,}"),
    "PEM": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{20}"),
    "keystore": re.compile(r'"ciphertext"\s*:\s*"[0-9a-fA-F]{64}"'),
    "key in a URL": re.compile(r"https?://[^\s\"'/@:]+:(?!CANARY|p(?:ass)?(?:word)?@|secret@|\{)[^\s\"'/@]{6,}@"),
    "path of a machine": re.compile(r"(?<![\w./-])/(?:work|root|home/\w+|Users/\w+|tmp/[a-z]\w*)(?=[/\s\"'`:)]|$)"),
    "key in an RPC URL": re.compile(r"(?i)https?://[^\s\"'/]+/(?:v[23]|rpc|ext|api)/[0-9a-f]{32,}"),
    "key in a query": re.compile(r"(?i)[?&](?:api_?key|access_token|token|key)=[A-Za-z0-9_-]{24,}"),
    "OpenAI key": re.compile(r"(?<!app-)\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "cloud key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}\b"),
    "package index token": re.compile(r"\b(?:pypi-AgEI|npm_)[A-Za-z0-9_-]{30,}"),
    "chat token": re.compile(r"\bxox[abposr]-[0-9]{8,}-[A-Za-z0-9-]{8,}"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    "basic credentials": re.compile(r"(?i)\bauthorization\W{1,6}basic\s+[A-Za-z0-9+/]{16,}"),
    "words of a wallet": re.compile(rf"(?i)\b(?:mnemonic|seed|phrase)\w*\W{{1,8}}({WORD}(?: {WORD}){{11,23}})\b"),
    "words alone": re.compile(rf"[\"']({WORD}(?: {WORD}){{11}}(?:(?: {WORD}){{3}}){{0,4}})[\"']"),
}
VECTORS = ("tests/vectors/", "zg_async/devnet/artifacts/")
"""Hashes, bytecode and the vectors' own keys, which are public: only exact keys would say anything."""
PUBLISHED = (
    "d172bf743a674da9cdad04534d56926ef8358534d458f",
    "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
)
"""Ciphertexts of the two examples in the Web3 Secret Storage Definition."""


def _dev_keys() -> set[str]:
    return {dev_account(n).private_key.hex() for n in (*range(20), *range(100, 104), *range(200, 204))}


def _bare_keys(text: str) -> list[str]:
    """Find 64 digits on a line that speaks of a key."""
    allowed = _dev_keys()
    return [
        match[0]
        for line in text.splitlines()
        if KEY_WORDS.search(line)
        for match in HEX64.finditer(line)
        if match[1].lower() not in allowed and len(set(match[1].lower())) > 4
    ]


def _is_public(rule: str, match: re.Match[str]) -> bool:
    """Whether everybody has it anyway: tokens of development accounts, published keystores, the test words."""
    if rule == "session token":
        with contextlib.suppress(ValueError):
            text = base64.b64decode(match[0].removeprefix("app-sk-") + "==").decode("utf-8", "replace")
            return any(dev_account(n).address.lower() in text.lower() for n in range(20))
    if rule == "keystore":
        return any(one in match[0] for one in PUBLISHED)
    if rule.startswith("words"):
        return match[1] == MNEMONIC or len(set(match[1].split())) < 6
    return False


def problems(name: str, text: str) -> list[str]:
    """Return what is wrong with a file's text."""
    found = []
    if not name.startswith(VECTORS):
        found += [f"{name}: bare key {key[:10]}…" for key in _bare_keys(text)]
    for rule, pattern in RULES.items():
        for match in pattern.finditer(text):
            if not _is_public(rule, match):
                found.append(f"{name}: {rule}: {match[0][:60]!r}")
    return found


def _files() -> list[pathlib.Path]:
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [p for folder in ("zg_async", "tests", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.*")]


@pytest.mark.slow
@pytest.mark.goal("SEC-03", part="the repository")
@pytest.mark.goal("HRD-24", part="nothing in the repository")
def test_no_secret_and_no_path_of_a_machine_is_in_the_repository():
    found = []
    for path in _files():
        name = path.relative_to(ROOT).as_posix()
        if name == "tests/meta/test_repository.py" or "__pycache__" in name:
            continue
        found += problems(name, path.read_bytes().decode("utf-8", "replace"))
    assert found == []


@pytest.mark.slow
def test_what_is_committed_is_text():
    binary = [p.name for p in _files() if b"\0" in p.read_bytes()[:4096]]
    assert binary == []


DIGITS = "9f" + "1c7e3a5d" * 7 + "42c0de"


@pytest.mark.goal("SEC-03", part="the repository")
@pytest.mark.goal("HRD-24", part="each rule finds a planted one")
@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        (f'private_key = "{DIGITS}"', "bare key"),
        (f"ZG_PRIVATE_KEY=0x{DIGITS}", "bare key"),
        (f'OWNER_KEY: Final = "0x{DIGITS.upper()}"', "bare key"),
        (f"pk = {DIGITS}", "bare key"),
        ("Authorization: Bearer app-sk-" + "eyJhZGRyZXNz" * 5, "session token"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIGwqLS1nyBm0Vt1\n", "PEM"),
        (f'{{"crypto": {{"ciphertext": "{DIGITS}"}}}}', "keystore"),
        ("rpc = 'https://user:hunter2hunter2@node.example/'", "key in a URL"),
        ("rpc_url = 'https://net.example/v3/" + DIGITS[:32] + "'", "key in an RPC URL"),
        ("GET https://x.example/?apikey=" + DIGITS[:30], "key in a query"),
        ("OPENAI='sk-proj-" + "a1B2" * 10 + "'", "OpenAI key"),
        ("ghp_" + "aB3d" * 9, "GitHub token"),
        ("github_pat_" + "aB3d" * 12, "GitHub token"),
        ("hf_" + "aB3d" * 9, "Hugging Face token"),
        ("AKIA" + "A1B2" * 4, "cloud key"),
        ("AIza" + "aB3-d" * 7, "cloud key"),
        ("npm_" + "aB3d" * 9, "package index token"),
        ("xoxb-1234567890-" + "abcdefgh", "chat token"),
        (".".join(("eyJ" + "hbGciOi" * 3, "eyJ" + "zdWIiOi" * 3, "c2ln" * 5)), "JSON web token"),
        ("Authorization: Basic " + "dXNlcjpw" * 3, "basic credentials"),
        ("see /" + "work/notes", "path of a machine"),
        ("open('/home/someone/x')", "path of a machine"),
        ("ROOT = '/root/.cache'", "path of a machine"),
        ('mnemonic: "legal winner thank year wave sausage worth useful legal winner thank yellow"', "words"),
        ('"legal winner thank year wave sausage worth useful legal winner thank yellow"', "words"),
    ],
)
def test_a_planted_one_is_found(planted, rule):
    assert any(rule in problem for problem in problems("docs/x.md", f"before\n{planted}\nafter"))


@pytest.mark.goal("HRD-24", part="each rule finds a planted one")
def test_every_rule_has_a_planted_hit_and_there_are_fifteen():
    source = pathlib.Path(__file__).read_text()
    planted = source[source.index('("planted", "rule")') :]
    assert len(RULES) + 1 >= 15
    assert [
        rule
        for rule in (*RULES, "bare key")
        if f'"{rule.split(" of a wallet")[0].removesuffix(" alone")}' not in planted
    ] == []


@pytest.mark.parametrize(
    "text",
    [
        f'dataset_hash = "0x{DIGITS}"',
        f'private_key = "{dev_account(1).private_key.hex()}"',
        f'MNEMONIC = "{MNEMONIC}"',
        'key = "0x" + "11" * 32',
        'private_key="0x' + "1" * 64 + '"',
        "token = 'app-sk-abc'",
        "https://user:password@proxy.example",
        "os.path.join('work', 'root')",
    ],
)
def test_what_is_harmless_is_let_be(text):
    assert problems("docs/x.md", text) == []
