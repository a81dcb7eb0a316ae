"""Gauges with the peaks between two readings."""

from fairlead_router.gauges import Peaks


def test_a_reader_sees_what_was_between_its_readings() -> None:
    gauge = Peaks()
    gauge.set(5)
    gauge.set(0)
    assert (gauge.value, gauge.read("a"), gauge.read("a")) == (0, 5, 0)


def test_readers_do_not_take_each_others_peaks() -> None:
    gauge = Peaks()
    gauge.read("a")
    gauge.read("b")
    gauge.set(5)
    gauge.set(1)
    assert gauge.read("a") == 5
    gauge.set(3)
    gauge.set(2)
    assert (gauge.read("a"), gauge.read("b")) == (3, 5)


def test_a_value_that_stays_is_its_own_peak() -> None:
    gauge = Peaks()
    gauge.set(4)
    assert [gauge.read("a") for _ in range(3)] == [4, 4, 4]


def test_only_the_latest_readers_are_known() -> None:
    gauge = Peaks()
    for number in range(100):
        gauge.read(str(number))
    assert len(gauge._readers) == 8
