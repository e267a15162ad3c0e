"""Shared parts of the benchmarks: load generators, processes, platform sessions, machine details, fake stores and retrieval."""
