"""What a policy sees and may ask for: views and actions."""
