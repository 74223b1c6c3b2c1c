"""The closed loop: what the real server measures against what the simulator predicts."""
