"""Each thing that can be added is one file: a made-up one, added from outside, works everywhere."""
