"""What each precision costs: comparison of outputs on the same faces."""
