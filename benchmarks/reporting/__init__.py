"""Result files, claims, tables and plots: what is written after a measurement."""
