"""What a criterion or an estimator is worth, and what it costs."""
