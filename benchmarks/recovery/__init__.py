"""The parts of benchmarks/recovery.py: one module per section, and shared modules."""
