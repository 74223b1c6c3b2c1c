"""The loop: arrivals, asking the policy, checking and applying its actions, faults."""
