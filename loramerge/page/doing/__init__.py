"""The things that a worker can do: one module each, whose `do(request, notify)` returns JSON."""
