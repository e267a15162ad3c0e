"""Answer verification: support and faithfulness scores, and sentence selection."""
