"""Gates on filters: where they act, and derivatives by them."""
