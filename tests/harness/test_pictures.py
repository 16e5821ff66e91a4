"""What runs and evaluations leave to look at, and the figures made of it."""

import pytest
from PIL import Image

FIGURES = """
figures:
  - {kind: views}
  - {kind: pictures, name: neighbours, column: kNN top-1}
  - {kind: pictures, name: classifier, column: linear top-1}
"""


@pytest.fixture
def ended(cli, tiny_study):
    tiny_study.write_text(tiny_study.read_text() + FIGURES)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_run_leaves_its_views_and_knn_its_neighbours(ended, tmp_path):
    (trained,) = (tmp_path / "runs").glob("barlow_twins-*")
    (random,) = (tmp_path / "runs").glob("random_init-*")
    assert sorted(path.name for path in (trained / "pictures").iterdir()) == [
        "knn--cosine-v1.png",
        "views.png",
    ]
    assert [path.name for path in (random / "pictures").iterdir()] == ["knn--cosine-v1.png"], (
        "it trains on no views"
    )
    # six images of 32 pixels at twice the size, each before two views or seven neighbours
    for name, columns in (("views.png", 3), ("knn--cosine-v1.png", 8)):
        with Image.open(trained / "pictures" / name) as picture:
            assert picture.size == (columns * 64 + (columns - 1) * 2 + 6, 6 * 64 + 5 * 2)


def test_the_report_shows_them_and_says_where_there_are_none(ended, cli, tiny_study, tmp_path):
    figures = tmp_path / "results" / "tiny" / "figures"
    assert (figures / "views.png").is_file()
    assert (figures / "neighbours.svg").is_file()
    assert not (figures / "classifier.png").exists()
    page = (tmp_path / "results" / "tiny" / "report.html").read_text()
    assert "Not drawn: no run has left a picture" in page
    for run in (tmp_path / "runs").iterdir():
        for picture in (run / "pictures").iterdir():
            picture.unlink()
    assert cli("run", tiny_study).code == 0, "pictures are no results, and nothing is measured again for them"
    assert not (figures / "views.png").exists()
