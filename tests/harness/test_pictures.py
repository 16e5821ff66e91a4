"""What runs and evaluations leave to look at, and the figures made of it."""

import numpy as np
import pytest
from PIL import Image

from twinbench.data.catalogue import load_image_set
from twinbench.harness.execute import show_views
from twinbench.harness.recipes import load_recipe
from twinbench.harness.store import open_run
from twinbench.pretraining.build import resolve

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


def test_pictures_that_stay_on_disk_are_shown_no_larger_than_96_pixels(tmp_path):
    rng = np.random.default_rng(0)
    for split, name, i in ((s, n, i) for s in ("train", "test") for n in ("a", "b") for i in range(8)):
        folder = tmp_path / "large" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (150, 200, 3), np.uint8)).save(folder / f"{i}.jpg")
    image_set = load_image_set(f"folder:{tmp_path / 'large'}", image_size=128, stream=True)
    assert image_set.streamed
    recipe = load_recipe("imagenet", "swav", image_set.name, {})
    run = open_run(tmp_path / "runs", resolve(recipe, 128, image_set.fingerprint), image_set)
    show_views(run, image_set)
    with Image.open(run.folder / "pictures" / "views.png") as picture:
        assert picture.size == (9 * 96 + 8 * 2 + 6, 6 * 96 + 5 * 2), (
            "an image and eight views in each of six rows"
        )
