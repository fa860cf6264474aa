"""Simulated fleets that benchmarks share."""
