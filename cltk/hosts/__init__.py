"""Where methods attach: a trainer, a loop of one's own, and what these do with optimisers, order and scale."""
