"""Results on disk that survive crashes, found by what they were computed from."""

from tmpdiff_bench.store.cells import (
    CellStore,
    clear_leftovers,
    digest,
    read_verified,
    write_atomically,
)

__all__ = ["CellStore", "clear_leftovers", "digest", "read_verified", "write_atomically"]
