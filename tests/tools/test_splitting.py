"""The promises of the split: every unit is in one split, classes keep their shares, and the seed decides."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.dataset_builder.duplicates import Sample, make_units
from tools.dataset_builder.listing import Entry
from tools.dataset_builder.splitting import Unit, _Assignment, assign, shortages

USUAL = (0.7, 0.1, 0.2)


def singles(*numbers: int) -> list[Unit]:
    """Images that belong to nothing: so many of each class."""
    return [Unit(f"{label}/{n}", {label: 1}) for label, number in enumerate(numbers) for n in range(number)]


def spread(together: list[Unit], split_of: list[int], label: int) -> list[int]:
    """Images of a class in train, val and test."""
    found = Counter[int]()
    for unit, split in zip(together, split_of, strict=True):
        found[split] += unit.counts.get(label, 0)
    return [found[split] for split in range(3)]


@pytest.mark.parametrize(
    ("number", "proportions", "expected"),
    [
        (120, USUAL, [84, 12, 24]),
        (10, USUAL, [7, 1, 2]),
        (3, USUAL, [1, 1, 1]),  # each split has the class, whatever its share
        (4, USUAL, [2, 1, 1]),
        (2, USUAL, [1, 0, 1]),  # two are not enough: training and test go before validation
        (1, USUAL, [1, 0, 0]),
        (100, (0.34, 0.33, 0.33), [34, 33, 33]),
        (1000, (0.001, 0.001, 0.998), [1, 1, 998]),
    ],
)
def test_single_images_are_split_as_nearly_as_whole_images_allow(number, proportions, expected):
    together = singles(number, 50)
    assert spread(together, assign(together, proportions, seed=0), 0) == expected


def test_halves_are_rounded_so_that_the_whole_set_keeps_its_shares():
    together = singles(*[15] * 40)  # 10.5, 1.5 and 3 of each class
    split_of = Counter(assign(together, USUAL, seed=3))

    assert split_of == {0: 420, 1: 60, 2: 120}


def test_the_seed_decides_and_the_order_of_the_units_does_not():
    together = singles(30, 20)
    by_name = dict(zip((unit.name for unit in together), assign(together, USUAL, seed=1), strict=True))
    backwards = together[::-1]

    assert by_name == dict(zip((unit.name for unit in backwards), assign(backwards, USUAL, seed=1), strict=True))
    assert list(by_name.values()) != assign(together, USUAL, seed=2)


def test_patients_of_different_sizes_still_give_the_shares():
    # 100 patients with 1 to 10 images each of one of two classes
    together = [Unit(f"p{n}", {n % 2: n % 10 + 1}) for n in range(100)]
    split_of = assign(together, USUAL, seed=0)

    for label in (0, 1):
        numbers = spread(together, split_of, label)
        shares = [number / sum(numbers) for number in numbers]
        assert shares == pytest.approx(USUAL, abs=0.01)


def test_three_patients_with_everything_go_one_to_each_split():
    together = [Unit(name, {0: 5, 1: 5, 2: 5}) for name in "abc"]
    assert sorted(assign(together, USUAL, seed=0)) == [0, 1, 2]


def test_a_class_reaches_every_split_although_its_patients_have_rarer_classes():
    # each of the classes 0, 1 and 2 is in a patient of class 3, and all four have three patients
    together = [Unit(f"{label}/0", {label: 1, 3: 1}) for label in range(3)]
    together += [Unit(f"{label}/{n}", {label: 1}) for label in range(3) for n in (1, 2)]
    for seed in range(20):
        assert shortages(together, assign(together, USUAL, seed=seed)) == []


def misses(together: list[Unit], split_of: list[int]) -> bool:
    return any(shortage.num_units >= 3 for shortage in shortages(together, split_of))


def test_where_there_is_a_way_to_bring_every_class_to_every_split_it_is_found():
    possible = 0
    for number in range(60):
        drawn = random.Random(number)
        labels = range(drawn.randint(2, 6))
        together = [
            Unit(f"{n}", {label: drawn.randint(1, 9) for label in drawn.sample(labels, drawn.randint(1, 2))})
            for n in range(drawn.randint(3, 7))
        ]
        ways = itertools.product(range(3), repeat=len(together))
        if any(not misses(together, list(split_of)) for split_of in ways):
            possible += 1
            assert not misses(together, assign(together, USUAL, seed=number)), number

    assert possible > 40


@pytest.mark.parametrize("seed", range(10))
def test_no_move_of_a_unit_makes_the_shares_worse(seed):
    drawn = random.Random(seed)
    units = [Unit(f"{n}", {label: drawn.randint(1, 9) for label in drawn.sample(range(3), 2)}) for n in range(30)]
    order = range(len(units))
    assignment = _Assignment(units, USUAL)
    for index in order:
        assignment.put(index, drawn.randrange(3))
    errors = [assignment.error()]
    for index in order:
        assignment._move_if_better(index)
        errors.append(assignment.error())

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_class_too_small_for_three_splits_is_named():
    together = singles(20, 2, 1)
    found = shortages(together, assign(together, USUAL, seed=0))

    assert [(shortage.label, shortage.num_units, shortage.missing) for shortage in found] == [
        (1, 2, ("val",)),
        (2, 1, ("val", "test")),
    ]


proportions_near = st.sampled_from([USUAL, (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.1, 0.2, 0.7)])


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(1, 60), min_size=1, max_size=6), proportions=proportions_near, seed=st.integers(0, 9)
)
def test_any_single_images_end_near_their_shares(numbers, proportions, seed):
    together = singles(*numbers)
    split_of = assign(together, proportions, seed=seed)

    assert len(split_of) == len(together)
    assert set(split_of) <= {0, 1, 2}
    for label, number in enumerate(numbers):
        found = spread(together, split_of, label)
        wanted = [number * share for share in proportions]
        if number >= 3:
            assert min(found) >= 1
        if min(wanted) >= 1:
            assert max(abs(got - want) for got, want in zip(found, wanted, strict=True)) < 1


sets_of_samples = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 60)), min_size=1, max_size=80
)


@settings(max_examples=60, deadline=None)
@given(drawn=sets_of_samples, seed=st.integers(0, 9))
def test_no_group_and_no_image_is_ever_in_two_splits(drawn, seed):
    # group 0 stands for none; the label of an image is its own, as contradictions are refused before
    samples = [
        Sample(Entry(f"{n}", Path(f"{n}"), "", group=str(group or "")), n, bytes([image]), bytes([image]))
        for n, (_, group, image) in enumerate(drawn)
    ]
    together, unit_of = make_units(samples, [image % 4 for _, _, image in drawn])
    split_of = assign(together, USUAL, seed=seed)

    assert sum(unit.size for unit in together) == len(samples)
    assert len(unit_of) == len(samples)
    for key in ("group", "image"):
        splits: dict[object, set[int]] = {}
        for (_, group, image), unit in zip(drawn, unit_of, strict=True):
            if key == "image" or group:
                splits.setdefault(group if key == "group" else image, set()).add(split_of[unit])
        assert all(len(found) == 1 for found in splits.values())


def test_groups_that_share_an_image_become_one_unit_and_others_do_not():
    facts = [("a", 1), ("a", 2), ("b", 2), ("c", 3), ("", 4), ("", 5)]
    samples = [
        Sample(Entry(f"{n}.png", Path(f"{n}.png"), "x", group=group), n, bytes([image]), b"")
        for n, (group, image) in enumerate(facts)
    ]
    together, unit_of = make_units(samples, [0, 1, 1, 0, 0, 0])

    assert unit_of == [0, 0, 0, 1, 2, 3]
    assert together[0] == Unit("0.png", {0: 1, 1: 2})
    assert [unit.name for unit in together] == ["0.png", "3.png", "4.png", "5.png"]


def test_dropped_samples_join_units_but_are_not_counted():
    samples = [
        Sample(Entry(f"{n}.png", Path(f"{n}.png"), "x", group=group), n, bytes([image]), b"")
        for n, (group, image) in enumerate([("a", 1), ("b", 2), ("c", 3), ("b", 1), ("d", 4), ("e", 4)])
    ]
    together, unit_of = make_units(samples[:3], [0, 1, 0], samples[3:])

    assert unit_of == [0, 0, 1]
    assert together == [Unit("0.png", {0: 1, 1: 1}), Unit("2.png", {0: 1})]
