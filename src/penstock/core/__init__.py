"""Values and contracts that every other room shares; imports nothing of Penstock above itself."""
