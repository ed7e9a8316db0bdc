"""What a layer is in integers: rules and kernels by class, and the graph that they make."""
