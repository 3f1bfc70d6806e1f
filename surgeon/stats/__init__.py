"""Calibration and evaluation data, metrics and measured latency."""
