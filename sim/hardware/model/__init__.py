"""A transformer with random weights, and the device whose memory and link it takes."""
