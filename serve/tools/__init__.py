"""Tools: calculator, clock, the intent detection that uses them without a model, HTTP tools, and the agent that calls tools."""
