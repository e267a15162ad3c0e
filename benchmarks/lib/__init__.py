"""What benchmarks share: load generators, processes, platform sessions, the machine, stand-ins for engines and stores."""
