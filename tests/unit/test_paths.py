import pytest

from zg_async.paths import make_private_dir


def test_a_private_folder_and_the_parents_made_for_it_are_closed_to_others(tmp_path):
    folder = make_private_dir(tmp_path / "state" / "jobs")
    assert [f.stat().st_mode & 0o777 for f in (folder, folder.parent)] == [0o700, 0o700]


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    assert make_private_dir(tmp_path) == tmp_path
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(OSError, match="state"):
        make_private_dir(tmp_path / "state" / "jobs")
