"""Every request has a seed, the same on every stage."""

from __future__ import annotations

from vllm_ppsd.sampling.seeds import Arrivals, SeedBook


def test_a_requests_own_seed_is_taken():
    arrivals = Arrivals(0)
    arrivals.add("a", 42)
    assert arrivals.of(["a"]) == {"a": 42}


def test_others_depend_on_the_engines_seed_and_their_arrival():
    def seeds(engine_seed: int, names: str) -> list[int]:
        arrivals = Arrivals(engine_seed)
        for name in names:
            arrivals.add(name, None)
        return list(arrivals.of(names).values())

    assert seeds(0, "abc") == seeds(0, "xyz")
    assert len({*seeds(0, "abc"), *seeds(1, "abc")}) == 6


def test_seeded_requests_do_not_move_the_others():
    with_seeded, without = Arrivals(0), Arrivals(0)
    with_seeded.add("s", 1)
    for arrivals in (with_seeded, without):
        arrivals.add("a", None)
    assert with_seeded.of(["a"]) == without.of(["a"])


def test_stages_agree_and_forget():
    first, last = SeedBook(), SeedBook()
    for book in (first, last):
        book.update({"a": 5, "b": 6}, [])
        book.update({}, ["b"])
    assert first.state("a", 9) == last.state("a", 9) != first.state("a", 10)
    assert len(first) == 1
    arrivals = Arrivals(0)
    arrivals.add("a", None)
    arrivals.forget(["a", "never seen"])
    assert arrivals.of([]) == {}
