"""The measurements of scripts/gpu_check.py that run in this project's own code."""
