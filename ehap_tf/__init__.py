"""Second-order filter pruning and full-integer export for trained Keras CNNs."""
