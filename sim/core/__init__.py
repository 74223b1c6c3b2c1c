"""The simulated world: batches, loads, transfers and preemption, without a policy or an input file."""
