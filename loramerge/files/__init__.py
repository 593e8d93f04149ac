"""Bytes ↔ named tensors. Nothing here knows what an adapter is.

`header` parses and builds safetensors headers with the standard library; `tensors` are lazy handles
on stored or computed tensors; `reader` and `writer` open and write files; `pickled` goes through
torch's safe loader; `digest` hashes.
"""
