"""The parts of benchmarks/recovery.py: a module a section, and what they share."""
