"""Retrieval and grounded answers: search quality and speed, support scoring, added time to first token."""
