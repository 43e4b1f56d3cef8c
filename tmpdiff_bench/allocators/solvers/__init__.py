"""What allocators are made of: exact solvers, local search, and intervals of steps."""
