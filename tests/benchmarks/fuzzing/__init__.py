"""Files mutated at random, and what reading them comes to."""
