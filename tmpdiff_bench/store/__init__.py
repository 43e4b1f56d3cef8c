"""Results on disk that survive crashes, found by what they were computed from."""

from tmpdiff_bench.store.cells import CellStore, digest
from tmpdiff_bench.store.files import clear_leftovers, read_verified, write_atomically

__all__ = ["CellStore", "clear_leftovers", "digest", "read_verified", "write_atomically"]
