"""Makes what runs equal to what is wished."""
