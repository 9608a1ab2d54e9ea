"""Archives, weights and datasets made to hurt: refused as a whole, with nothing left, and nothing of them ever run."""

import io
import json
import os
import pickle
import stat
import struct
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit.test_adapter_files import CONFIG, GOOD, weights
from tests.unit.test_dataset import Dataset, upload
from zg_async.errors import ConfigError, HashMismatchError, UnsafeArchiveError
from zg_async.managers.adapter_files import describe_adapter
from zg_async.managers.dataset import check_dataset
from zg_async.managers.delivery import unpack
from zg_async.wire.adapter_files import HEADER_LIMIT, AdapterFileError, header_size, read_adapter
from zg_async.wire.archive import MAX_ENTRIES

MIB = 2**20
DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def entry(name: str, data: bytes = b"x", *, method: int = STORED, **fields) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.compress_type = method
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def made(*entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for info, data in entries:
            file.writestr(info, data)
    return buffer.getvalue()


def patched(data: bytes, find: bytes, put: bytes, nth: int = -1) -> bytes:
    """Change a place in the last (the directory's) or another occurrence of a header."""
    places = [i for i in range(len(data)) if data.startswith(find, i)]
    at = places[nth] + len(find)
    return data[:at] + put + data[at + len(put) :]


def moved(data: bytes, offset: int) -> bytes:
    """Let the first entry's data begin elsewhere."""
    at = data.index(b"PK\1\2") + 42
    return data[:at] + struct.pack("<L", offset) + data[at + 4 :]


NAMES = (
    "../x.json", "a/../../x.json", "a/../x.json", "..", ".", "./x.json", "a//b.json", "a/./b.json", "/x.json",
    "/etc/cron.d/x", "//server/share/x.json", "\\\\server\\share\\x.json", "..\\x.json", "a\\b.json", "C:x.json",
    "C:/x.json", "c:\\x.json", "\\\\?\\C:\\x.json", "con", "CON.json", "a/nul.txt", "aux.json", "prn", "com1.json",
    "lpt9.txt", "com\u00b9.json", "conin$", "x.", "x ", " x", "a./b", "x:stream", "x*", "x?", 'x"', "x<y", "x|y", "x\n",
    "x\r.json", "a\x1b[2J", "a\u202egnp.json", "a\u200b.json", "n" * 256, "\u00e9" * 128, "a/" * 600 + "x",
    "quarantine/x.json", "output_model/Quarantine/x.json",
)  # fmt: skip
KINDS = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
PAIRS = (
    ("a.json", "A.JSON"), ("output_model/a.json", "a.json"), ("\u00e9.json", "e\u0301.json"), ("\ufb01.txt", "fi.txt"),
    ("stra\u00dfe.txt", "STRASSE.txt"), ("A/x.txt", "a/X.txt"), ("a.json", "a.json/b.txt"),
)  # fmt: skip
GOOD_ZIP = made(entry("a.json", b"{}" * 100), entry("b.json", b"{}" * 100))
ARCHIVES = {
    **{f"name {name[:30]!a}": made(entry(name)) for name in NAMES},
    **{f"kind {kind:o}": made(entry("x.json", b"/etc/passwd", external_attr=(kind | 0o777) << 16)) for kind in KINDS},
    **{f"pair {a!a}": made(entry(a), entry(b)) for a, b in PAIRS},
    "one name twice": patched(GOOD_ZIP, b"PK\1\2" + GOOD_ZIP[GOOD_ZIP.rindex(b"PK\1\2") + 4 :][:42], b"a.json"),
    "bomb": made(entry("x.json", bytes(50 * MIB), method=DEFLATED)),
    "many small bombs": made(*(entry(f"{n}.json", bytes(MIB), method=DEFLATED) for n in range(40))),
    "too many entries": made(*(entry(f"{n}.txt", b"") for n in range(MAX_ENTRIES + 1))),
    "no entry": made(),
    "only a folder": made(entry("a/", b"")),
    "overlap": patched(GOOD_ZIP, b"PK\1\2", GOOD_ZIP[GOOD_ZIP.index(b"PK\1\2") :][4:46]),
    "header elsewhere": moved(GOOD_ZIP, 5),
    "header outside": moved(GOOD_ZIP, 2**31),
    "data cut": GOOD_ZIP[:40] + GOOD_ZIP[80:],
    "data changed": GOOD_ZIP[:60] + b"!" + GOOD_ZIP[61:],
    "directory cut": GOOD_ZIP[:-30],
    "no archive": b"no zip at all" * 1000,
    "nothing": b"",
    "unusual method": made(entry("x.json", b"x" * 100, method=zipfile.ZIP_LZMA)),
}


@pytest.mark.slow
@pytest.mark.goal("HRD-15")
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
async def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, name):
    assert len(ARCHIVES) >= 60
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    (folder / "m.zip").write_bytes(ARCHIVES[name])
    with pytest.raises(UnsafeArchiveError) as caught:
        await unpack(folder / "m.zip", folder / "adapter", max_total=30 * MIB)
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert os.listdir(folder) == ["m.zip"]
    assert os.listdir(tmp_path) == ["deep"]


async def test_the_archive_they_are_made_of_is_taken(tmp_path):
    (tmp_path / "m.zip").write_bytes(GOOD_ZIP)
    assert await unpack(tmp_path / "m.zip", tmp_path / "adapter", max_total=30 * MIB) == ("a.json", "b.json")


# ---- weights


def tensors(**rows) -> bytes:
    text = json.dumps(rows).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def tensor(start: object, end: object, shape: object = (2, 4), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


FILES = {
    "nothing": b"",
    "less than a length": b"\1\0\0",
    "a header beyond all": (2**63).to_bytes(8, "little") + b"{}",
    "a header over the limit": (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}",
    "a header over the file": (50).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"\xff\xfe{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a name twice": (9).to_bytes(8, "little") + b'{"a":1,"a":2}',
    "no LoRA": tensors(a=tensor(0, 32), b=tensor(32, 64)),
    "overlap": tensors(a=tensor(0, 32), b=tensor(16, 48)),
    "the same bytes": tensors(a=tensor(0, 32), b=tensor(0, 32)),
    "a hole": tensors(a=tensor(0, 16, (1, 4)), b=tensor(32, 64)),
    "a hole in front": tensors(a=tensor(8, 40)),
    "backwards": tensors(a=tensor(32, 0)),
    "outside": tensors(a=tensor(0, 2**40, (2, 2**37))),
    "negative": tensors(a=tensor(-32, 0)),
    "fractions": tensors(a=tensor(0.0, 32.5)),
    "huge numbers": tensors(a=tensor(0, 2**256)),
    "booleans": tensors(a=tensor(False, True)),
    "texts": tensors(a=tensor("0", "32")),
    "no offsets": tensors(a={"dtype": "F32", "shape": [2, 4]}),
    "no shape": tensors(a={"dtype": "F32", "data_offsets": [0, 32]}),
    "a shape of another size": tensors(a=tensor(0, 32, (3, 4)), b=tensor(32, 64)),
    "a shape that overflows": tensors(a=tensor(0, 64, (2**40, 2**40))),
    "a negative shape": tensors(a=tensor(0, 32, (-2, -4))),
    "another type": tensors(a=tensor(0, 32, dtype="PICKLE")),
    "a type that is none": tensors(a=tensor(0, 32, dtype=["F32"])),
    "bytes behind": weights(GOOD, tail=b"x"),
    "bytes missing": weights(GOOD)[:-1],
    "a pickle": pickle.dumps({"weights": [1, 2, 3]}),
}


@pytest.mark.goal("HRD-16", part="files")
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_weights_file_is_refused_with_one_error(name):
    assert len(FILES) >= 30
    with pytest.raises(AdapterFileError):
        read_adapter(CONFIG, FILES[name], len(FILES[name]))


@pytest.mark.goal("HRD-16", part="files")
def test_a_header_has_a_limit():
    assert HEADER_LIMIT == 100_000_000
    assert header_size(HEADER_LIMIT.to_bytes(8, "little")) == HEADER_LIMIT + 8
    with pytest.raises(AdapterFileError):
        header_size((HEADER_LIMIT + 1).to_bytes(8, "little"))


class Evil:
    """Makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.goal("HRD-16", part="pickles stay in quarantine, and nothing is run")
async def test_pickles_and_programs_are_listed_and_left_in_quarantine_and_nothing_is_run(tmp_path):
    evil = pickle.dumps(Evil(tmp_path / "owned"))
    code = f"import os; os.mkdir({str(tmp_path / 'owned')!r})".encode()
    names = ("training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl", "modeling.py", "sitecustomize.py", "run.sh")
    files = [entry(f"output_model/{n}", code if n.endswith("py") else evil) for n in names]
    files += [entry("output_model/adapter_config.json", CONFIG)]
    files += [entry("output_model/adapter_model.safetensors", weights(GOOD))]
    (tmp_path / "m.zip").write_bytes(made(*files))
    before = set(sys.modules)
    unpacked = await unpack(tmp_path / "m.zip", tmp_path / "adapter", max_total=MIB)
    assert (await describe_adapter(tmp_path / "adapter")).info.rank == 2
    assert sorted(f for f in unpacked if f.startswith("quarantine/")) == sorted(f"quarantine/{n}" for n in names)
    assert not (tmp_path / "owned").exists()
    assert not any((tmp_path / "adapter" / f).stat().st_mode & 0o111 for f in unpacked)
    assert {m for m in set(sys.modules) - before if "torch" in m or "pickle" in m or m in ("modeling", "run")} == set()


# ---- datasets


@pytest.mark.goal("HRD-17", part="a link swapped under us")
@pytest.mark.parametrize("to", ["another file", "a fifo", "nothing"])
async def test_a_link_that_is_swapped_after_the_check_sends_nothing_unchecked(clock, tmp_path, monkeypatch, to):
    first, second, link = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "train.jsonl"
    first.write_text('{"instruction":"x","input":"","output":"y"}\n')
    second.write_text('{"instruction":"secret","input":"","output":"z"}\n')
    link.symlink_to(first)

    async def check_then_swap(source, **more):
        report = await check_dataset(source, **more)
        link.unlink()
        if to == "a fifo":
            os.mkfifo(link)
        elif to == "another file":
            link.symlink_to(second)
        return report

    monkeypatch.setattr("zg_async.managers.dataset.check_dataset", check_then_swap)
    with pytest.raises((HashMismatchError, ConfigError)):
        await upload(clock, Dataset(), link)
