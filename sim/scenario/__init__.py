"""What the user says: a scenario, checked and frozen."""
