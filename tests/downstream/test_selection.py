import pytest

from twinbench.downstream.selection import edge_remarks


@pytest.mark.parametrize(
    ("chosen", "tried", "least", "end"),
    [
        (1.0, (1.0, 2.0, 3.0), 0.0, "smallest"),
        (3.0, (1.0, 2.0, 3.0), 0.0, "largest"),
        (3.0, (3.0, 1.0, 2.0), 0.0, "largest"),
        (2.0, (1.0, 2.0, 3.0), 0.0, None),
        # nothing is beyond the least, and of one value nothing was chosen
        (0.0, (0.0, 1.0), 0.0, None),
        (1, (1, 5), 1, None),
        (0.5, (0.5,), 0.0, None),
    ],
)
def test_a_choice_on_the_edge_is_remarked_on(chosen, tried, least, end):
    remarks = edge_remarks("knn/x-v1", "k", chosen, tried, least)
    assert len(remarks) == (end is not None)
    for remark in remarks:
        assert f"knn/x-v1 chose on val the {end} k of its grid, {chosen:g}" in remark
