"""What a score is, how it gets to see the network, and among whom channels are ranked by it."""
