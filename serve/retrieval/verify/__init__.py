"""Whether passages support an answer: support and faithfulness scores, and the sentences that answer a question."""
