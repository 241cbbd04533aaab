"""One replica: loads models and answers requests. Imports nothing of the fleet."""
