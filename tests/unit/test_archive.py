"""Archives: what may be unpacked, and the tricks that are refused before anything is written."""

import io
import stat
import zipfile

import pytest

from zg_async.errors import UnsafeArchiveError
from zg_async.wire.archive import MAX_ENTRIES, check_entries

MB = 1024 * 1024


def archive(*files: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> list[zipfile.ZipInfo]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, data in files:
            out.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return zipfile.ZipFile(buffer).infolist()


def judge(infos: list[zipfile.ZipInfo], **options):
    return check_entries(infos, **{"max_total": 100 * MB, **options})


def one(name: str, **changes) -> list[zipfile.ZipInfo]:
    info = archive(("x", b"data"))[0]
    info.filename = info.orig_filename = name
    for key, value in changes.items():
        setattr(info, key, value)
    return [info]


def test_a_providers_archive_is_taken():
    entries = judge(
        archive(
            ("output_model/", b""),
            ("output_model/adapter_model.safetensors", b"w" * 100),
            ("output_model/adapter_config.json", b"{}"),
            ("output_model/checkpoint-3/README.md", b"#"),
            ("output_model/checkpoint-3/training_args.bin", b"pickle"),
        )
    )
    assert [(e.path, e.size, e.quarantined) for e in entries] == [
        ("adapter_model.safetensors", 100, False),
        ("adapter_config.json", 2, False),
        ("checkpoint-3/README.md", 1, False),
        ("quarantine/checkpoint-3/training_args.bin", 6, True),
    ]
    assert entries[0].name == "output_model/adapter_model.safetensors"


@pytest.mark.parametrize("name", ["a.pt", "a.PTH", "a.pkl", "x.bin", "run.py", "lib.so", "noend", "a.safetensors.exe"])
def test_what_is_not_plain_data_is_quarantined(name):
    (entry,) = judge(one(name))
    assert (entry.path, entry.quarantined) == (f"quarantine/{name}", True)


@pytest.mark.goal("DEL-09", part="path escape")
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../x",
        "a/..",
        "..",
        ".",
        "/etc/passwd",
        "//server/share/x",
        "\\\\server\\share\\x",
        "a\\..\\x",
        "C:x",
        "C:/x",
        "c:\\x",
        "a//b",
        "./x",
        "a/./b",
        "",
        "x\0.txt",
        "x\n",
        "a\x1b[2J",
        "a‮b",
        "con",
        "CON.txt",
        "a/nul",
        "com1.json",
        "LPT9",
        "com¹",
        "aux .txt",
        "x.",
        "x ",
        " x",
        "a./b",
        "x:stream",
        "x*",
        "x?",
        'x"',
        "x<y",
        "x|y",
        "quarantine/x.json",
        "output_model/Quarantine/x.json",
        "n" * 256,
        "é" * 128,
        "a/" * 600 + "x",
        "\ud800",
    ],
)
def test_names_that_escape_or_are_not_safe_everywhere_are_refused(name):
    with pytest.raises(UnsafeArchiveError) as caught:
        judge(one(name))
    assert "\x1b" not in str(caught.value)
    assert "‮" not in str(caught.value)


@pytest.mark.goal("DEL-09", part="links")
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind):
    with pytest.raises(UnsafeArchiveError, match="link or a device"):
        judge(one("x.json", external_attr=(kind | 0o777) << 16))


def test_a_windows_reparse_point_is_refused():
    with pytest.raises(UnsafeArchiveError, match="link"):
        judge(one("x.json", external_attr=0x400, create_system=0))


def test_a_file_that_says_it_is_a_folder_is_refused():
    for name, kind in (("x.json", stat.S_IFDIR), ("x/", stat.S_IFREG)):
        with pytest.raises(UnsafeArchiveError, match="by kind"):
            judge(one(name, external_attr=(kind | 0o755) << 16))


def test_encrypted_and_unusually_packed_files_are_refused():
    with pytest.raises(UnsafeArchiveError, match="encrypted"):
        judge(one("x.json", flag_bits=1))
    with pytest.raises(UnsafeArchiveError, match="unusual"):
        judge(one("x.json", compress_type=zipfile.ZIP_LZMA))


@pytest.mark.goal("DEL-09", part="size bombs")
def test_bombs_are_refused():
    with pytest.raises(UnsafeArchiveError, match="20 times"):
        judge(archive(("a.json", bytes(30 * MB)), method=zipfile.ZIP_DEFLATED))
    with pytest.raises(UnsafeArchiveError, match="unpacks to over"):
        judge(archive(("a.json", b"x" * 2000)), max_total=1000)
    many = archive(*((f"{n}.json", bytes(MB - 1)) for n in range(4)), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeArchiveError, match="20 times"):
        judge(many)


def test_a_small_text_may_shrink_a_lot():
    assert judge(archive(("a.json", b" " * 100_000), method=zipfile.ZIP_DEFLATED))


def test_a_stored_file_has_one_size():
    with pytest.raises(UnsafeArchiveError, match="two sizes"):
        judge(one("x.json", file_size=5))


@pytest.mark.goal("DEL-09", part="entries")
def test_the_number_of_entries_is_limited():
    info = one("x")[0]
    with pytest.raises(UnsafeArchiveError, match="entries"):
        judge([info] * (MAX_ENTRIES + 1))
    for empty in ([], archive(("a/", b""))):
        with pytest.raises(UnsafeArchiveError):
            judge(empty)


@pytest.mark.goal("DEL-09", part="duplicates")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.json", "a.json"),
        ("a.json", "A.JSON"),
        ("output_model/a.json", "a.json"),
        ("é.txt", "é.txt"),
        ("ﬁle.txt", "file.txt"),
        ("straße.txt", "STRASSE.txt"),
        ("A/x.txt", "a/X.txt"),
    ],
)
def test_names_that_meet_on_some_file_system_are_refused(first, second):
    with pytest.warns(UserWarning, match="Duplicate") if first == second else pytest.MonkeyPatch.context():
        infos = archive((first, b"1"), (second, b"2"))
    with pytest.raises(UnsafeArchiveError, match="twice"):
        judge(infos)


def test_a_name_cannot_be_file_and_folder():
    with pytest.raises(UnsafeArchiveError, match="both a file and a folder"):
        judge(archive(("a.json", b"1"), ("A.json/b.txt", b"2")))
    with pytest.raises(UnsafeArchiveError, match="both a file and a folder"):
        judge(archive(("a.json/", b""), ("a.json", b"2")))


@pytest.mark.goal("DEL-09", part="overlap")
def test_entries_that_share_bytes_are_refused():
    infos = archive(("a.json", b"x" * 100), ("b.json", b"y" * 100))
    infos[1].header_offset = infos[0].header_offset + 10
    with pytest.raises(UnsafeArchiveError, match="overlaps"):
        judge(infos)
    infos[1].header_offset = infos[0].header_offset
    with pytest.raises(UnsafeArchiveError, match="overlaps"):
        judge(infos)
