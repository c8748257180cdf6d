"""What is wrong with annotations and what becomes of it, policy by policy."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from shared_fixtures import moment

from excl.datasets.annotations.cleaning import FLAWS, CleaningPolicy, clean, find_flaws


@pytest.mark.parametrize(
    ("given_s", "kept_s"),
    [
        ((1.0, 2.0), (1.0, 2.0)),
        ((9.0, 10.5), (9.0, 10.0)),
        ((-0.5, 2.0), (0.0, 2.0)),
        ((-1.0, 11.0), (0.0, 10.0)),
        ((0.0, 10.0), (0.0, 10.0)),
    ],
)
def test_times_are_clipped_to_the_video(given_s, kept_s):
    original = moment(*given_s)
    result = clean([original])
    assert result.usable == [replace(original, start_s=kept_s[0], end_s=kept_s[1])]
    assert result.changed == ([] if given_s == kept_s else [(original, "clipped")])
    assert result.dropped == []


def test_an_end_stays_where_the_duration_is_unknown():
    original = moment(1.0, 1e6, duration_s=None)
    assert clean([original]).usable == [original]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (moment(5.0, 3.0), "start before it ends"),
        (moment(5.0, 5.0), "start before it ends"),
        (moment(10.0, 12.0), "beyond the video"),
        (moment(-3.0, -1.0), "beyond the video"),
        (moment(query=" \t\n"), "query is empty"),
        (moment(query=""), "query is empty"),
        (moment(math.nan, 2.0), "finite"),
        (moment(1.0, math.nan), "finite"),
        (moment(1.0, math.inf), "finite"),  # not clipped: nobody measured infinity
        (moment(-math.inf, 2.0), "finite"),
    ],
)
def test_what_cannot_be_used_is_dropped_as_it_was_with_the_reason(bad, reason):
    good = moment(row=2, query="another")
    result = clean([bad, good])
    assert result.usable == [good]
    assert result.changed == []
    [(dropped, why)] = result.dropped
    assert dropped is bad
    assert reason in why


times = st.floats(-20, 20) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 10.0])
moments = st.builds(
    moment, times, times, duration_s=st.none() | st.floats(0.1, 15), query=st.sampled_from(["", " ", "he runs"])
)
policies = st.builds(
    CleaningPolicy,
    unordered=st.sampled_from(["drop", "swap"]),
    beyond_video=st.sampled_from(["clip", "drop", "keep"]),
    duplicates=st.sampled_from(["keep", "drop"]),
)


@given(st.lists(moments), policies)
def test_cleaning_loses_nothing_silently_and_leaves_only_usable_moments(given_moments, hygiene):
    result = clean(given_moments, hygiene)
    assert len(result.usable) + len(result.dropped) == len(given_moments)
    for kept in result.usable:
        assert -math.inf < kept.start_s < kept.end_s < math.inf
        if hygiene.beyond_video != "keep":
            assert kept.start_s >= 0
            assert kept.duration_s is None or kept.end_s <= kept.duration_s
        assert kept.query.strip()
    again = clean(result.usable, hygiene)
    if hygiene.duplicates == "keep":  # two rows can become the same by clipping
        assert again.usable == result.usable
        assert (again.changed, again.dropped) == ([], [])


def test_every_policy_does_what_it_says():
    beyond, swapped, zero = moment(9.0, 11.0), moment(4.0, 3.0, row=2), moment(4.0, 4.0, row=3)
    assert clean([beyond], CleaningPolicy(beyond_video="keep")).usable == [beyond]
    assert clean([beyond], CleaningPolicy(beyond_video="drop")).dropped == [(beyond, "it lies beyond the video")]
    result = clean([swapped, zero], CleaningPolicy(unordered="swap"))
    assert result.usable == [replace(swapped, start_s=3.0, end_s=4.0)]
    assert result.changed == [(swapped, "swapped")]
    assert [m for m, _ in result.dropped] == [zero]
    twice = [moment(), moment(row=2), moment(row=3, split="val"), moment(row=4, query="a person runs. ")]
    assert clean(twice).usable == twice
    assert [m.annotation_id for m in clean(twice, CleaningPolicy(duplicates="drop")).usable] == [
        "train:file:1",
        "val:file:3",
        "train:file:4",
    ]


def test_a_moment_that_is_swapped_is_judged_as_it_then_is():
    bad = moment(100.0, 5.0)
    assert find_flaws([bad])["beyond_video"] == [bad]
    with pytest.raises(ValueError, match="beyond the video's duration"):
        clean([bad], CleaningPolicy(unordered="swap", beyond_video="fail"))
    assert clean([bad], CleaningPolicy(unordered="swap")).usable == [replace(bad, start_s=5.0, end_s=10.0)]


def test_duplicates_are_compared_as_the_file_has_them():
    stripped = replace(moment(row=2), raw_query="a person runs. ")  # the adapter took its space away
    assert find_flaws([moment(), stripped])["duplicates"] == []
    assert find_flaws([moment(), moment(row=2), moment(row=3)])["duplicates"] == [moment(row=2), moment(row=3)]


@pytest.mark.parametrize(
    ("flaw", "bad"),
    [
        ("unordered", moment(4.0, 3.0, row=7)),
        ("beyond_video", moment(4.0, 30.0, row=7)),
        ("duplicates", moment(row=7)),
        ("unusable_query", moment(query="", row=7)),
    ],
)
def test_fail_stops_and_names_the_rows(flaw, bad):
    with pytest.raises(ValueError, match=rf"1 rows: .*file\.txt:7(.|\n)*--hygiene\.{flaw.replace('_', '-')}"):
        clean([moment(), bad], CleaningPolicy(**{flaw: "fail"}))
    sound = replace(bad, split="val", start_s=1, end_s=2, query="else")
    assert clean([moment(), sound], CleaningPolicy(**{flaw: "fail"})).dropped == []


def test_a_flaw_may_go_with_another_and_all_are_counted():
    found = find_flaws([moment(12.0, 11.0, query="")])
    assert {flaw: len(rows) for flaw, rows in found.items()} == {
        "unordered": 1, "beyond_video": 1, "duplicates": 0, "unusable_query": 1,
    }  # fmt: skip
    assert set(found) == set(FLAWS)


def test_a_policy_that_there_is_not_is_refused():
    with pytest.raises(ValidationError):
        CleaningPolicy(beyond_video="swap")
    with pytest.raises(ValidationError):
        CleaningPolicy(beyond="clip")
