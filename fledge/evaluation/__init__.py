"""Answers become numbers and pictures: likelihood scores, tasks with intervals and baselines, and the report."""
