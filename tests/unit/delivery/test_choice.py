from __future__ import annotations

from coordinator.delivery.choice import Judged, best_of
from edge_sdk.elastic.submodel import Submodel

SMALL, MIDDLE, LARGE = (Submodel((0,), (heads,), (heads,)) for heads in (1, 2, 4))


def judged(small: float, middle: float, large: float, samples: int = 10_000) -> list[Judged[Submodel]]:
    return [
        Judged(submodel, submodel.heads[0], accuracy, samples)
        for submodel, accuracy in ((SMALL, small), (MIDDLE, middle), (LARGE, large))
    ]


def test_largest_is_taken_where_it_is_best() -> None:
    assert best_of(judged(0.7, 0.8, 0.9)) == LARGE


def test_smaller_one_is_taken_where_it_is_clearly_better() -> None:
    assert best_of(judged(0.7, 0.9, 0.8)) == MIDDLE


def test_larger_one_is_taken_where_few_samples_cannot_tell_them_apart() -> None:
    assert best_of(judged(0.7, 0.90, 0.89, samples=100)) == LARGE


def test_nothing_fits() -> None:
    assert best_of([]) is None


def test_smaller_file_is_taken_of_two_that_are_as_good() -> None:
    files = [Judged(name, 10, accuracy, 100, size) for name, accuracy, size in (("fp32", 0.91, 40), ("int8", 0.9, 10))]
    assert best_of(files) == "int8"
    assert best_of([files[0], Judged("int8", 10, 0.8, 100, 10)]) == "fp32"
