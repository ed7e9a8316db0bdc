"""The network as functions of its weights, and the data and losses that go with it."""
