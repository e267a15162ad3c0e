"""Shared parts of the benchmarks: load generators, processes, platform sessions, machine details, fake stores and retrieval.

Systems to measure are in `benchmarks.systems`; result files, tables and plots in `benchmarks.reporting`.
"""
