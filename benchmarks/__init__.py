"""Benchmarks that keep their own promises: each prints its aims and exits 1 when one is missed."""
