"""How each operator of the file is quantized: decided, as data."""
