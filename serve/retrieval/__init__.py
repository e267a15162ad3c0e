"""Grounding: documents are indexed, found for a question, and what is answered is held against them."""
