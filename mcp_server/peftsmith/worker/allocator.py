"""PyTorch's CUDA caching allocator as arithmetic: from a list of allocations and frees to allocated and reserved bytes.

Knows: rounding, the small and the large pool, segment sizes, best fit, splitting and merging, one stream.
Does not know: what is allocated or why (trace_step.py). Segments are given back only by EMPTY_CACHE: there is always
room.
Source: c10/cuda/CUDACachingAllocator.cpp (kMinBlockSize, kSmallSize, kSmallBuffer, kLargeBuffer, kMinLargeAlloc,
kRoundLarge; round_size, get_allocation_size, should_split), default settings.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

SMALLEST_BLOCK = 512
LARGEST_SMALL = 1 << 20
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
SMALLEST_HUGE = 10 << 20
ROUND_HUGE = 2 << 20

Event = tuple[int, int]  # (identity, bytes) allocates; (identity, 0) frees
EMPTY_CACHE: Event = (-1, 0)  # torch.cuda.empty_cache()


@dataclass(eq=False)
class Block:
    """A piece of a segment; `before` and `after` are its neighbours in the same segment."""

    size: int
    small: bool
    address: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None


@dataclass
class Pool:
    """Free blocks by (size, address)."""

    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[tuple[int, int], Block] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        key = (block.size, block.address)
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        key = (block.size, block.address)
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]

    def best_fit(self, size: int) -> Block | None:
        place = bisect_left(self.keys, (size, -1))
        return self.blocks[self.keys[place]] if place < len(self.keys) else None


@dataclass
class Peak:
    """Bytes, and the number of the event at which the most was allocated."""

    allocated: int = 0
    reserved: int = 0
    at: int = 0


def replay(events: Iterable[Event]) -> Peak:
    """The peaks of a log. Raises KeyError when something is freed that was not allocated."""
    pools = {True: Pool(), False: Pool()}
    live: dict[int, Block] = {}
    peak = Peak()
    allocated = reserved = address = 0
    for number, (identity, size) in enumerate(events):
        if (identity, size) == EMPTY_CACHE:
            reserved -= sum(_unused(pool) for pool in pools.values())
            continue
        if size == 0:
            block = live.pop(identity)
            allocated -= block.size
            _give_back(block, pools[block.small])
            continue
        rounded = -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK
        small = rounded <= LARGEST_SMALL
        pool = pools[small]
        found = pool.best_fit(rounded)
        if found is None:
            segment = segment_size(rounded)
            found = Block(segment, small, address)
            address += segment
            reserved += segment
            peak.reserved = max(peak.reserved, reserved)
        else:
            pool.remove(found)
        found.free = False
        rest = found.size - rounded
        if rest >= SMALLEST_BLOCK if small else rest > LARGEST_SMALL:
            _split(found, rounded, pool)
        live[identity] = found
        allocated += found.size
        if allocated > peak.allocated:
            peak.allocated, peak.at = allocated, number
    return peak


def _unused(pool: Pool) -> int:
    """Give whole free segments back; returns their bytes."""
    whole = [block for block in pool.blocks.values() if block.before is None and block.after is None]
    for block in whole:
        pool.remove(block)
    return sum(block.size for block in whole)


def segment_size(size: int) -> int:
    """Bytes that are taken from the device for a block of `size` when nothing free fits."""
    if size <= LARGEST_SMALL:
        return SMALL_SEGMENT
    if size < SMALLEST_HUGE:
        return LARGE_SEGMENT
    return -(-size // ROUND_HUGE) * ROUND_HUGE


def _split(block: Block, size: int, pool: Pool) -> None:
    rest = Block(block.size - size, block.small, block.address + size, True, block, block.after)
    if block.after is not None:
        block.after.before = rest
    block.size, block.after = size, rest
    pool.add(rest)


def _give_back(block: Block, pool: Pool) -> None:
    """Mark as free and merge with free neighbours."""
    block.free = True
    before, after = block.before, block.after
    if before is not None and before.free:
        pool.remove(before)
        block.address, block.size = before.address, block.size + before.size
        block.before = before.before
        if block.before is not None:
            block.before.after = block
    if after is not None and after.free:
        pool.remove(after)
        block.size += after.size
        block.after = after.after
        if block.after is not None:
            block.after.before = block
    pool.add(block)
