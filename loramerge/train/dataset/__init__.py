"""Images with their captions: found, put into buckets, ordered."""
