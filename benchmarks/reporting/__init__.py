"""Result files, claims, tables and plots, written after a measurement."""
