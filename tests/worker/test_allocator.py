"""The allocator as arithmetic: sizes of segments, reuse, merging, and what must hold for any log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.worker.allocator import EMPTY_CACHE, replay, segment_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "reserved"),
    [(1, 2 * MIB), (MIB, 2 * MIB), (MIB + 512, 20 * MIB), (10 * MIB, 10 * MIB), (10 * MIB + 512, 12 * MIB)],
)
def test_a_first_block_takes_the_segment_that_cuda_would(size, reserved):
    assert segment_size(size) == reserved
    peak = replay([(0, size)])
    assert peak.reserved == reserved and peak.allocated == -(-size // 512) * 512


def test_freed_neighbours_merge_and_are_used_again():
    small = [(n, 512 * 1024) for n in range(4)]
    again = replay([*small, *[(n, 0) for n in range(4)], (9, MIB), (10, MIB)])
    assert again.reserved == 2 * MIB and again.allocated == 2 * MIB


def test_a_large_block_is_split_only_where_more_than_a_mebibyte_is_left():
    assert replay([(0, 40 * MIB), (0, 0), (1, 38 * MIB), (2, 2 * MIB)]).reserved == 40 * MIB
    whole = replay([(0, 40 * MIB), (0, 0), (1, 39 * MIB), (2, 2 * MIB)])
    assert whole.reserved == 60 * MIB and whole.allocated == 42 * MIB


def test_emptying_the_cache_gives_back_whole_segments_only():
    log = [(0, 30 * MIB), (1, 512), (0, 0), EMPTY_CACHE, (2, 20 * MIB)]
    assert replay(log).reserved == 32 * MIB
    assert replay([each for each in log if each != EMPTY_CACHE]).reserved == 32 * MIB
    assert replay([*log, (3, 30 * MIB)]).reserved == 52 * MIB


def test_freeing_what_was_never_allocated_is_an_error():
    with pytest.raises(KeyError):
        replay([(0, 0)])


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.booleans()), max_size=60))
def test_any_log(steps):
    events, live = [], []
    allocated = most = 0
    for number, (size, frees) in enumerate(steps):
        events.append((number, size))
        live.append((number, size))
        allocated += size
        most = max(most, allocated)
        if frees:
            gone = live.pop(0)
            events.append((gone[0], 0))
            allocated -= gone[1]
    peak = replay(events)
    assert most <= peak.allocated <= peak.reserved
    assert replay(events) == peak
    assert peak.reserved <= sum(segment_size(-(-size // 512) * 512) for size, _ in steps)
