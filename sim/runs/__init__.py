"""Plays and keeps one run or many: tasks, executors, stores."""
