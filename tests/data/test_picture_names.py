import os
import unicodedata

import pytest

from twinbench.data.picture_names import FileFinder
from twinbench.foundation.errors import InputError


@pytest.fixture
def lay(tmp_path):
    """Lays empty files below a folder and returns it."""

    def lay(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return lay


@pytest.mark.parametrize(
    ("there", "written"),
    [
        ("a.JPG", "a.jpg"),
        ("a.jpg", "A.Jpg"),
        ("Straße.jpg", "STRASSE.JPG"),
        ("part/a.jpg", "part\\a.jpg"),
        ("part/a.jpg", ".\\PART\\a.jpg"),
        ("part/sub/a.jpg", "part\\sub/a.jpg"),
        ("a.jpg", "images/train/a.jpg"),
        ("part/a.jpg", "images/part/a.jpg"),
        ("a.jpg", "C:\\Users\\me\\a.jpg"),
        ("a.jpg", "/home/me/a.jpg"),
        ("part/a.jpg", "a.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.jpg")),
    ],
)
def test_a_name_in_another_spelling_is_found_and_counted(lay, there, written):
    folder = lay(there, "b.jpg", "part/b.jpg", ".hidden/a.jpg")
    finder = FileFinder()
    assert finder.find(folder, [written], "here") == folder / there
    (remark,) = finder.remarks()
    assert f": 1 ({written} is {there}, for one)" in remark


@pytest.mark.parametrize("written", ["a.jpg", "./a.jpg", "part/a.jpg", ".hidden/a.jpg", "part\\odd.jpg"])
def test_an_exact_name_goes_first_and_is_not_counted(lay, written):
    folder = lay(
        "a.jpg", "A.JPG", "part/a.jpg", "PART/a.jpg", ".hidden/a.jpg", "part\\odd.jpg", "part/odd.jpg"
    )
    finder = FileFinder()
    assert finder.find(folder, [written], "here") == folder / written
    assert finder.remarks() == ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("part\\a.jpg", "part/a.jpg"),
        ("other/a.jpg", "other/A.jpg"),
        ("images/other/a.jpg", "other/A.jpg"),
        ("y/a.jpg", "x/y/a.jpg"),
        ("z/x/y/a.jpg", "x/y/a.jpg"),
    ],
)
def test_the_file_that_shares_the_most_folders_is_meant(lay, written, meant):
    folder = lay("part/a.jpg", "other/A.jpg", "x/part/a.jpg", "x/y/a.jpg")
    assert FileFinder().find(folder, [written], "here") == folder / meant


@pytest.mark.parametrize(
    ("there", "written"),
    [
        (("a.jpg", "A.JPG"), "A.jpg"),
        (("train/a.jpg", "val/a.jpg"), "a.jpg"),
        (("x/part/a.jpg", "y/part/a.jpg"), "part/a.jpg"),
    ],
)
def test_a_name_that_fits_two_files_is_refused_with_both(lay, there, written):
    with pytest.raises(InputError, match="fits 2 files: ") as error:
        FileFinder().find(lay(*there), [written], "list.txt, line 3")
    assert error.value.where == "list.txt, line 3"
    assert all(name in error.value.what for name in there)


@pytest.mark.parametrize(
    "written", ["d.jpg", "a.jpeg", "other/c.jpg", "/etc/passwd", "a" * 300, "a.jpg/", "\\"]
)
def test_what_is_not_there_keeps_the_path_of_its_name_below_the_folder(lay, written):
    folder = lay("b.jpg", "a.png", "part/c.jpg", "another/c.jpg")
    assert FileFinder().find(folder, [written], "here") == folder / written.lstrip("/")
    assert FileFinder().find(folder / "gone", [written], "here") == folder / "gone" / written.lstrip("/")


def test_other_names_help_where_the_first_ones_do_not(lay):
    folder = lay("b.JPG", "c.jpg")
    finder = FileFinder()
    assert finder.find(folder, ["b.jpg", "b.png"], "here", others=["c.jpg"]) == folder / "b.JPG"
    assert finder.find(folder, ["d.jpg", "d.png"], "here", others=["c.jpg"]) == folder / "c.jpg"
    assert "2 (b.jpg is b.JPG, for one)" in finder.remarks()[0]


def test_a_folder_is_listed_once_and_only_if_a_name_is_not_exact(lay, monkeypatch):
    walked = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda folder: walked.append(folder) or walk(folder))
    folder = lay(*(f"{i}.JPG" for i in range(20)))
    finder = FileFinder()
    finder.find(folder, ["3.JPG"], "here")
    assert not walked
    for i in range(20):
        finder.find(folder, [f"{i}.jpg"], "here")
    assert walked == [folder]
