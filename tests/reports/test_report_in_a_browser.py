"""The page in a real browser: sorting, filtering, dialogs, addresses, a phone, both colour schemes, hostile names."""

import json
from dataclasses import replace

import pytest

from tests.reports.browser import CHROMIUM, Browser
from tests.reports.hostile import NASTY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

BYOL, BYOL_KNN = "cell-main-byol-Linear-top-1", "cell-main-byol-kNN-top-1"
ORDER = ["Random init", "Supervised", "SimCLR", "MoCo v2", "SwAV", "BYOL", "Barlow Twins"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def figures():
    """The figures of the study; drawing takes longer than all else, so few tests have one."""
    return []


@pytest.fixture
def small(study):
    """The study without figures."""
    return {**study, "figures": []}


@pytest.fixture
def page(browser, study, figures, records, make_run, tmp_path, write):
    """A report, opened in a window of a desk; afterwards the page must have complained of nothing."""
    study["figures"] = figures
    runs = [make_run("byol", seed=seed) for seed in range(2)]
    for run in runs:
        (run.folder / "recipe.yaml").write_text(f"method: byol\nseed: {run.seed}\n")
    address = write(study, records, runs, tmp_path / "out").as_uri()
    browser.shape(1300, 900)
    browser.open(address)
    yield address
    assert browser.messages == []
    assert all(request.startswith(("file:", "data:", "about:")) for request in browser.requests)


def shown(browser):
    """The methods of the first table, row by row, as they stand."""
    rows = "[...document.querySelectorAll('#table-main .numbers tbody tr')].filter((row) => row.offsetParent)"
    return browser.run(f"{rows}.map((row) => row.querySelector('th .value').textContent)")


def head(number):
    return f"#table-main thead th:nth-child({number}) button"


def choose(browser, field, value):
    """Set a field of the filter as a reader does, with the event that it sends."""
    browser.run(
        f"(() => {{ const field = document.querySelector('#controls').elements[{json.dumps(field)}];"
        f" field.type === 'checkbox' ? field.checked = {json.dumps(value)} : field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def is_open(browser):
    return browser.run("document.querySelector('dialog').open")


def test_a_column_sorts_down_up_and_back(browser, page):
    assert shown(browser) == ORDER
    browser.click(head(2))
    down = ["MoCo v2", "Supervised", "BYOL", "Barlow Twins", "SimCLR", "Random init", "SwAV"]
    assert shown(browser) == down
    assert browser.run("document.querySelector('#table-main th[aria-sort]').ariaSort") == "descending"
    browser.click(head(2))
    assert shown(browser) == [*down[-2::-1], "SwAV"]  # what has no number stays last
    assert browser.run("document.querySelectorAll('#table-main th[aria-sort]').length") == 1
    browser.click(head(2))
    assert shown(browser) == ORDER
    assert browser.run("document.querySelectorAll('#table-main th[aria-sort]').length") == 0
    assert browser.run("document.querySelectorAll('#table-main tbody')[0].rows.length") == 2


def test_words_sort_from_a_by_the_keyboard(browser, page):
    browser.run(f"document.querySelector('{head(1)}').focus()")
    browser.press("Enter")
    assert shown(browser) == sorted(ORDER, key=str.lower)
    assert browser.run("document.querySelector('tr.reference .tag').textContent") == "reference"


def test_rows_are_filtered_by_method_origin_and_text(browser, page):
    choose(browser, "method", "BYOL")
    assert shown(browser) == ["BYOL"]
    assert browser.run("document.querySelector('#controls [role=status]').textContent") == "1 of 7 rows"
    choose(browser, "method", "")
    choose(browser, "origin", "quoted")
    assert shown(browser) == ORDER[1:]
    choose(browser, "text", "twins 70.5")
    assert shown(browser) == ["Barlow Twins"]
    browser.click("#controls [type=reset]")
    browser.wait("document.querySelector('#controls [role=status]').textContent === ''")
    assert shown(browser) == ORDER


def test_rows_are_filtered_by_the_scale_and_the_address_says_so(browser, page):
    listed = browser.run(
        "[...document.querySelectorAll('#controls [name=scale] option')].map((o) => o.value)"
    )
    quoted, usual, longer = "quoted", "resnet18, 50 epochs", "resnet18, 200 epochs"
    assert sorted(listed) == ["", quoted, longer, usual]
    choose(browser, "scale", longer)
    assert shown(browser) == ["Random init", "MoCo v2"]  # what was never trained belongs to every scale
    visible = (
        "[...document.querySelectorAll('#provenance tbody tr')].filter((row) => row.offsetParent).length"
    )
    assert browser.run(visible) == 3  # MoCo v2 has two seeds
    address = browser.run("location.href")
    assert "scale=resnet18" in address
    browser.open(address)
    assert shown(browser) == ["Random init", "MoCo v2"]
    assert browser.run("document.querySelector('#controls [name=scale]').value") == longer
    choose(browser, "scale", usual)
    assert shown(browser) == [method for method in ORDER if method != "MoCo v2"]
    choose(browser, "text", "twins")
    assert shown(browser) == ["Barlow Twins"]
    browser.click("#controls [type=reset]")
    browser.wait("document.querySelector('#controls [role=status]').textContent === ''")
    assert shown(browser) == ORDER
    browser.open(f"{page}#headline?scale=one+of+an+older+report")
    assert shown(browser) == ORDER


def test_a_table_without_a_row_that_is_left_goes_with_its_line_in_the_contents(
    browser, study, make_row, tmp_path, write
):
    columns = study["tables"][0]["columns"]
    study = {
        **study,
        "figures": [],
        "tables": [{"name": name, "columns": columns} for name in ("one", "two")],
    }
    rows = [make_row("byol", 50.0, table="one"), make_row("simclr", 60.0, table="two")]
    browser.shape(1300, 900)
    browser.open(write(study, rows, [], tmp_path / "out").as_uri())
    seen = "[...document.querySelectorAll('#tables > section, nav li')].filter((e) => e.offsetParent).length"
    whole = browser.run(seen)
    choose(browser, "method", "BYOL")
    assert browser.run(seen) == whole - 2
    assert not browser.run("document.querySelector('#table-two h2').offsetParent")
    status = "document.querySelector('#controls [role=status]').textContent"
    assert browser.run(status) == "1 of 2 rows; 1 table hidden"
    choose(browser, "method", "")
    assert browser.run(seen) == whole
    assert browser.run(status) == ""


@pytest.mark.parametrize("width", [390, 1300])
def test_a_wide_table_shows_that_it_goes_on_and_keeps_its_first_column(
    browser, study, make_row, tmp_path, write, width
):
    columns = [{"protocol": f"p{n}/x-v1", "metric": "top1", "label": f"a long label {n}"} for n in range(14)]
    study = {**study, "figures": [], "tables": [{"name": "main", "columns": columns}]}
    rows = [make_row("byol", 50.0, protocol=column["protocol"]) for column in columns]
    browser.shape(width, 844)
    browser.open(write(study, rows, [], tmp_path / "out").as_uri())
    box = "document.querySelector('#table-main .scroll')"
    browser.wait(f"{box}.className === 'scroll more'")
    assert browser.run(f"getComputedStyle({box}).maskImage") != "none"
    left = "document.querySelector('#table-main tbody th').getBoundingClientRect().left"
    before = browser.run(left)
    browser.run(f"{box}.scrollLeft = 200")
    browser.wait(f"{box}.className === 'scroll more scrolled' || {box}.className === 'scroll scrolled more'")
    assert browser.run(left) == pytest.approx(before)
    browser.run(f"{box}.scrollLeft = 9999")
    browser.wait(f"{box}.className === 'scroll scrolled'")
    assert browser.run(left) == pytest.approx(before)


def test_published_numbers_are_hidden_and_the_address_says_so(browser, page):
    heads = "[...document.querySelectorAll('#table-main .numbers thead th')]"
    columns = f"{heads}.filter((head) => head.offsetParent).length"
    assert browser.run(columns) == 4
    browser.click("#controls [name=quoted]")
    assert browser.run(columns) == 3
    choose(browser, "method", "BYOL")
    address = browser.run("location.href")
    browser.open(address)
    assert (browser.run(columns), shown(browser)) == (3, ["BYOL"])
    browser.open(page)
    assert browser.run(columns) == 4  # nothing is remembered but the address


def test_a_number_opens_by_the_mouse_and_focus_returns(browser, page):
    browser.click(f"#{BYOL} button")
    assert is_open(browser)
    text = browser.run("document.querySelector('dialog').innerText")
    for part in (
        "BYOL: Linear top-1",
        "72.5 ± 0.7",
        "72.00",
        "73.00",
        "sum-byol-0",
        "11,000,000",
        "10.0 s",
        "1000 MB",
    ):
        assert part in text
    assert "twinbench run s --methods byol --out results/only-byol" in text
    assert browser.run("document.querySelectorAll('dialog svg.chart').length") == 2
    assert browser.run("document.querySelector('dialog polyline').points.numberOfItems") == 20
    assert (
        browser.run("document.querySelectorAll('dialog pre.recipe').length") == 1
    )  # they differ in the seed alone
    assert browser.run("location.hash") == f"#{BYOL}"
    browser.click("dialog header button")
    assert not is_open(browser)
    browser.wait("location.hash === ''")
    assert browser.run("document.activeElement.closest('td').id") == BYOL


def test_a_number_opens_and_shuts_by_the_keyboard(browser, page):
    browser.run(f"document.querySelector('#{BYOL_KNN} button').focus()")
    browser.press("Enter")
    assert is_open(browser)
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog').open")
    assert browser.run("document.activeElement.closest('td').id") == BYOL_KNN


def test_who_beats_whom_opens_and_shuts_by_the_keyboard(browser, page):
    place = "document.querySelectorAll('details.contests')[1]"
    assert browser.run(f"{place}.querySelector('summary').textContent") == "Who beats whom: Linear top-1"
    assert not browser.run(f"{place}.open")
    browser.run(f"{place}.querySelector('summary').focus()")
    browser.press("Enter")
    browser.wait(f"{place}.open")
    assert "+2.0" in browser.run(f"{place}.innerText")
    browser.press("Enter")
    browser.wait(f"!{place}.open")


def test_the_address_of_a_number_opens_it_and_back_shuts_it(browser, page):
    browser.open(f"{page}#{BYOL}")
    assert is_open(browser)
    browser.press("Escape")
    browser.wait("location.hash === '#table-main'")
    browser.click(f"#{BYOL} button")
    assert is_open(browser)
    browser.run("history.back()")
    browser.wait("!document.querySelector('dialog').open")
    browser.open(f"{page}#cell-of-an-older-report")
    assert not is_open(browser)


def test_a_lost_number_says_why(browser, page):
    browser.click("#cell-main-swav-Linear-top-1 button")
    text = browser.run("document.querySelector('dialog').innerText")
    assert "std_is_0 & 100 % <b>flat</b>" in text
    assert browser.run("document.querySelector('dialog .headline').className") == "headline lost"


def test_a_number_of_which_a_seed_collapsed_tells_of_the_others_and_sorts_last(
    browser, small, make_row, tmp_path, write
):
    lost = {"status": "collapsed", "reason": "flat"}
    rows = [make_row("byol", 99.0), make_row("byol", None, 1, **lost), make_row("simclr", 60.0)]
    browser.shape(1300, 900)
    browser.open(write(small, rows, [], tmp_path / "out").as_uri())
    browser.click(head(2))
    assert shown(browser) == ["SimCLR", "BYOL"]
    browser.click(f"#{BYOL} button")
    text = browser.run("document.querySelector('dialog').innerText")
    for part in ("collapsed (1 of 2 seeds)", "without the seeds that collapsed: 99.0 ± 0.5", "flat", "99.00"):
        assert part in text
    assert browser.run("document.querySelector('dialog .headline').className") == "headline lost"
    assert browser.messages == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_wider_than_the_window_and_all_text_can_be_read(browser, page, width, dark):
    browser.shape(width, 844, dark=dark, phone=width == 390)
    browser.open(page)
    for opened in (False, True):
        if opened:
            browser.click(f"#{BYOL} button")
            browser.wait("!document.getAnimations().length")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(TOO_FAINT) == []


# Every text whose colour has a contrast below 4.5 (WCAG 2, AA) with the nearest background behind it.
TOO_FAINT = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("option, script")) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push([walker.currentNode.data.trim(), contrast]);
  }
  return faint;
})()
"""


@pytest.mark.parametrize("figures", [[{"kind": "bars"}]], ids=["bars"])
def test_on_a_phone_the_contents_are_a_menu_and_a_figure_scrolls_in_its_frame(browser, page):
    browser.shape(390, 844, phone=True)
    browser.open(page)
    assert browser.run("document.querySelector('figure img').getBoundingClientRect().width") > 390
    assert browser.run("document.documentElement.scrollWidth") == 390
    link = "[...document.querySelectorAll('nav a')].some((link) => link.checkVisibility({contentVisibilityAuto: true}))"
    assert not browser.run(link)
    browser.click("nav summary")
    assert browser.run(link)
    browser.click("nav a[href='#provenance']")
    browser.wait("location.hash === '#provenance'")
    assert not browser.run(link)


def test_hostile_names_are_shown_and_never_run(browser, study, make_row, make_run, tmp_path, write):
    study["title"] = study["tables"][0]["title"] = study["tables"][0]["columns"][0]["label"] = NASTY
    study["figures"] = []
    run = make_run("byol")
    (run.folder / "recipe.yaml").write_text(NASTY)
    environment = json.dumps({NASTY: NASTY})
    everywhere = {"variant": NASTY, "backbone": NASTY}
    row = make_row("byol", 1.0, **everywhere, device=NASTY, remarks=NASTY, environment=environment)
    lost = make_row("byol", None, seed=1, **everywhere, status="failed", reason=NASTY)
    runs = [replace(run, recipe_hash="byol-0", variant=NASTY)]
    browser.shape(1300, 900)
    browser.open(write(study, [row, lost], runs, tmp_path / "out").as_uri())
    assert browser.run("document.title") == NASTY
    assert browser.run("document.querySelector('#table-main h2').textContent") == NASTY
    assert browser.run("document.querySelector('#table-main td.stub').textContent") == NASTY
    browser.click("#table-main td.done button")
    text = browser.run("document.querySelector('dialog').textContent")
    assert text.count(NASTY) >= 7  # row, column, table, reason, device, remark, recipe, environment
    assert browser.run("document.querySelectorAll('img[src=x]').length + document.scripts.length") == 2
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog').open")
    choose(browser, "scale", f"{NASTY}, 50 epochs")
    assert browser.run("document.querySelector('#controls [role=status]').textContent") == "1 of 1 rows"
    assert browser.messages == []


def test_a_script_that_gets_in_is_not_run(browser, page):
    """The page's own rule, should escaping ever fail."""
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.ran = 1\">')"
    )
    assert browser.run("window.ran") is None
    assert any("Content Security Policy" in message for message in browser.messages)
    browser.events.clear()


def test_without_javascript_and_on_paper_the_page_is_whole(browser, page, tmp_path):
    browser.without_scripts(True)
    try:
        browser.open(page)
        browser.print(tmp_path / "page.pdf")
        text = browser.text()
    finally:
        browser.without_scripts(False)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    for part in ("72.5 ± 0.7", "std over 2 seeds", "Provenance", "twinbench run s", "Supervised"):
        assert part in text
    for part in ("What can be told from it", "BYOL has the best number", "Who beats whom: Linear top-1"):
        assert part in text
    assert "Show all" not in text
