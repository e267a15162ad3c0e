"""Tools: calculator, clock, intent detection (tools without a model), HTTP tools, and the tool-calling agent."""
