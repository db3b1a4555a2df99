"""`python -m checkpoint_store`: a demonstration, and a check of what a URL guarantees."""
