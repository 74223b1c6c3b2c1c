"""Real models on a real device: a transformer in torch, and a small server of many models."""
