"""What a worker can do: one module each, with a function `do(request, notify)` that returns JSON."""
