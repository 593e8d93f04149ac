"""The device, the processes that train together, and the memory there is."""
