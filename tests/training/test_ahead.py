"""Items made one ahead: the same items, in one thread, none too many."""

from __future__ import annotations

import threading

import pytest

from kogpt.training.ahead import ahead


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made: list[int] = []
    second = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            second.set()
        return 10 * number

    with ahead(make, 3) as take:
        assert take(0) == 0
        assert second.wait(10)  # nobody asked for it yet
        assert [take(1), take(2)] == [10, 20]
    assert made == [0, 1, 2]  # each once, and none from the end on


def test_items_are_made_in_one_thread_apart() -> None:
    threads: set[str] = set()
    with ahead(lambda number: threads.add(threading.current_thread().name), 4) as take:
        for number in range(4):
            take(number)
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


def test_an_error_is_that_of_the_item_taken() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("item 1")
        return number

    with ahead(make, 9) as take:
        assert take(0) == 0
        with pytest.raises(ValueError, match="item 1"):
            take(1)
    with ahead(make, 9) as take:
        assert take(0) == 0  # item 1 fails unseen


def test_a_run_may_begin_anywhere() -> None:
    with ahead(lambda number: number, 9) as take:
        assert [take(5), take(6), take(2), take(3)] == [5, 6, 2, 3]
