"""How ``prune`` chooses: which groups may be cut, how their indices rank, and how many go."""
