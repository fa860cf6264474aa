"""The weather: link models and flaky-network proxies."""
